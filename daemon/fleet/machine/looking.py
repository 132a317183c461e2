"""When the satellite's machine asks for a look of its own, beside the provider's rounds. Pure.

Times are seconds of one monotonic clock.
"""

import math

from bentpipe.daemon.fleet.machine.rules import BOOT_LOOK_S, LOOK_FIRST_S, LOOK_MOST_S, LOOK_WAIT_S, backed_off


class Looks:
    """One look at a time. The pauses between looks grow while nothing new is seen."""

    def __init__(self) -> None:
        self.under_way = False
        self._suspected = False
        self._boots_until = 0.0
        self._next_at = 0.0
        self._fruitless = 0

    def suspect(self) -> None:
        """The machine may not be what was last seen: ask for a look as soon as one may be made."""
        self._suspected = True

    def start_accepted(self, now: float) -> None:
        """The machine boots: for BOOT_LOOK_S there is no reason to look if it is not ready."""
        self._boots_until = now + BOOT_LOOK_S

    def came_up(self, now: float) -> None:
        """As `start_accepted`, unless there is another reason to look."""
        if not self._suspected:
            self.start_accepted(now)

    def due_at(self, *, wanted: bool, unsettled: bool) -> float:
        """When to look; infinity if there is no reason to.

        `wanted`: a client waits for a machine that is gone, or that was never seen. `unsettled`: a wake goes on, and the
        machine may have changed since it was last seen.
        """
        if self._suspected or wanted:
            return self._allowed_at
        return max(self._allowed_at, self._boots_until) if unsettled else math.inf

    def is_soon(self, now: float) -> bool:
        """Whether a look is under way, or may be made within LOOK_WAIT_S."""
        return self.under_way or now + LOOK_WAIT_S >= self._next_at

    def begin(self) -> None:
        """A look begins now."""
        self.under_way = True
        self._suspected = False

    def end(self, now: float) -> None:
        """The look is over."""
        self.under_way = False
        self._next_at = now + backed_off(LOOK_FIRST_S, LOOK_MOST_S, self._fruitless)
        self._fruitless += 1

    def news(self, now: float) -> None:
        """Something new was seen, so the next look may be made as soon as a first one."""
        self._fruitless = 0
        self._next_at = min(self._next_at, now + LOOK_FIRST_S)

    @property
    def _allowed_at(self) -> float:
        return math.inf if self.under_way else self._next_at
