"""What the satellite has told of the builds that run on it, and whether that keeps it awake. Pure.

A silent build moves no more bytes than keepalives do, so the traffic cannot show it; the satellite's responder counts it.
The count is another machine's word, and there are four ways in which it can be wrong:

- It is old. A count lapses after `builds_stale_s`, and before a sleep the satellite is asked once more (`is_fresh`).
- There is none. Then open connections keep the satellite awake, however little they move, since a build may run on each. A
  satellite without connections may sleep: BuildKit ends a build with its client's connection.
- It is a lie, or a build never ends. A satellite's own word counts for `trust_builds_s` after its last client. The awake
  budget of its org bounds what it can take from others.
- Another host knows better. Each host counts for itself, and none puts a satellite to sleep that another host has entered.
"""

import math

from bentpipe.daemon.fleet.machine.rules import FRESH_S, Rules


class Builds:
    """Times are seconds of one monotonic clock. Each step of the machine calls `lapse` first."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.running: int | None = None
        """How many run; None if that is not known."""
        self.asking = False
        """The count that was asked for before a sleep has not come yet."""
        self._read_at = -math.inf
        self._trusted = True
        self._distrusted = False

    def read(self, running: int | None, now: float) -> None:
        """The satellite was asked; None: it could not tell."""
        self.running, self.asking, self._read_at = running, False, now

    def forget(self) -> None:
        """It is not operational any more: what it told is over."""
        self.running, self.asking, self._read_at = None, False, -math.inf
        self._distrusted = False

    def distrust(self) -> None:
        """What it tells does not count any more, until it has slept."""
        self._distrusted, self._trusted = True, False

    def lapse(self, now: float, client_at: float) -> None:
        """Forget what is too old. `client_at` is when a client used the satellite last."""
        if now >= self._read_at + self.rules.builds_stale_s:
            self.running = None
        self._trusted = not self._distrusted and now < client_at + self.rules.trust_builds_s

    def hold(self, *, leases: int) -> bool:
        """Whether builds keep it awake, or may run on one of its `leases`."""
        if not self.rules.counts_builds or not self._trusted:
            return False
        return leases > 0 if self.running is None else self.running > 0

    def is_fresh(self, now: float) -> bool:
        """Whether the count is the last look before a sleep; always so if builds are not counted."""
        return not self.rules.counts_builds or now - self._read_at <= FRESH_S

    def next_lapse(self, client_at: float) -> float:
        """When `lapse` may next change what `hold` says; infinity if builds do not matter."""
        if not self.rules.counts_builds or not self._trusted:
            return math.inf
        trusted_until = client_at + self.rules.trust_builds_s
        return trusted_until if self.running is None else min(trusted_until, self._read_at + self.rules.builds_stale_s)
