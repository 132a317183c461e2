"""The meaning of a failed attempt to wake, and the memory of it. Pure.

A failure is told to all waiting clients, and to clients that come later, until it is time for another attempt: a crowd must
not hammer a machine that cannot come up.
"""

import enum
import math

from bentpipe.daemon.errors import (
    BentpipeError,
    LaunchTokenSpent,
    MachineNotFound,
    ProviderCapacity,
    ProviderError,
    ProviderPermanent,
    ProviderRetryable,
    ProviderThrottled,
    SatelliteUnusable,
)
from bentpipe.daemon.fleet.machine.rules import (
    BLOCKED_FIRST_S,
    CAPACITY_MOST_S,
    FAILURE_MOST_S,
    RETRY_START_S,
    THROTTLE_FIRST_S,
    THROTTLE_MOST_S,
    backed_off,
)
from bentpipe.daemon.model import Fault


class Consequence(enum.Enum):
    """What follows from a failure."""

    AGAIN = "the same call a moment later; no client is told"
    THROTTLED = "the same call, later every time; no client is told"
    SPENT = "the same call a moment later, for another machine; no client is told"
    CAPACITY = "this wake has failed; the next one in minutes"
    FAILED = "this wake has failed; the next one in seconds, later every time"
    BLOCKED = "this wake has failed, and people must act; the next one in seconds, then minutes: they may have acted"


CONSEQUENCES: tuple[tuple[type[ProviderError], Consequence], ...] = (
    (ProviderThrottled, Consequence.THROTTLED),
    (ProviderRetryable, Consequence.AGAIN),
    (ProviderCapacity, Consequence.CAPACITY),
    (LaunchTokenSpent, Consequence.SPENT),
    (ProviderPermanent, Consequence.BLOCKED),
    (MachineNotFound, Consequence.AGAIN),
    (ProviderError, Consequence.FAILED),
)
"""By the class of a call's error; the first that fits. If a machine is not found, a look at it says what follows."""

FAULTS: dict[Fault | None, Consequence] = {
    Fault.CAPACITY: Consequence.CAPACITY,
    Fault.PERMISSION: Consequence.BLOCKED,
    Fault.FOREIGN: Consequence.BLOCKED,
    Fault.OTHER: Consequence.FAILED,
    None: Consequence.FAILED,
}
"""By the fault of a machine that came up and went down again, though every call was accepted."""


PASSING = frozenset({Consequence.AGAIN, Consequence.THROTTLED})
"""Failures that pass by themselves."""
REPEATED = PASSING | {Consequence.SPENT}
"""After these the call is made again, and the wake goes on."""


def consequence_of(error: ProviderError) -> Consequence:
    """Return what follows from a call's error."""
    return next(consequence for kind, consequence in CONSEQUENCES if isinstance(error, kind))


class Failures:
    """Remembers why the satellite cannot be used. Times are seconds of one monotonic clock."""

    def __init__(self, retry_after_s: float, capacity_retry_s: float) -> None:
        self._retry_after_s = retry_after_s
        self._capacity_retry_s = capacity_retry_s
        self._error: BentpipeError | None = None
        self._blocked = False
        self._failures = 0
        self._throttled = 0
        self.retry_at = 0.0
        """When the next attempt may be made."""

    def follow(self, retry_after_s: float, capacity_retry_s: float) -> None:
        """Other times hold after the next failure."""
        self._retry_after_s, self._capacity_retry_s = retry_after_s, capacity_retry_s

    def next_call_at(self, consequence: Consequence, now: float) -> float:
        """When the same call may be repeated: after AGAIN, SPENT and THROTTLED."""
        if consequence is not Consequence.THROTTLED:
            return now + RETRY_START_S
        wait_s = backed_off(THROTTLE_FIRST_S, THROTTLE_MOST_S, self._throttled)
        self._throttled += 1
        return now + wait_s

    def remember(self, consequence: Consequence, error: BentpipeError, now: float) -> None:
        """A wake has failed."""
        self._error = error
        self._throttled = 0
        self._blocked = consequence is Consequence.BLOCKED
        if self._blocked:
            self.retry_at = now + backed_off(BLOCKED_FIRST_S, FAILURE_MOST_S, self._failures)
        elif consequence is Consequence.CAPACITY:
            self.retry_at = now + backed_off(self._capacity_retry_s, CAPACITY_MOST_S, self._failures)
        else:
            self.retry_at = now + backed_off(self._retry_after_s, FAILURE_MOST_S, self._failures)
        self._failures += 1

    def replay(self, now: float) -> BentpipeError | None:
        """Return the error for a client that asks now, with the time until the next attempt; None if it may be made now."""
        if self._error is None or now >= self.retry_at:
            return None
        left = f"; the next attempt is possible in {math.ceil(self.retry_at - now)} s"
        kind = SatelliteUnusable if self._blocked else type(self._error)
        return kind(f"{self._error}{left}", peer_hint=self._error.peer_hint + left)

    def lapse(self, now: float) -> None:
        """Forget an error whose time is up."""
        if now >= self.retry_at:
            self.forgive()

    def forgive(self) -> None:
        """Somebody has acted: another attempt may be made at once. How many failed in a row is still known."""
        self._error = None
        self.retry_at = 0.0

    def clear(self) -> None:
        """It has worked."""
        self.forgive()
        self._failures = self._throttled = 0
