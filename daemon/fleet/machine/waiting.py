"""The clients that wait for one satellite, and how long each is held. Pure.

A client is held for `HOLD_FACTOR` times the usual wake, `HOLD_FLOOR_S` at least, `hold_limit` at most. While the satellite
waits for a place in the awake budget, only `hold_limit` counts. The client's own timeout does not shorten this. But if it is
known why the satellite cannot be used, the client is told shortly before its timeout ends.
"""

import dataclasses
import math
from collections.abc import Iterable

from bentpipe.daemon.fleet.machine.messages import WaiterId
from bentpipe.daemon.fleet.machine.rules import HOLD_FACTOR, HOLD_FLOOR_S

NEWEST_WEIGHT = 0.3
"""Weight of the newest wake in the moving average."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    arrived: float
    until: float
    tell_by: float


class WaitQueue:
    """Waiters in the order in which they came. Times are seconds of one monotonic clock."""

    def __init__(self, hold_limit_s: float) -> None:
        self._hold_limit_s = hold_limit_s
        self._places: dict[WaiterId, _Place] = {}
        self._usual_wake_s: float | None = None
        self._wake_began: float | None = None
        # Never later than the first timeout, but perhaps earlier: thousands of waiters are searched only when this time is
        # reached, and not whenever one comes or goes.
        self._first_until = math.inf
        self._first_tell = math.inf

    @property
    def waiters(self) -> tuple[WaiterId, ...]:
        """All waiters, in the order in which they came."""
        return tuple(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def first_arrived(self) -> float:
        """When the client came that waits for longest; infinity if none waits."""
        return next((place.arrived for place in self._places.values()), math.inf)

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
        """How long a client is held, from the beginning of the wake or from its own arrival, whichever is later."""
        if self._usual_wake_s is None:
            return self._hold_limit_s
        return min(self._hold_limit_s, max(HOLD_FACTOR * self._usual_wake_s, HOLD_FLOOR_S))

    def follow(self, hold_limit_s: float) -> None:
        """Another limit holds for clients that come from now on."""
        self._hold_limit_s = hold_limit_s

    def enter(self, waiter: WaiterId, since: float, tell_by: float = math.inf) -> None:
        """A client waits, `since` then. Until `tell_by` it can still be told a reason for failure."""
        place = _Place(since, since + self._hold_limit_s, tell_by)
        self._places[waiter] = place
        self._first_until = min(self._first_until, self._until(place))
        self._first_tell = min(self._first_tell, tell_by)

    def leave(self, waiter: WaiterId) -> None:
        """A client no longer waits. Does nothing if it did not wait."""
        self._places.pop(waiter, None)

    def empty(self) -> tuple[WaiterId, ...]:
        """Let all waiters go. Returns them."""
        there = self.waiters
        self._places.clear()
        self._first_until = self._first_tell = math.inf
        return there

    def wake_begins(self, now: float) -> None:
        """From now on the usual wake bounds how long clients are held."""
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
        """Let the waiters go whose time is over. Returns them, and how long each has waited."""
        if now < self._first_until:
            return []
        gone = [(waiter, now - place.arrived) for waiter, place in self._places.items() if self._until(place) <= now]
        self._let_go(waiter for waiter, _ in gone)
        return gone

    def untold(self, now: float) -> list[WaiterId]:
        """There is a reason to tell: let the waiters go that cannot be told later."""
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
