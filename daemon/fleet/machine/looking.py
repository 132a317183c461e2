"""When a satellite's machine is looked at beside the provider's own rounds, and what is known of calls that fail: pure.

Times are seconds of one monotonic clock.
"""

import math

from bentpipe.daemon.errors import BentpipeError
from bentpipe.daemon.fleet.machine.rules import FAILURE_MOST_S, LOOK_FIRST_S, LOOK_MOST_S, PATIENCE_S, backed_off


class LookPace:
    """One look at a time, and ever more rarely while nothing new is seen."""

    def __init__(self) -> None:
        self.under_way = False
        self._next_at = 0.0
        self._fruitless = 0

    @property
    def next_at(self) -> float:
        """When the next look may be made; infinity while one is under way."""
        return math.inf if self.under_way else self._next_at

    def begin(self) -> None:
        """A look is made now."""
        self.under_way = True

    def end(self, now: float) -> None:
        """The look is over."""
        self.under_way = False
        self._next_at = now + backed_off(LOOK_FIRST_S, LOOK_MOST_S, self._fruitless)
        self._fruitless += 1

    def news(self, now: float) -> None:
        """Something new was seen: the next look may be worth as much as a first one."""
        self._fruitless = 0
        self._next_at = min(self._next_at, now + LOOK_FIRST_S)


class Trouble:
    """A series of calls of one kind of which none has worked."""

    def __init__(self) -> None:
        self.error: BentpipeError | None = None
        """The last reason; None if the last call has worked."""
        self.since = 0.0
        self.last_at = -math.inf

    def failed(self, error: BentpipeError, now: float) -> None:
        """A call has failed. A failure long after the last one begins another series."""
        if self.error is None or now - self.last_at > PATIENCE_S + FAILURE_MOST_S:
            self.since = now
        self.error = error
        self.last_at = now

    def worked(self) -> None:
        """A call has worked."""
        self.error = None
        self.last_at = -math.inf
