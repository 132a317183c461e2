"""Those who wait for one satellite, and how long each is held: pure.

A client is held for `HOLD_FACTOR` times the usual wake, `HOLD_FLOOR_S` at least, `hold_limit` at most. While the
satellite waits for a place in the awake budget only the last counts. How long a client would wait itself does not bound
this; but if it is known why the satellite cannot be had, the client is told shortly before that time is up.
"""

import dataclasses
import math
from collections.abc import Iterable

from bentpipe.daemon.fleet.machine.messages import WaiterId
from bentpipe.daemon.fleet.machine.rules import HOLD_FACTOR, HOLD_FLOOR_S

NEWEST_WEIGHT = 0.3
"""Of the newest wake in the moving average."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    arrived: float
    until: float
    tell_by: float


class WaitingRoom:
    """Waiters in the order of their coming; times are seconds of one monotonic clock."""

    def __init__(self, hold_limit_s: float) -> None:
        self._hold_limit_s = hold_limit_s
        self._places: dict[WaiterId, _Place] = {}
        self._usual_wake_s: float | None = None
        self._wake_began: float | None = None
        # Never later than the first time out, but perhaps earlier: a room of thousands is searched only when it is
        # reached, not at every coming and going.
        self._first_until = math.inf
        self._first_tell = math.inf

    @property
    def waiters(self) -> tuple[WaiterId, ...]:
        """All of them, first come first."""
        return tuple(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def first_until(self) -> float:
        """When to call `expired` at the latest."""
        return self._first_until

    @property
    def first_tell(self) -> float:
        """When to call `untold` at the latest, if there is a reason to tell."""
        return self._first_tell

    @property
    def hold_s(self) -> float:
        """How long a client is held from the beginning of the wake, or from its coming if that is later."""
        if self._usual_wake_s is None:
            return self._hold_limit_s
        return min(self._hold_limit_s, max(HOLD_FACTOR * self._usual_wake_s, HOLD_FLOOR_S))

    def enter(self, waiter: WaiterId, since: float, tell_by: float = math.inf) -> None:
        """Somebody waits, `since` then; until `tell_by` it would hear a reason for failure."""
        place = _Place(since, since + self._hold_limit_s, tell_by)
        self._places[waiter] = place
        self._first_until = min(self._first_until, self._until(place))
        self._first_tell = min(self._first_tell, tell_by)

    def leave(self, waiter: WaiterId) -> None:
        """Somebody waits no more; does nothing if it did not."""
        self._places.pop(waiter, None)

    def empty(self) -> tuple[WaiterId, ...]:
        """Let everybody go. Returns who was there."""
        there = self.waiters
        self._places.clear()
        self._first_until = self._first_tell = math.inf
        return there

    def wake_begins(self, now: float) -> None:
        """From now on the usual wake bounds how long anybody is held."""
        self._wake_began = now
        self._first_until = min(map(self._until, self._places.values()), default=math.inf)

    def wake_ends(self) -> None:
        """No wake is under way any more."""
        self._wake_began = None

    def wake_took(self, seconds: float) -> None:
        """Count a wake that succeeded."""
        before = seconds if self._usual_wake_s is None else self._usual_wake_s
        self._usual_wake_s = before + NEWEST_WEIGHT * (seconds - before)

    def expired(self, now: float) -> list[tuple[WaiterId, float]]:
        """Let those go whose time is up. Returns them, and how long each has waited."""
        if now < self._first_until:
            return []
        gone = [(waiter, now - place.arrived) for waiter, place in self._places.items() if self._until(place) <= now]
        self._let_go(waiter for waiter, _ in gone)
        return gone

    def untold(self, now: float) -> list[WaiterId]:
        """There is a reason to tell: let those go who will not be there to hear it later."""
        if now < self._first_tell:
            return []
        gone = [waiter for waiter, place in self._places.items() if place.tell_by <= now]
        self._let_go(gone)
        return gone

    def _let_go(self, waiters: Iterable[WaiterId]) -> None:
        for waiter in waiters:
            del self._places[waiter]
        self._first_until = min(map(self._until, self._places.values()), default=math.inf)
        self._first_tell = min((place.tell_by for place in self._places.values()), default=math.inf)

    def _until(self, place: _Place) -> float:
        if self._wake_began is None:
            return place.until
        return min(place.until, max(place.arrived, self._wake_began) + self.hold_s)
