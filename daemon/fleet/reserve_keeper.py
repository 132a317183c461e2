"""Keeps the reserve as the configuration wants it: one task, and of all hosts that share a store one at a time works.

In each round it reads the rows, looks at the cloud, and takes one step for each machine, as `reserve_rules` decides. A step
is stored or carried out, never both, so that a daemon that dies between two steps leaves what the next round understands.
Tenants come first: a machine is launched only while the awake budget has room and no satellite is being created, and few at
once.
"""

import contextlib
import dataclasses
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import assert_never

import trio

from bentpipe.config.model import MachineTypeSection
from bentpipe.daemon.coordination.contract import Coordination
from bentpipe.daemon.errors import (
    LaunchTokenSpent,
    ProviderError,
    ProviderRetryable,
    SleepModeRefused,
    SleepTooEarly,
    StoreError,
)
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.machine.states import WAKING
from bentpipe.daemon.fleet.readiness import ATTEMPT_S
from bentpipe.daemon.fleet.reserve_giver import GIVE_UP_S, ReserveGiver
from bentpipe.daemon.fleet.reserve_rules import (
    ORPHAN_S,
    UP,
    Facts,
    ReserveStep,
    Verdict,
    Wanted,
    chosen,
    decide,
    failed,
    refused,
    sleep_mode_of,
    successor,
)
from bentpipe.daemon.ids import reserve_place
from bentpipe.daemon.model import RESERVE_ORG, Address, MachineState, SatelliteKey, SatelliteState, SleepMode
from bentpipe.daemon.providers.permit import permitted_by
from bentpipe.daemon.providers.reserve import SpareMachine, SpareProvider
from bentpipe.daemon.providers.series import Series
from bentpipe.daemon.registry.contract import Registry
from bentpipe.daemon.registry.reserve import ReservePlace, ReserveStore, SpareState, StoredSpare
from bentpipe.daemon.tasks import Owner, contained

log = logging.getLogger("bentpipe.fleet")

TURN = SatelliteKey(RESERVE_ORG, "keeper")
"""Whose turn it is to work on the reserve."""
MOVING_S, RESTING_S = 2.0, 30.0
"""Between rounds: while machines are on their way, and otherwise."""
AT_ONCE = 2
"""Machines of the reserve that are up at once, over all types: each is awake for minutes, and tenants want capacity too."""
LAUNCH_AGAIN_S = 120.0
"""Before a launch that was accepted, or whose answer was lost, is repeated: a cloud may not show the machine for so long."""
UNANSWERED_S = 15.0
"""The same after a passing failure."""
TOO_EARLY_S = 15.0
"""Before another attempt to lay down a machine that has not run for long enough."""


@dataclasses.dataclass(slots=True)
class _Memory:
    """What this host remembers of a machine, by its id. Losing it costs time and nothing else."""

    launch_at: float = float("-inf")
    lay_down_at: float = float("-inf")
    missing_since: float | None = None
    up_since: float | None = None
    series: Series | None = None
    """Of failed steps."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReserveView:
    """The reserve as the newest round has seen it, for people."""

    rows: tuple[StoredSpare, ...] = ()
    awake: frozenset[str] = frozenset()
    """The ids of machines that are up, or on their way up or down."""

    def count(self, size: str, platform: str, state: SpareState) -> int:
        """Machines of a type in a state."""
        return sum((each.place.size, each.place.platform, each.state) == (size, platform, state) for each in self.rows)


@dataclasses.dataclass(frozen=True, slots=True)
class ReserveSummary:
    """The reserve of one machine type, in numbers."""

    size: str
    platform: str
    wanted: int
    ready: int
    filling: int
    reason: str
    """Why one of its machines is not ready; "" if nothing is wrong."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReserveMeans:
    """What the reserve is kept with: its rows, the satellites' machines, the cloud, the hosts' turns, and its giver."""

    store: ReserveStore
    registry: Registry
    provider: SpareProvider
    coordination: Coordination
    giver: ReserveGiver


class ReserveKeeper:
    """`run_keeper` must run. `digest` is of what a type's machines are made of. `observe` takes each round's view."""

    def __init__(
        self,
        fleet: Fleet,
        means: ReserveMeans,
        kinds: Sequence[MachineTypeSection],
        digest: Callable[[MachineTypeSection], Awaitable[str]],
        *,
        observe: Callable[[ReserveView], None] = lambda view: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._fleet = fleet
        self._store = means.store
        self._registry = means.registry
        self._provider = means.provider
        self._coordination = means.coordination
        self.given = means.giver
        """What gives its machines to satellites."""
        self.kinds = tuple(kinds)
        self._digest = digest
        self._observe = observe
        self._wall = wall
        self._memory: dict[str, _Memory] = {}
        self._orphans: dict[str, float] = {}
        self._no_hibernation: set[tuple[str, str]] = set()
        self._series = Series(log, "keep the reserve", {})
        self.view = ReserveView()
        self.failures = 0
        """Launches that were refused, and machines that were given up, by this host."""
        self.launches = 0

    def summaries(self) -> list[ReserveSummary]:
        """The reserve of each machine type that has one."""
        found = []
        for kind in self.kinds:
            if kind.reserve:
                name = (kind.size, kind.platform)
                rows = [each for each in self.view.rows if (each.place.size, each.place.platform) == name]
                ready, filling = (self.view.count(*name, state) for state in (SpareState.READY, SpareState.FILLING))
                reason = next((each.reason for each in rows if each.reason), "")
                found.append(ReserveSummary(*name, kind.reserve, ready, filling, reason))
        return found

    async def run_keeper(self) -> None:
        """Keep the reserve for ever. A round that fails is repeated; the reserve stays what it is meanwhile."""
        while True:
            failure: ProviderError | None = None
            moving = True
            try:
                moving = await self._run_round()
            except ProviderError as exc:
                failure = exc
            except StoreError as exc:
                failure = ProviderRetryable(str(exc))
            self._series.told(failure, trio.current_time())
            taken = self.given.taken
            with trio.move_on_after(MOVING_S if moving and failure is None else RESTING_S):
                await taken.wait()
            if taken.is_set():
                self.given.taken = trio.Event()

    async def _run_round(self) -> bool:
        """Take a step for each machine. Returns whether any is on its way. Raises ProviderError, StoreError."""
        wanted = await self._wanted()
        async with self._coordination.acting(TURN) as turn:
            with permitted_by(turn.is_ours):
                rows = await self._store.spares()
                if not rows and not wanted:
                    self.view = ReserveView()
                    return False
                machines = await self._provider.look([each.instance for each in rows if each.instance])
                self._see(rows, machines)
                if not turn.is_ours():
                    raise ProviderRetryable("another host keeps the reserve now")
                await self._take_steps(rows, machines, wanted)
                await self._destroy_orphans(machines)
                await self._add_rows(rows, wanted)
        return len(rows) != len(wanted) or any(self._is_moving(each) for each in rows)

    def _is_moving(self, row: StoredSpare) -> bool:
        """Whether something is to happen to a machine soon. One that waits for its time or for room is not on its way."""
        if row.state is SpareState.FILLING and not row.instance:
            now = self._wall()
            may_launch = now >= row.again_us / 1e6 and self._fleet.spares_room(len(self.view.awake) + 1)
            return may_launch or now < self._memory[row.spare].launch_at
        return row.state is not SpareState.READY

    async def _wanted(self) -> dict[ReservePlace, tuple[MachineTypeSection, Wanted]]:
        found: dict[ReservePlace, tuple[MachineTypeSection, Wanted]] = {}
        for kind in self.kinds:
            if kind.reserve:
                wanted = Wanted(await self._digest(kind), kind.reserve_life_s, kind.min_awake_s)
                for number in range(kind.reserve):
                    found[ReservePlace(kind.size, kind.platform, number)] = (kind, wanted)
        return found

    def _see(self, rows: Sequence[StoredSpare], machines: Sequence[SpareMachine]) -> None:
        """Remember which machines are missing, and show the reserve to people."""
        now = self._wall()
        self._memory = {each.spare: self._memory.get(each.spare, _Memory()) for each in rows}
        shown = {each.spare for each in machines} | {each.instance for each in machines}
        for row in rows:
            memory = self._memory[row.spare]
            if row.spare in shown or row.instance in shown:
                memory.missing_since = None
            elif memory.missing_since is None:
                memory.missing_since = now
        moving = (*UP, MachineState.STOPPING)
        awake = frozenset(each.spare for each in machines if each.state in moving)
        for spare, memory in self._memory.items():
            memory.up_since = None if spare not in awake else now if memory.up_since is None else memory.up_since
        self.view = ReserveView(tuple(rows), awake)
        self._observe(self.view)

    async def _take_steps(
        self,
        rows: Sequence[StoredSpare],
        machines: Sequence[SpareMachine],
        wanted: Mapping[ReservePlace, tuple[MachineTypeSection, Wanted]],
    ) -> None:
        generations: dict[SatelliteKey, int] = {}
        if any(each.taker is not None for each in rows):
            generations = {each.key: each.generation for each in await self._registry.satellites()}
        settled = frozenset(each.key for each in self._fleet.satellites if each.state is SatelliteState.OPERATIONAL)
        may_replace = not any(each.state is SpareState.DOOMED for each in rows)
        for row in rows:
            kind, want = wanted.get(row.place, (None, None))
            seen = chosen(row, [each for each in machines if row.spare == each.spare or row.instance == each.instance])
            memory = self._memory[row.spare]
            now = self._wall()
            facts = Facts(
                now=now,
                is_warm=kind is None or await self._is_warm(row, kind, seen),
                up_s=0.0 if memory.up_since is None else now - memory.up_since,
                missing_s=0.0 if memory.missing_since is None else now - memory.missing_since,
                may_replace=may_replace,
                generations=generations,
                settled=settled,
            )
            verdict = decide(row, seen, want, facts)
            doomed = verdict.row is not None and verdict.row.state is SpareState.DOOMED
            may_replace = may_replace and not doomed
            if verdict.step is not ReserveStep.NOTHING:
                with contained(Owner("reserve machine", row.spare)):
                    await self._carry_out(row, seen, kind, want, verdict)
            elif row.state is SpareState.TAKEN:
                with contained(Owner("reserve machine", row.spare)):
                    await self._give_up_silent(row)

    async def _is_warm(self, row: StoredSpare, kind: MachineTypeSection, seen: SpareMachine | None) -> bool:
        """Whether a machine that runs answers at its port. One that has no certificate yet cannot: then nobody knows."""
        if row.state is not SpareState.FILLING or seen is None or seen.state is not MachineState.RUNNING:
            return True
        if kind.has_issued_tls:
            return True
        return seen.address is not None and await _answers(seen.address)

    async def _carry_out(
        self,
        row: StoredSpare,
        seen: SpareMachine | None,
        kind: MachineTypeSection | None,
        want: Wanted | None,
        verdict: Verdict,
    ) -> None:
        """Take one step. A provider's failure concerns this machine alone, and the next round goes on."""
        failure: ProviderError | None = None
        try:
            match verdict.step:
                case ReserveStep.NOTHING:
                    pass
                case ReserveStep.LAUNCH:
                    if kind is not None:
                        await self._launch(row, kind)
                case ReserveStep.LAY_DOWN:
                    if kind is not None and seen is not None:
                        await self._lay_down(row, kind, seen)
                case ReserveStep.DESTROY:
                    if seen is not None:
                        await self._provider.destroy(seen)
                case ReserveStep.DESTROY_TAKEN:
                    if seen is not None and row.taker is not None:
                        await self._destroy_taken(seen, row.taker.key)
                case ReserveStep.RELEASE:
                    if seen is not None:
                        await self._provider.release(seen)
                    await self._store.remove(row)
                case ReserveStep.STORE:
                    if verdict.row is not None:
                        await self._put(row, verdict.row, verdict.reason)
                case ReserveStep.FORGET:
                    self._provider.forget(row.spare)
                    await self._store.remove(row)
                case ReserveStep.RENEW:
                    self._provider.forget(row.spare)
                    if await self._store.remove(row) and want is not None:
                        await self._store.put(successor(row, uuid.uuid4().hex, self._wall(), want.digest))
                case _:
                    assert_never(verdict.step)
        except ProviderError as exc:
            failure = exc
        memory = self._memory[row.spare]
        if memory.series is None:
            memory.series = Series(log, "keep a machine of the reserve", _fields(row))
        memory.series.told(failure, trio.current_time())

    async def _put(self, before: StoredSpare, row: StoredSpare, reason: str) -> None:
        if await self._store.put(row):
            self.failures += row.failures > before.failures
            if row.state is not before.state:
                fields = {**_fields(row), "before": before.state.value, "after": row.state.value, "reason": reason}
                level = logging.WARNING if row.failures > before.failures else logging.INFO
                log.log(level, "reserve", extra={"fields": fields})

    # -- filling -------------------------------------------------------------------------------------------------------

    async def _add_rows(
        self, rows: Sequence[StoredSpare], wanted: Mapping[ReservePlace, tuple[MachineTypeSection, Wanted]]
    ) -> None:
        taken = {each.place for each in rows}
        for place, (_, want) in wanted.items():
            if place not in taken:
                now_us = int(self._wall() * 1e6)
                # If its place has a row that cannot be read, nothing is stored: that row's machine is not known.
                await self._store.put(StoredSpare(place, uuid.uuid4().hex, 1, SpareState.FILLING, want.digest, now_us))

    async def _launch(self, row: StoredSpare, kind: MachineTypeSection) -> None:
        memory, now = self._memory[row.spare], self._wall()
        unseen = {
            each.spare for each in self.view.rows if not each.instance and now < self._memory[each.spare].launch_at
        }
        up = len(self.view.awake | unseen)
        if now < memory.launch_at or up >= AT_ONCE or not self._fleet.spares_room(up + 1):
            return
        memory.launch_at = now + UNANSWERED_S
        try:
            await self._provider.launch(kind, row.spare)
        except ProviderError as exc:
            if isinstance(exc, ProviderRetryable):
                raise
            memory.launch_at = float("-inf")
            # With a spent token no launch can ever work again: the place needs another id.
            lose = failed if isinstance(exc, LaunchTokenSpent) else refused
            await self._put(row, lose(row, str(exc), now), str(exc))
            log.warning("the reserve is not filled", extra={"fields": {**_fields(row), "error": str(exc)}})
            return
        memory.launch_at = now + LAUNCH_AGAIN_S
        self.launches += 1
        log.info("launched for the reserve", extra={"fields": _fields(row)})

    async def _lay_down(self, row: StoredSpare, kind: MachineTypeSection, seen: SpareMachine) -> None:
        memory, now = self._memory[row.spare], self._wall()
        if now < memory.lay_down_at:
            return
        memory.lay_down_at = now + TOO_EARLY_S
        name = (kind.size, kind.platform)
        wanted = SleepMode(kind.sleep_mode)
        mode = sleep_mode_of(wanted, seen, refused=name in self._no_hibernation)
        if mode is not wanted:
            self._note_stopped(row, "the type cannot hibernate")
        try:
            await self._provider.lay_down(seen, mode)
        except SleepTooEarly:
            return  # it is tried again
        except SleepModeRefused as exc:
            memory.lay_down_at = now
            self._note_stopped(row, str(exc))

    def _note_stopped(self, row: StoredSpare, reason: str) -> None:
        """Say once of a machine type that its machines are stopped instead of hibernated."""
        name = (row.place.size, row.place.platform)
        if name not in self._no_hibernation:
            self._no_hibernation.add(name)
            fields = {**_fields(row), "error": reason}
            log.warning("the reserve's machines are stopped, since they do not hibernate", extra={"fields": fields})

    # -- what is not wanted any more -----------------------------------------------------------------------------------

    async def _destroy_taken(self, seen: SpareMachine, key: SatelliteKey) -> None:
        """Destroy a machine that was taken, in the satellite's turn: nobody gives it away meanwhile."""
        async with self._coordination.acting(key) as turn:
            exists = any(each.key == key for each in await self._registry.satellites())
            found = [each for each in await self._provider.look((seen.instance,)) if each.instance == seen.instance]
            if exists and any(each.satellite for each in found):
                return
            with permitted_by(turn.is_ours):
                await self._provider.destroy(seen)

    async def _give_up_silent(self, row: StoredSpare) -> None:
        """If the satellite that has taken it is not operational in time, destroy it: its clients get another machine."""
        taker = row.taker
        if taker is None or self._wall() - taker.at_us / 1e6 < GIVE_UP_S:
            return
        satellite = self._fleet.find(taker.key)
        if satellite is None or satellite.state not in WAKING or satellite.leases or not satellite.waiting:
            return
        reason = f"{taker.key} was not operational with it in {GIVE_UP_S:g} s"
        if not await self._store.put(row.changed(SpareState.DOOMED, reason)):
            return
        self.failures += 1
        self.given.distrust(taker.key)
        log.warning("a machine of the reserve did not come up", extra={"fields": {**_fields(row), "error": reason}})
        with contextlib.suppress(ProviderError):  # another host uses it, or the next round goes on
            await satellite.calls.discard()

    async def _destroy_orphans(self, machines: Sequence[SpareMachine]) -> None:
        """Destroy machines that have the reserve's tag and no row: of a type or store that is gone, or launched twice."""
        ids, now = await self._store.ids(), self._wall()
        chosen_ones = {each.instance for each in await self._store.spares()}
        orphans = {
            each.instance: each
            for each in machines
            if each.state is not MachineState.TERMINATED
            and each.instance not in chosen_ones
            and (each.spare not in ids or self._has_other(each, machines, chosen_ones))
        }
        self._orphans = {name: self._orphans.get(name, now) for name in orphans}
        for name, machine in orphans.items():
            if now - self._orphans[name] < ORPHAN_S:
                continue
            with contained(Owner("reserve machine", name)):
                if machine.satellite:
                    await self._provider.release(machine)
                else:
                    fields = {"machine": name, "spare": machine.spare}
                    log.warning("a machine of the reserve that no row knows is destroyed", extra={"fields": fields})
                    await self._provider.destroy(machine)

    def _has_other(self, machine: SpareMachine, machines: Sequence[SpareMachine], known: set[str]) -> bool:
        """Whether another machine with its id is the one of the row."""
        return any(each.spare == machine.spare and each.instance in known for each in machines)


def _fields(row: StoredSpare) -> dict[str, object]:
    place = reserve_place(row.place.size, row.place.platform, row.place.number)
    return {"place": place, "spare": row.spare, "machine": row.instance}


async def _answers(address: Address) -> bool:
    with trio.move_on_after(ATTEMPT_S):
        try:
            stream = await trio.open_tcp_stream(address.host, address.port)
        except OSError:
            return False
        await stream.aclose()
        return True
    return False
