"""All satellites of the configuration, each with a task and a nursery of its own, and the awake budget over them."""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable

import trio

from bentpipe.config.model import BudgetSection, SatelliteSection
from bentpipe.daemon.coordination.contract import Coordination
from bentpipe.daemon.errors import NoSuchSatellite
from bentpipe.daemon.fleet.budget import Holder, Limits, Request, plan
from bentpipe.daemon.fleet.crowd import Crowd
from bentpipe.daemon.fleet.machine.rules import QUIET_WINDOW_S, Rules
from bentpipe.daemon.fleet.resume import Witness
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.fleet.whereabouts import Places
from bentpipe.daemon.ids import machine_id_of
from bentpipe.daemon.model import MachineTraits, SatelliteKey, SleepMode, Transition
from bentpipe.daemon.providers.base import Provider
from bentpipe.daemon.registry.contract import Registry
from bentpipe.daemon.tasks import Owner, run_owned, start_owned


def limits_of(section: BudgetSection) -> Limits:
    """Take the budget's limits out of the configuration."""
    return Limits(section.max_awake, section.max_awake_per_org, tuple(section.org.items()))


def rules_of(section: SatelliteSection, max_waiters: int, traits: MachineTraits, *, budgeted: bool = False) -> Rules:
    """Take the machine's rules out of the configuration."""
    return Rules(
        sleep_mode=SleepMode(section.sleep_mode),
        sleep_after_s=section.sleep_after_s,
        min_awake_s=section.min_awake_s,
        wake_deadline_s=section.wake_deadline_s,
        hold_limit_s=section.hold_limit_s,
        retry_after_s=section.retry_after_s,
        max_waiters=max_waiters,
        traits=traits,
        capacity_retry_s=section.capacity_retry_after_s,
        quiet_window_s=QUIET_WINDOW_S,
        launch=section.launches,
        budgeted=budgeted,
        ends_quiet=section.quiet_connections == "end",
    )


@dataclasses.dataclass(frozen=True, slots=True)
class FleetStatistics:
    """Counts since the start, and what is now: satellites by state, clients waiting, leases, satellites in the queue."""

    wakes: int
    resumes: dict[str, int]
    lessons: dict[str, int]
    states: dict[str, int]
    waiting: int
    leases: int
    queued: int


class Fleet:
    """Finds satellites and runs them."""

    def __init__(
        self,
        sections: Iterable[SatelliteSection],
        provider: Provider,
        observer: Callable[[Transition], None],
        *,
        max_held: int,
        max_held_in_all: int | None = None,
        max_held_per_principal: int | None = None,
        budget: BudgetSection | None = None,
        witness: Witness | None = None,
        places: Places | None = None,
        coordination: Coordination | None = None,
        registry: Registry | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`max_held` is for each satellite, the others for all of them together; `witness` says what a wake woke to.

        `places` says which satellites prove by TLS who they are.
        """
        budgeted = budget is not None and budget.limits_anything
        self.budget = Budget(limits_of(budget)) if budget is not None and budgeted else None
        self.crowd = Crowd(max_held_in_all, max_held_per_principal)
        places = places or Places()
        self._satellites = {
            (key := SatelliteKey(section.org, section.name)): Satellite(
                key,
                rules_of(section, max_held, provider.traits_of(machine_id_of(key)), budgeted=budgeted),
                provider,
                machine_id_of(key),
                observer,
                keep_awake=section.keep_awake,
                witness=witness,
                crowd=self.crowd,
                places=places,
                coordination=coordination,
                registry=registry,
                wall=wall,
                on_step=self.budget.stepped if self.budget else lambda satellite: None,
            )
            for section in sections
        }
        if self.budget is not None:
            self.budget.manage(self._satellites)

    def get(self, key: SatelliteKey) -> Satellite:
        """Find a satellite. Raises NoSuchSatellite, in the words of one that is somebody else's."""
        try:
            return self._satellites[key]
        except KeyError:
            raise NoSuchSatellite(f"unknown satellite {key}", peer_hint="no such satellite, or not yours") from None

    @property
    def satellites(self) -> tuple[Satellite, ...]:
        """All of them, in the order of the configuration."""
        return tuple(self._satellites.values())

    def statistics(self) -> FleetStatistics:
        """A look at all satellites."""
        resumes = sum((each.resumes for each in self.satellites), collections.Counter())
        lessons = sum((each.lessons for each in self.satellites), collections.Counter())
        states = collections.Counter(each.state for each in self.satellites)
        return FleetStatistics(
            sum(each.wakes for each in self.satellites),
            {resume.value: count for resume, count in resumes.items()},
            {lesson.name.lower(): count for lesson, count in lessons.items()},
            {state.value: count for state, count in states.items()},
            sum(each.waiting for each in self.satellites),
            sum(each.leases for each in self.satellites),
            len(self.budget.queue) if self.budget is not None else 0,
        )

    def reset(self) -> None:
        """Somebody has acted: forget every failure, and what was learned of machines."""
        for satellite in self.satellites:
            satellite.reset()

    def drain(self) -> None:
        """Refuse everybody who waits or comes."""
        for satellite in self.satellites:
            satellite.drain()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run every satellite for ever. One that fails is started again; the others do not notice."""
        async with trio.open_nursery() as nursery:
            # All at once: a provider looks at many machines as quickly as at one.
            async with trio.open_nursery() as starting:
                for satellite in self.satellites:
                    starting.start_soon(
                        nursery.start, start_owned, Owner("satellite", str(satellite.key)), satellite.run
                    )
            if self.budget is not None:
                nursery.start_soon(run_owned, Owner("budget"), self.budget.run_clock)
            task_status.started()


class Budget:
    """Carries out the awake budget's plans, in the same step in which a satellite gives reason for one."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._satellites: dict[SatelliteKey, Satellite] = {}
        self._holders: dict[SatelliteKey, Holder] = {}
        self._queue: dict[SatelliteKey, Request] = {}
        self._settling = False
        self._again_at = float("inf")
        self._moved = trio.Event()

    def manage(self, satellites: dict[SatelliteKey, Satellite]) -> None:
        """Take over, before any of them runs."""
        self._satellites = satellites
        for satellite in satellites.values():
            self._note(satellite)

    @property
    def queue(self) -> tuple[SatelliteKey, ...]:
        """Who waits for a place, first come first."""
        return tuple(self._queue)

    def stepped(self, satellite: Satellite) -> None:
        """A satellite may be something else to the budget than before: if so, grant and evict until all is settled.

        What is done here makes satellites step, which calls this again.
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
        """Remember what the satellite is to the budget. Returns whether that is news."""
        key, place = satellite.key, satellite.place()
        before = self._holders.get(key) or self._queue.get(key)
        if place == before:
            return False
        self._holders.pop(key, None)
        if isinstance(place, Request):
            self._queue[key] = place  # one that is in it keeps its turn
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
        """Settle when an idle satellite becomes old enough to be evicted, for ever."""
        while True:
            moved = self._moved
            with trio.move_on_at(self._again_at):
                await moved.wait()
                continue
            self._settle()
