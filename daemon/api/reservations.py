"""Satellites that are kept awake for builds on their way: from the end of a Reserve until the build has connected.

The Earthly CLI reserves a satellite, and then opens two connections to it, one after the other: between the two, and before
the first, nobody uses the satellite. A reservation is a lease that lasts until CONNECTIONS of its principal have come, or
RESERVED_S. There is one for each principal and satellite, however many builds it is for.
"""

import dataclasses

import trio

from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.model import SatelliteKey

RESERVED_S = 120.0
"""The CLI itself tries for two minutes at most to connect to a satellite that is OPERATIONAL."""
CONNECTIONS = 2
"""The connections that a build opens: one to probe, and one to work."""


@dataclasses.dataclass(slots=True)
class _Reservation:
    lease: Lease
    until: float
    awaited: int
    """Connections that are still to come."""


class Reservations:
    """All reservations. `run_reservations` must run, so that they end in time."""

    def __init__(self) -> None:
        self._reserved: dict[tuple[SatelliteKey, str], _Reservation] = {}
        self._changed = trio.Event()

    @property
    def count(self) -> int:
        """Reservations now."""
        return len(self._reserved)

    def reserve(self, key: SatelliteKey, principal: str, lease: Lease) -> None:
        """Take `lease` (whose owner has kept it) until the build has come. An older one of the same is replaced."""
        older = self._reserved.pop((key, principal), None)
        awaited = CONNECTIONS + (older.awaited if older is not None else 0)
        self._reserved[key, principal] = _Reservation(lease, trio.current_time() + RESERVED_S, awaited)
        if older is not None:
            older.lease.release()
        self._changed.set()

    def drop(self, key: SatelliteKey) -> None:
        """End all reservations of a satellite that is being removed."""
        for reserved in [each for each in self._reserved if each[0] == key]:
            self._reserved.pop(reserved).lease.release()

    def connected(self, key: SatelliteKey, principals: str) -> None:
        """A connection of these principals, joined by "+", has come and holds a lease of its own."""
        for principal in principals.split("+"):
            reservation = self._reserved.get((key, principal))
            if reservation is not None:
                reservation.awaited -= 1
                if reservation.awaited <= 0:
                    del self._reserved[key, principal]
                    reservation.lease.release()

    async def run_reservations(self) -> None:
        """End reservations whose time is over, for ever."""
        while True:
            self._changed = trio.Event()
            now = trio.current_time()
            for reserved, reservation in list(self._reserved.items()):
                if reservation.until <= now:
                    del self._reserved[reserved]
                    reservation.lease.release()
            first = min((each.until for each in self._reserved.values()), default=float("inf"))
            with trio.move_on_at(first):
                await self._changed.wait()
