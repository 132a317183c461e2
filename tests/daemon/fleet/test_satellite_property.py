"""The satellite's real tasks under any story: clients that come, leave and are cancelled at any checkpoint, a provider that
fails in every way, others who interfere, and a clock that jumps.

The provider keeps the contract (`tests/daemon/providers/test_memory.py`); only the port that is probed is made up.
"""

import dataclasses
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import given, settings

from beds.machines.memory_provider import FakeMachine, MemoryProvider, OnHibernate, OnStart
from beds.machines.played_machine import RULES as FEW_WAITERS
from beds.peers.responder_status import status
from bentpipe.config.responder import ResponderSection
from bentpipe.daemon.errors import (
    BentpipeError,
    MachineNotFound,
    ProviderCapacity,
    ProviderError,
    ProviderPermission,
    ProviderRetryable,
    ProviderThrottled,
    SleepTooEarly,
)
from bentpipe.daemon.fleet import satellite as module
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.crowd import Crowd
from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.fleet.machine.rules import CAPACITY_MOST_S
from bentpipe.daemon.fleet.reader import MOST_PAUSE_S, ReadingContext
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import Address, MachineId, MachineState, SatelliteKey, SatelliteState, Transition
from bentpipe.daemon.providers.ec2.traits import TRAITS
from bentpipe.daemon.readings.reading import Reading, ReadingFailed, ReadResult, read_status

KEY = SatelliteKey("acme", "m")
RESPONDER = ResponderSection(port=1)
RULES = dataclasses.replace(FEW_WAITERS, max_waiters=5, launch=True, ends_quiet=True, counts_builds=True)
WALL_S = 1_700_000_000.0
LISTEN_S = 0.5
READ_S = 1.0
KNOWN_AFTER_S = 2 * (RESPONDER.interval_s + READ_S)
"""By then the next reading has been made, and the one after it."""
ERRORS = [
    ProviderRetryable,
    ProviderThrottled,
    ProviderCapacity,
    ProviderPermission,
    MachineNotFound,
    SleepTooEarly,
]


Step = Callable[["World"], object]


class CheckedSatellite(Satellite):
    """Looks at every action as it is carried out. An exception here would only make the satellite begin anew."""

    violations: list[str]

    def _carry_out(self, action: msg.Action, now: float) -> None:
        if isinstance(action, msg.GrantLease) and self.state is not SatelliteState.OPERATIONAL:
            self.violations.append("a lease of a satellite that is not operational")
        super()._carry_out(action, now)


class CheckedProvider(MemoryProvider):
    """Notes what must not happen: what a provider raises is only a failed call to the satellite."""

    satellite: Satellite
    world: "World"

    def __init__(self) -> None:
        super().__init__()
        self.violations: list[str] = []

    async def _call(self, name: str, machine_id: MachineId) -> FakeMachine:
        if self.machines[machine_id].under_way:
            self.violations.append("two calls at once")
        if name in ("hibernate", "stop"):
            known = self.satellite._machine.known
            if self.satellite.leases:
                self.violations.append("sleep under a lease")
            if self.satellite.waiting and not known.is_restarting:
                self.violations.append("sleep under a waiter")
            if known.descent.was_ready and self.world.builds_are_known():
                self.violations.append("sleep under a build")
        return await super()._call(name, machine_id)


@dataclasses.dataclass
class Client:
    scope: trio.CancelScope
    end: str = ""


class Splice:
    """What the engine would do: it ends a connection some time after it was told to, and at once when it is cut."""

    def __init__(self, nursery: trio.Nursery, lease: Lease, deaf: bool) -> None:
        self.lease = lease
        self.moved = 0
        self._nursery = nursery
        self._deaf = deaf

    def moved_bytes(self) -> int:
        return self.moved

    def end(self, *, cut: bool) -> None:
        if cut or not self._deaf:
            self._nursery.start_soon(self._end)

    async def _end(self) -> None:
        await trio.lowlevel.checkpoint()
        self.lease.release()


class World:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.provider = CheckedProvider()
        self.machine = self.provider.add("acme.m", call_s=0.1, pending_s=3.0, stopping_s=4.0)
        self.provider.world = self
        self.running = 0
        self.answers = True
        self.known_since = 0.0
        self.unreachable = False
        self.told: list[Transition] = []
        self.clients: list[Client] = []
        self.splices: list[Splice] = []
        self.at_next_move: list[Step] = []
        self.crowd = Crowd(limit=8)
        CheckedSatellite.violations = self.provider.violations
        self.satellite = self.provider.satellite = CheckedSatellite(
            KEY,
            RULES,
            FleetContext(
                self.provider,
                self.observe,
                reading=ReadingContext(self.read),
                crowd=self.crowd,
                wall=lambda: WALL_S + trio.current_time(),
            ),
            responder=RESPONDER,
        )

    def observe(self, transition: Transition) -> None:
        self.told.append(transition)
        armed, self.at_next_move = self.at_next_move, []
        for step in armed:
            step(self)

    async def read(self, key: SatelliteKey, address: Address) -> Reading:
        await trio.sleep(READ_S)
        if not self.answers:
            raise ReadingFailed(ReadResult.TIMEOUT, "no answer")
        return read_status(
            status(boot_id=self.machine.memory or "none", running=self.running, uptime_ms=1).SerializeToString()
        )

    def builds_are_known(self) -> bool:
        """Whether builds have run for so long that every satellite that is read has told of them since it woke."""
        woken = max((each.at - WALL_S for each in self.told if each.after is SatelliteState.OPERATIONAL), default=0.0)
        return bool(self.running) and trio.current_time() - max(self.known_since, woken) > KNOWN_AFTER_S

    async def client(self, client: Client, patience_s: float, stay_s: float, spliced: bool, deaf: bool) -> None:
        with client.scope, trio.move_on_after(patience_s):
            try:
                async with self.satellite.lease("somebody") as lease:
                    if spliced:
                        splice = Splice(self.nursery, lease, deaf)
                        lease.keep()
                        lease.measure(splice)
                        self.splices.append(splice)
                    else:
                        await trio.sleep(stay_s)
                client.end = "served"
            except BentpipeError as exc:
                client.end = f"refused: {exc}"
        client.end = client.end or "cancelled"

    def check(self) -> None:
        assert self.crowd.held == self.satellite.waiting
        assert self.satellite.leases >= 0
        assert self.machine.under_way <= 1
        assert not self.provider.violations
        for before, after in zip(self.told, self.told[1:], strict=False):
            assert before.after is after.before


def come(count: int, patience_s: float, stay_s: float, spliced: bool, deaf: bool) -> Step:
    def step(world: World) -> None:
        for _ in range(count):
            client = Client(trio.CancelScope())
            world.clients.append(client)
            world.nursery.start_soon(world.client, client, patience_s, stay_s, spliced, deaf)

    return step


def cancel(which: int) -> Step:
    return lambda world: world.clients and world.clients[which % len(world.clients)].scope.cancel()


def use(which: int, moved: int) -> Step:
    def step(world: World) -> None:
        if world.splices:
            world.splices[which % len(world.splices)].moved += moved

    return step


def hang_up(which: int) -> Step:
    def step(world: World) -> None:
        if world.splices:
            world.splices[which % len(world.splices)].lease.release()

    return step


def behave(habit: str, value: object) -> Step:
    return lambda world: setattr(world.machine, habit, value)


def fail_next(error: type[ProviderError]) -> Step:
    return lambda world: world.machine.errors.append(error("the provider's words"))


def others(what: str) -> Step:
    return lambda world: getattr(world.provider, f"others_{what}")(world.machine)


def tell(event: msg.Input) -> Step:
    return lambda world: world.satellite._feed(event)


def build(running: int, answers: bool) -> Step:
    """The responder tells, or does not tell, that so many builds run from now on."""

    def step(world: World) -> None:
        if not (world.running and world.answers):
            world.known_since = trio.current_time()
        world.running, world.answers = running, answers
        if not answers:
            world.known_since = float("inf")
        elif world.known_since == float("inf"):
            world.known_since = trio.current_time() + MOST_PAUSE_S  # readings that fail become rare

    return step


def reach(unreachable: bool) -> Step:
    """The machine answers on its port, or not."""
    return lambda world: setattr(world, "unreachable", unreachable)


def in_the_same_moment(step: Step) -> Step:
    """Done in the very step of the scheduler in which the satellite next changes its state."""
    return lambda world: world.at_next_move.append(step)


PLAIN_STEPS = st.one_of(
    st.builds(
        come,
        st.integers(1, 3),
        st.sampled_from([1.0, float("inf")]),
        st.sampled_from([0.0, 1.0, 150.0]),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(cancel, st.integers(0, 20)),
    st.builds(use, st.integers(0, 20), st.sampled_from([500, 1 << 20])),
    st.builds(hang_up, st.integers(0, 20)),
    st.builds(behave, st.just("on_start"), st.sampled_from(OnStart)),
    st.builds(behave, st.just("on_hibernate"), st.sampled_from(OnHibernate)),
    st.builds(behave, st.just("stop_hangs"), st.booleans()),
    st.builds(behave, st.just("address"), st.sampled_from([Address("192.0.2.1", 1), Address("192.0.2.2", 1)])),
    st.builds(build, st.sampled_from([0, 0, 1, 3]), st.booleans()),
    st.builds(reach, st.booleans()),
    st.builds(fail_next, st.sampled_from(ERRORS)),
    st.builds(others, st.sampled_from(["start", "stop", "stop", "terminate"])),
    st.builds(
        tell,
        st.sampled_from(
            [
                msg.Reset(),
                msg.Unreachable(),
                msg.Suspected(),
                msg.KeepAwake(True),
                msg.KeepAwake(False),
                msg.Evict(),
                msg.Renew(),
            ]
        ),
    ),
)
STEPS = PLAIN_STEPS | st.builds(in_the_same_moment, PLAIN_STEPS)
PAUSES = st.one_of(
    st.integers(0, 12),  # so many checkpoints
    st.sampled_from([0.1, 0.5, 3.0, 5.0, 31.0, 101.0, 700.0]),  # so many seconds, when all is quiet
)


async def pause(clock: trio.testing.MockClock, length: float) -> None:
    if isinstance(length, int):
        for _ in range(length):
            await trio.lowlevel.checkpoint()
        return
    # In small steps, as time passes; but every step is a jump for whatever is due in it.
    until = trio.current_time() + length
    while (now := trio.current_time()) < until:
        await trio.testing.wait_all_tasks_blocked()
        clock.jump(min(until - now, max(0.5, length / 20)))
    await trio.testing.wait_all_tasks_blocked()


async def serve_one_more(clock: trio.testing.MockClock, world: World) -> None:
    """Everything is mended, and nobody says so: whatever the story was, the next client is served by one start at most."""
    machine = world.machine
    machine.errors.clear()
    machine.on_start, machine.on_hibernate, machine.stop_hangs = OnStart.RUN, OnHibernate.KEEP, False
    if machine.state is MachineState.STOPPING and machine.due is None:
        machine.become(MachineState.STOPPED, "cut off by its owner")
    if machine.state is MachineState.PENDING and machine.due is None:
        machine.become(MachineState.STOPPED, "cut off by its owner", machine.fault)
    # By steps of 20 s: over a longer one a wake, its port and its deadline would all be due at once.
    for _ in range(6):
        await pause(clock, (CAPACITY_MOST_S + TRAITS.stuck_stopping_s) / 6)
    starts = machine.starts
    come(1, float("inf"), 1.0, spliced=False, deaf=False)(world)
    await pause(clock, 2.0 * RULES.hold_limit_s)
    assert world.clients[-1].end == "served", world.clients[-1].end
    assert machine.starts <= starts + 1


async def tell_story(
    clock: trio.testing.MockClock, first: MachineState, story: list[tuple[Step, float]], one_more: bool = True
) -> World:
    world: World

    async def listens(address: Address, tell: Callable[[str, bool], None]) -> None:
        await trio.sleep(LISTEN_S)
        while world.unreachable:
            tell("nothing answers", True)
            await trio.sleep(LISTEN_S)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "wait_listening", listens)
        async with trio.open_nursery() as nursery:
            world = World(nursery)
            world.machine.state = first
            await nursery.start(world.satellite.run)
            for step, length in story:
                step(world)
                world.check()
                await pause(clock, length)
                world.check()
            reach(False)(world)
            build(0, answers=True)(world)
            # Clients that stay are served; all who wait must end, whatever the machine does not do.
            world.at_next_move.clear()
            for splice in world.splices:
                splice.lease.release()
            await pause(clock, 4.0 * RULES.hold_limit_s)
            world.check()
            assert all(client.end for client in world.clients), "somebody waits for ever"
            assert not world.satellite.waiting
            for splice in world.splices:
                splice.lease.release()
            assert not world.satellite.leases
            if one_more:
                await serve_one_more(clock, world)
            nursery.cancel_scope.cancel()
    return world


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([MachineState.STOPPED, MachineState.HIBERNATED, MachineState.RUNNING, MachineState.TERMINATED]),
    st.lists(st.tuples(STEPS, PAUSES), max_size=25),
)
def test_any_story(first: MachineState, story: list[tuple[Step, float]]) -> None:
    clock = trio.testing.MockClock()
    trio.run(tell_story, clock, first, story, clock=clock)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(
    st.sampled_from([MachineState.STOPPED, MachineState.HIBERNATED, MachineState.RUNNING, MachineState.TERMINATED]),
    st.lists(st.tuples(STEPS, PAUSES), max_size=60),
)
def test_any_long_story(first: MachineState, story: list[tuple[Step, float]]) -> None:
    clock = trio.testing.MockClock()
    trio.run(tell_story, clock, first, story, clock=clock)


@pytest.mark.parametrize("spliced", [False, True])
def test_a_silent_build_keeps_it_awake_in_any_pause(spliced: bool) -> None:
    clock = trio.testing.MockClock()
    story: list[tuple[Step, float]] = [
        (build(1, answers=True), 0.5),
        (come(1, float("inf"), 1.0, spliced=spliced, deaf=False), 700.0),
        *[(build(2, answers=True), 700.0)] * 3,
        (build(0, answers=True), 700.0),
    ]
    world = trio.run(tell_story, clock, MachineState.STOPPED, story, False, clock=clock)
    assert world.machine.calls == ["start", "hibernate"]


def test_a_story_of_a_whole_day() -> None:
    """The property's own bed does what it should: a wake, a quiet splice, a sleep, and a resume that is proved."""
    clock = trio.testing.MockClock()
    story: list[tuple[Step, float]] = [
        (come(3, float("inf"), 1.0, spliced=True, deaf=True), 5.0),
        (use(0, 1 << 20), 700.0),
        (come(1, float("inf"), 1.0, spliced=False, deaf=False), 20.0),
        (use(0, 0), 700.0),
    ]
    world = trio.run(tell_story, clock, MachineState.STOPPED, story, False, clock=clock)
    assert [client.end for client in world.clients] == ["served"] * 4
    assert world.machine.calls == ["start", "hibernate"] * 2
    assert world.machine.starts == 2
    assert [found.value for found in world.satellite.resumes] == ["cold", "resumed"]
    asleep_again = [transition for transition in world.told if transition.before is SatelliteState.OPERATIONAL]
    assert [transition.facts.resume.value for transition in asleep_again] == ["cold", "resumed"]
