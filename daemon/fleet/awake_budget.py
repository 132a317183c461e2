"""Carries out the plans of the awake budget (`budget.py` makes them): it grants places to satellites, and evicts them."""

import trio

from bentpipe.config.model import BudgetSection
from bentpipe.daemon.fleet.budget import AwakeLimits, Holder, Request, plan
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import SatelliteKey


def limits_of(section: BudgetSection) -> AwakeLimits:
    """Take the budget's limits out of the configuration."""
    return AwakeLimits(section.max_awake, section.max_awake_per_org, tuple(section.org.items()))


class AwakeBudget:
    """Carries out the awake budget's plans, in the same step in which a satellite gives a reason for one."""

    def __init__(self, limits: AwakeLimits) -> None:
        self.limits = limits
        self._satellites: dict[SatelliteKey, Satellite] = {}
        self._holders: dict[SatelliteKey, Holder] = {}
        self._queue: dict[SatelliteKey, Request] = {}
        self._settling = False
        self._again_at = float("inf")
        self._moved = trio.Event()

    def manage(self, satellites: dict[SatelliteKey, Satellite]) -> None:
        """Take over the satellites, before any of them runs."""
        self._satellites = dict(satellites)
        for satellite in satellites.values():
            self._note(satellite)

    def change(self, limits: AwakeLimits) -> None:
        """Other limits hold from now on. Who has a place keeps it."""
        self.limits = limits
        self._settle()

    def add(self, satellite: Satellite) -> None:
        """Take over one more satellite."""
        self._satellites[satellite.key] = satellite
        self.stepped(satellite)

    def remove(self, key: SatelliteKey) -> None:
        """Give up a satellite: its place is free."""
        del self._satellites[key]
        self._holders.pop(key, None)
        self._queue.pop(key, None)
        self._settle()

    @property
    def queue(self) -> tuple[SatelliteKey, ...]:
        """The satellites that wait for a place, in the order in which they came."""
        return tuple(self._queue)

    def has_room(self, more: int) -> bool:
        """Whether so many machines more may be awake, while no satellite waits for a place."""
        return not self._queue and len(self._holders) + more <= self.limits.total

    def stepped(self, satellite: Satellite) -> None:
        """If the satellite's part in the budget has changed, grant and evict until nothing more is to do.

        Granting and evicting make satellites step, and each step calls this again.
        """
        if self._note(satellite):
            self._settle()

    def _settle(self) -> None:
        if self._settling:
            return
        self._settling = True
        try:
            while self._settle_once():
                pass
        finally:
            self._settling = False

    def _note(self, satellite: Satellite) -> bool:
        """Remember the satellite's part in the budget. Returns whether it has changed."""
        key, place = satellite.key, satellite.place()
        before = self._holders.get(key) or self._queue.get(key)
        if place == before:
            return False
        self._holders.pop(key, None)
        if isinstance(place, Request):
            self._queue[key] = place  # a request that is in the queue keeps its turn
            return True
        self._queue.pop(key, None)
        if place is not None:
            self._holders[key] = place
        return True

    def _settle_once(self) -> bool:
        self._again_at = float("inf")
        if not self._queue:
            return False
        holders, requests = list(self._holders.values()), list(self._queue.values())
        planned = plan(self.limits, holders, requests, trio.current_time())
        done = [self._satellites[key].evict() for key in planned.evictions]
        done += [self._satellites[key].grant_place() for key in planned.grants]
        if planned.again_at is not None:
            self._again_at = planned.again_at
            self._moved.set()
            self._moved = trio.Event()
        return any(done)

    async def run_clock(self) -> None:
        """Settle whenever an idle satellite becomes old enough to be evicted, for ever."""
        while True:
            moved = self._moved
            with trio.move_on_at(self._again_at):
                await moved.wait()
                continue
            self._settle()
