"""All satellites, each with a task and a nursery of its own, and the awake budget over them.

The configuration gives the first of them; others are added and removed at run time.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Awaitable, Callable, Iterable

import trio

from bentpipe.config.model import BudgetSection, SatelliteSection
from bentpipe.daemon.errors import SATELLITE_WORDS, NoSuchSatellite
from bentpipe.daemon.fleet.awake_budget import AwakeBudget, limits_of
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.machine.rules import QUIET_WINDOW_S, Rules
from bentpipe.daemon.fleet.reader import ReadingCounters
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.ids import machine_id_of
from bentpipe.daemon.model import NO_PEAKS, Address, MachineTraits, Peaks, SatelliteKey, SatelliteState, SleepMode
from bentpipe.daemon.readings.condition import peaks_of
from bentpipe.daemon.tasks import Owner, run_owned, start_owned

STALE_INTERVALS = 3
"""A count of builds grows stale when so many readings were due and did not come."""


def rules_of(
    section: SatelliteSection, max_waiters: int, traits: MachineTraits, *, budgeted: bool = False, reads: bool = True
) -> Rules:
    """Take the machine's rules out of the configuration. `reads`: responders are read."""
    responder = section.responder
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
        ends_quiet=section.ends_quiet,
        counts_builds=responder is not None and reads,
        builds_stale_s=STALE_INTERVALS * responder.interval_s + responder.deadline_s if responder else math.inf,
        trust_builds_s=responder.trust_builds_s if responder else math.inf,
    )


REGISTERED_READY_S, REGISTERED_HOLD_S = 300.0, 120.0
"""How long a registered satellite's port may stay silent before clients are refused at once, and how long a client waits for
it: whether it will answer is not in our hands."""
REGISTERED_RETRY_S = 5.0


def registered_rules(max_waiters: int, traits: MachineTraits) -> Rules:
    """The rules of a satellite that has registered itself: it is never woken, never put to sleep, and takes no budget."""
    return Rules(
        sleep_mode=SleepMode.STOP,
        sleep_after_s=math.inf,
        min_awake_s=0.0,
        wake_deadline_s=REGISTERED_READY_S,
        hold_limit_s=REGISTERED_HOLD_S,
        retry_after_s=REGISTERED_RETRY_S,
        max_waiters=max_waiters,
        traits=traits,
        owned=False,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class FleetStatistics:
    """Counts since the start, and present numbers: satellites by state, waiting clients, leases, satellites in the queue."""

    wakes: int
    resumes: dict[str, int]
    sleep_problems: dict[str, int]
    states: dict[str, int]
    waiting: int
    leases: int
    queued: int


@dataclasses.dataclass(frozen=True, slots=True)
class ReadStatistics:
    """What the responders of awake satellites tell now."""

    conditions: dict[str, int]
    """Satellites that have a responder and are operational, by condition."""
    builds: int
    peaks: Peaks
    """The highest of any satellite."""
    disk_used: float
    """The fullest cache: a share of its bytes or inodes, whichever is higher."""
    suspected: int
    """Satellites whose score of abuse has reached the one of their configuration."""


class Fleet:
    """Finds satellites and runs them."""

    def __init__(
        self,
        sections: Iterable[SatelliteSection],
        context: FleetContext,
        *,
        max_held: int,
        budget: BudgetSection | None = None,
    ) -> None:
        """`max_held` holds for each satellite. `context.crowd` has the limits for all of them together."""
        budgeted = budget is not None and budget.limits_anything
        self.budget = AwakeBudget(limits_of(budget)) if budget is not None and budgeted else None
        self.crowd = context.crowd
        self.reading = ReadingCounters() if context.reading is None else context.reading.counters
        self._satellites: dict[SatelliteKey, Satellite] = {}
        self._unclaimed: dict[SatelliteKey, dict[Lease, None]] = {}
        """Leases of clients that were spliced to a satellite which is not known yet."""
        self._context = context
        self._max_held = max_held
        self._draining = False
        self._nursery: trio.Nursery | None = None
        self._scopes: dict[SatelliteKey, trio.CancelScope] = {}
        for section in sections:
            satellite = self._make(section)
            self._satellites[satellite.key] = satellite
        if self.budget is not None:
            self.budget.manage(self._satellites)

    def _make(self, section: SatelliteSection, confirm: Callable[[], Awaitable[None]] | None = None) -> Satellite:
        key = SatelliteKey(section.org, section.name)
        traits = self._context.provider.traits_of(machine_id_of(key))
        return Satellite(
            key,
            self._rules_of(section, traits),
            self._context,
            keep_awake=section.keep_awake,
            responder=section.responder,
            on_step=self._stepped,
            confirm=confirm,
        )

    def _rules_of(self, section: SatelliteSection, traits: MachineTraits) -> Rules:
        budgeted, reads = self.budget is not None, self._context.reading is not None
        return rules_of(section, self._max_held, traits, budgeted=budgeted, reads=reads)

    def _stepped(self, satellite: Satellite) -> None:
        if self.budget is not None and satellite.rules.budgeted:
            self.budget.stepped(satellite)

    # -- another configuration -----------------------------------------------------------------------------------------

    def change_limits(self, max_held: int, budget: BudgetSection) -> None:
        """Other limits hold from now on. No satellite is put to sleep for that, and no client is sent away.

        A satellite that is not budgeted yet becomes so with the next `follow`.
        """
        self._max_held = max_held
        if self.budget is not None:
            self.budget.change(limits_of(budget))
        elif budget.limits_anything:
            self.budget = AwakeBudget(limits_of(budget))
            if self._nursery is not None:
                self._nursery.start_soon(run_owned, Owner("budget"), self.budget.run_clock)

    def follow(self, satellite: Satellite, section: SatelliteSection) -> None:
        """Take over the rules and the hours of another section of a satellite, and the limits as they are now."""
        was_budgeted = satellite.rules.budgeted
        satellite.follow(self._rules_of(section, satellite.rules.traits), section.keep_awake)
        if self.budget is not None and not was_budgeted:
            self.budget.add(satellite)

    def limit_registered(self) -> None:
        """The same for satellites that have registered themselves: they only have the limits."""
        for satellite in self.satellites:
            if not satellite.rules.owned:
                satellite.follow(dataclasses.replace(satellite.rules, max_waiters=self._max_held), ())

    async def renew(
        self,
        satellite: Satellite,
        section: SatelliteSection,
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> Satellite:
        """Put a satellite in the place of one that is dormant, since its section is another one. Returns once it runs.

        No client notices: between the two there is no moment in which neither is found.
        """
        self._drop(satellite)
        satellite.removed(SatelliteState.UNKNOWN, "its configuration has changed")
        return await self.add(section, confirm)

    def give_up(self, satellite: Satellite) -> None:
        """Forget a satellite that is no longer configured. Its machine is not touched."""
        if self._drop(satellite):
            satellite.removed(SatelliteState.OFFLINE, "removed from the configuration")

    # -- satellites ----------------------------------------------------------------------------------------------------

    def find(self, key: SatelliteKey) -> Satellite | None:
        """Find a satellite; None if there is none."""
        return self._satellites.get(key)

    async def add(self, section: SatelliteSection, confirm: Callable[[], Awaitable[None]] | None = None) -> Satellite:
        """Take up one more satellite, whose machine the provider knows. Returns once it runs.

        `confirm`: see CoordinatedProvider.
        """
        satellite = self._make(section, confirm)
        if self.budget is not None:
            self.budget.add(satellite)
        await self._take_up(satellite)
        return satellite

    async def add_registered(self, key: SatelliteKey) -> Satellite:
        """Take up a satellite that has registered itself. Returns once it runs."""
        traits = self._context.provider.traits_of(machine_id_of(key))
        satellite = Satellite(key, registered_rules(self._max_held, traits), self._context)
        await self._take_up(satellite)
        return satellite

    def adopt(self, key: SatelliteKey, address: Address) -> Lease:
        """Lease a satellite to a client that was spliced before this daemon started. The caller releases the lease.

        If there is no such satellite yet (it was launched or has registered itself, and was not taken up), the lease is that
        satellite's from the moment on in which there is one.
        """
        if (satellite := self._satellites.get(key)) is not None:
            return satellite.adopt(address)
        waiting = self._unclaimed.setdefault(key, {})
        lease = Lease(address, lambda lease: waiting.pop(lease, None), lambda lease: None)
        waiting[lease] = None
        return lease

    def has_machine_at(self, address: Address) -> bool:
        """Whether a satellite's provider says that its machine is at an address."""
        return bool(self._context.addresses.claims.provided_at(address))

    async def _take_up(self, satellite: Satellite) -> None:
        self._satellites[satellite.key] = satellite
        for lease in self._unclaimed.pop(satellite.key, {}):
            lease.rehome(satellite.adopt(lease.address))
        if self._draining:
            satellite.drain()
        if self._nursery is not None:
            await self._nursery.start(start_owned, Owner("satellite", str(satellite.key)), self._run_one, satellite)

    def remove(self, satellite: Satellite) -> None:
        """Give up a satellite that has retired, with all that runs for it. Its machine is not touched."""
        if self._drop(satellite):
            satellite.removed()

    def _drop(self, satellite: Satellite) -> bool:
        """Forget it, with all that runs for it. Returns whether it was there."""
        if self._satellites.get(satellite.key) is not satellite:
            return False
        del self._satellites[satellite.key]
        if (scope := self._scopes.pop(satellite.key, None)) is not None:
            scope.cancel()
        if self.budget is not None and satellite.rules.budgeted:
            self.budget.remove(satellite.key)
        self._context.coordination.leave_nowait(satellite.key)
        return True

    def get(self, key: SatelliteKey) -> Satellite:
        """Find a satellite. Raises NoSuchSatellite, with the message for a satellite of another tenant."""
        try:
            return self._satellites[key]
        except KeyError:
            raise NoSuchSatellite(f"unknown satellite {key}", peer_hint=SATELLITE_WORDS) from None

    @property
    def satellites(self) -> tuple[Satellite, ...]:
        """All satellites: those of the configuration in its order, then the launched ones."""
        return tuple(self._satellites.values())

    def spares_room(self, more: int) -> bool:
        """Whether the reserve may have so many machines awake: no satellite is being created, and places are free."""
        creating = any(each.shown_state is SatelliteState.CREATING for each in self.satellites)
        return not creating and (self.budget is None or self.budget.has_room(more))

    def statistics(self) -> FleetStatistics:
        """The counters of all satellites now."""
        resumes = sum((each.resumes for each in self.satellites), collections.Counter())
        sleep_problems = sum((each.sleep_problems for each in self.satellites), collections.Counter())
        states = collections.Counter(each.state for each in self.satellites)
        return FleetStatistics(
            sum(each.wakes for each in self.satellites),
            {resume.value: count for resume, count in resumes.items()},
            {problem.name.lower(): count for problem, count in sleep_problems.items()},
            {state.value: count for state, count in states.items()},
            sum(each.waiting for each in self.satellites),
            sum(each.leases for each in self.satellites),
            len(self.budget.queue) if self.budget is not None else 0,
        )

    def read_statistics(self) -> ReadStatistics:
        """What the responders tell now, of all satellites."""
        readers = [
            each.reader for each in self.satellites if each.reader.reads and each.state is SatelliteState.OPERATIONAL
        ]
        readings = [reader.last for reader in readers if reader.last is not None]
        disks = [reading.disk for reading in readings if reading.disk is not None]
        return ReadStatistics(
            conditions=dict(collections.Counter(reader.condition.value for reader in readers)),
            builds=sum(reading.running_builds or 0 for reading in readings),
            peaks=functools.reduce(Peaks.__or__, map(peaks_of, readings), NO_PEAKS),
            disk_used=max((max(disk.used, disk.inodes_used) for disk in disks), default=0.0),
            suspected=sum(reader.is_suspected for reader in readers),
        )

    def reset(self) -> None:
        """Somebody has acted: forget every failure, and every finding about machines."""
        for satellite in self.satellites:
            satellite.reset()

    def drain(self) -> None:
        """Refuse all clients that wait or come."""
        self._draining = True
        for satellite in self.satellites:
            satellite.drain()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run every satellite for ever. One that fails is started again; the others do not notice."""
        try:
            async with trio.open_nursery() as nursery:
                # All at once, since a provider looks at many machines as quickly as at one.
                async with trio.open_nursery() as starting:
                    self._nursery = nursery
                    for satellite in self.satellites:
                        owner = Owner("satellite", str(satellite.key))
                        starting.start_soon(nursery.start, start_owned, owner, self._run_one, satellite)
                if self.budget is not None:
                    nursery.start_soon(run_owned, Owner("budget"), self.budget.run_clock)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def _run_one(
        self, satellite: Satellite, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        if self._satellites.get(satellite.key) is not satellite:
            return  # it was removed while it waited to be started again
        with trio.CancelScope() as scope:
            self._scopes[satellite.key] = scope
            await satellite.run(task_status=task_status)
