"""Signs that a satellite mines or computes for somebody, and builds nothing: a score with its reasons. Pure.

No payload is read. The signs are what cgroups and sockets count: CPU that burns for hours while no client moves a byte, how
flat it burns, builds that never end, and a few outgoing connections that last all the while. Each alone is also what honest
builds do, so each has a share of the score, and only several together pass a threshold:

    sign                                             points
    quiet burn: hours of CPU without a client        up to 30 (at 6 h), if it is near the limit or flat; else up to 15
    flatness of the burn                             up to 20
    a build that does not end                        up to 20 (at 24 h)
    few and old outgoing connections meanwhile       30

Miners may cap themselves at 20 to 50 % of the CPU, so a low and flat burn counts as much as a full one. They also add jitter
("Robbery on DevOps", IEEE S&P 2022); then the burn is not flat, and the other signs have to do. No rate of false alarms was
ever published for such signs, so what follows from a score is for the operator to choose. A tenant that is root on its
satellite can let the responder lie, and a miner that prints much looks like a build. Neither is seen here.
"""

import dataclasses
import math

from bentpipe.daemon.model import NO_SUSPICION, Suspicion

WINDOW_S = 300.0
"""CPU time is averaged over such windows. Within one even a miner changes pace."""
GAP_S = 900.0
"""A longer time without samples ends the burn: nobody knows what was in it."""
BURN = 0.15
"""Share of the CPU limit from which on a window burns. Idle daemons use far less."""
PINNED = 0.85
"""Mean share from which on a burn is near the limit. Steal, GC and IO take some percent of the hardest compile."""
QUIET_BYTES_PER_MINUTE = 16 << 10
"""For each connection: three times what BuildKit's own checks of a session move (docs/buildkit.md)."""
FLAT, FLATTER = 0.06, 0.03
"""Standard deviation of the windows as a share of their mean. A compile's links, tests and IO show as more than this."""
FLAT_WINDOWS = 12
"""From so many windows on (an hour), flatness means something."""
FULL_BURN_S, FULL_BUILD_S, LONG_BUILD_S = 6 * 3600.0, 24 * 3600.0, 6 * 3600.0
LEAST_BURN_S = 3600.0
FEW_CONNECTIONS = 8
ALL_THE_WHILE = 0.9
"""Share of the burn's samples that must show few, old connections."""
BURN_POINTS, UNEVEN_POINTS, FLAT_POINTS, BUILD_POINTS, CONNECTION_POINTS = 30, 15, 20, 20, 30


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One look at a satellite. `at` is seconds of a monotonic clock, `cpu_s` grows until the machine boots."""

    at: float
    cpu_s: float
    cpus: float
    """What the builds may use: their limit, or all CPUs."""
    client_bytes: int
    """Moved by all clients since the sample before."""
    connections: int
    """Of clients. One that began or ended since the sample before counts by its bytes alone."""
    oldest_build_s: float = 0.0
    old_outgoing: int = 0
    """Outgoing connections of builds that are older than 10 minutes."""
    young_outgoing: int = 0


class AbuseWatch:
    """One satellite. Its memory does not grow: of the burn it keeps sums."""

    def __init__(self) -> None:
        self._last: Sample | None = None
        self._window: list[float] = [0.0, 0.0, 0.0]  # seconds, CPU seconds, CPU seconds that were possible
        self._begin()

    def _begin(self) -> None:
        self._burnt_s = 0.0
        self._windows, self._mean, self._squares = 0, 0.0, 0.0
        self._samples = self._connected = 0
        self._most_connections = 0

    def reset(self) -> None:
        """It sleeps, or was booted anew."""
        self.__init__()  # type: ignore[misc]  # all state is made there

    def note(self, sample: Sample) -> Suspicion:
        """Take the next sample, and judge what was seen so far."""
        before, self._last = self._last, sample
        if before is None or not before.at < sample.at <= before.at + GAP_S or sample.cpu_s < before.cpu_s:
            self._begin()
            self._window = [0.0, 0.0, 0.0]
            return self.judge()
        elapsed_s = sample.at - before.at
        if sample.client_bytes > max(1, sample.connections) * QUIET_BYTES_PER_MINUTE * max(1.0, elapsed_s / 60):
            self._begin()
            self._window = [0.0, 0.0, 0.0]
            return self.judge()
        self._samples += 1
        if 1 <= sample.old_outgoing <= FEW_CONNECTIONS and sample.young_outgoing <= FEW_CONNECTIONS:
            self._connected += 1
            self._most_connections = max(self._most_connections, sample.old_outgoing)
        self._window[0] += elapsed_s
        self._window[1] += sample.cpu_s - before.cpu_s
        self._window[2] += elapsed_s * max(sample.cpus, 0.01)
        if self._window[0] >= WINDOW_S:
            self._end_window()
        return self.judge()

    def _end_window(self) -> None:
        seconds, used_s, possible_s = self._window
        self._window = [0.0, 0.0, 0.0]
        share = min(used_s / possible_s, 1.0)
        if share < BURN:
            self._begin()
            return
        self._burnt_s += seconds
        # Welford: the mean and the squared distances from it, without keeping the windows.
        self._windows += 1
        off = share - self._mean
        self._mean += off / self._windows
        self._squares += off * (share - self._mean)

    @property
    def _unevenness(self) -> float:
        """Standard deviation of the windows as a share of their mean."""
        if self._windows < FLAT_WINDOWS:
            return math.inf
        return math.sqrt(self._squares / self._windows) / self._mean

    def judge(self) -> Suspicion:
        """Score what was seen so far."""
        if self._last is None or self._burnt_s < LEAST_BURN_S:
            return NO_SUSPICION
        hours = self._burnt_s / 3600
        flat = self._unevenness < FLAT
        points = BURN_POINTS if flat or self._mean >= PINNED else UNEVEN_POINTS
        score = points * min(self._burnt_s / FULL_BURN_S, 1.0)
        reasons = [
            f"for {hours:.1f} h builds have used {self._mean:.0%} of their CPUs while clients moved no more than keepalives"
        ]
        if flat:
            score += FLAT_POINTS if self._unevenness < FLATTER else FLAT_POINTS / 2
            reasons.append(f"the use of CPU hardly changes: by {self._unevenness:.1%} of its mean")
        if (oldest_s := self._last.oldest_build_s) >= LONG_BUILD_S:
            score += BUILD_POINTS * min(oldest_s / FULL_BUILD_S, 1.0)
            reasons.append(f"a build has run for {oldest_s / 3600:.1f} h")
        if self._connected >= ALL_THE_WHILE * self._samples:
            score += CONNECTION_POINTS
            reasons.append(f"all the while few outgoing connections are old: {self._most_connections} at most")
        return Suspicion(round(score), tuple(reasons))
