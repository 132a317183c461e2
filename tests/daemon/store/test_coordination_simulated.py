"""Coordination under everything at once: hosts with clocks of their own that are cut off, left without an answer, paused
and killed while clients come and go and each host tries to put the machine to sleep. Time is simulated.

Laws: a stop is never on its way while a host that let somebody in is registered; never do two hosts believe that it is
their turn; and when all is well again everything that was begun ends, and the machine can be put to sleep.
"""

import os
import random
from collections.abc import Callable

import hypothesis.strategies as st
import trio
from hypothesis import given, settings
from memory_rows import MemoryRows
from store_contract import A
from trio.testing import MockClock

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.store.coordination import InUse
from bentpipe.daemon.store.shared import SharedCoordination
from bentpipe.daemon.store.turn import SharedTurn

HOSTS = 3
LEASE_S = 8.0
EXPIRY_S = 12.0
CALL_LONGEST_S = 3.0
"""Of a stop, from when it is sent to its effect: within what is left of the lease by the slowest clock of all."""
END_S = 1000.0


class Wire:
    """One host's way to the rows."""

    def __init__(self, rows: MemoryRows, chance: random.Random) -> None:
        self._rows, self._chance = rows, chance
        self.cut = self.deaf = False
        self.running = trio.Event()
        self.running.set()

    def __getattr__(self, name: str) -> Callable:
        step = getattr(self._rows, name)

        async def call(*arguments: object, **named: object) -> object:
            await self._travel()
            if self.cut:
                raise StoreError("cut off")
            result = await step(*arguments, **named)
            await self._travel()
            if self.cut or self.deaf:
                raise StoreError("no answer")
            return result

        return call

    async def _travel(self) -> None:
        await trio.sleep(self._chance.choice([0.001, 0.01, 0.2, 1.0]))
        await self.running.wait()


class World:
    """The machine that all share, and what must be true of it."""

    def __init__(self, nursery: trio.Nursery, chance: random.Random) -> None:
        self.nursery, self.chance = nursery, chance
        self.rows = MemoryRows()
        self.hosts: list[Host] = []
        self.stops = self.on_their_way = 0

    def check_turns(self) -> None:
        ours = [host.name for host in self.hosts if host.has_turn()]
        assert len(ours) <= 1, f"{ours} have the turn"

    def check_unused(self, stopper: "Host") -> None:
        users = [host.name for host in self.hosts if host.leases and host.coordination.is_registered(A)]
        assert not users, f"{stopper.name} stops it under {users}"


class Host:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.wire = Wire(world.rows, world.chance)
        self.rate = world.chance.choice([0.9, 1.0, 1.1])
        self.offset = world.chance.uniform(0, 1e6)
        self.coordination = SharedCoordination(
            self.wire, name, lease_s=LEASE_S, host_expiry_s=EXPIRY_S, clock=self.clock
        )
        self.turns: list[SharedTurn] = []
        self.entering = self.leases = 0

    def clock(self) -> float:
        return self.offset + self.rate * trio.current_time()

    def has_turn(self) -> bool:
        return any(turn.is_ours() for turn in self.turns)

    def is_used(self) -> bool:
        return bool(self.entering or self.leases)

    async def run(self) -> None:
        await self.coordination.run()

    async def use(self, hold_s: float) -> None:
        if not self.coordination.is_entered(A):
            self.entering += 1
            try:
                await self.coordination.enter(A, self._look)
            finally:
                self.entering -= 1
        self.leases += 1
        try:
            assert not self.coordination.is_registered(A) or not self.world.on_their_way, "let in under a stop"
            await trio.sleep(hold_s)
        finally:
            self.leases -= 1
            if not self.is_used() and self.world.chance.random() < 0.5:
                self.coordination.leave_nowait(A)

    async def put_to_sleep(self) -> None:
        if self.is_used():
            return
        try:
            async with self.coordination.acting(A) as turn:
                self.turns.append(turn)
                await turn.close(self.is_used)
                if not self.is_used() and turn.is_ours():
                    self.world.check_turns()
                    self.world.check_unused(self)
                    self.world.stops += 1
                    self.world.on_their_way += 1
                    await trio.sleep(self.world.chance.uniform(0, CALL_LONGEST_S))
                    self.world.check_unused(self)
                    self.world.on_their_way -= 1
        except (InUse, StoreError):
            pass

    async def start(self) -> None:
        try:
            async with self.coordination.acting(A) as turn:
                self.turns.append(turn)
                if turn.is_ours():
                    self.world.check_turns()
        except StoreError:
            pass

    async def _look(self) -> None:
        await trio.sleep(0.01)


OPERATIONS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.05, 1.0, 5.0, 15.0])),
    st.tuples(st.just("use"), st.integers(0, HOSTS - 1), st.sampled_from([0.1, 3.0, 30.0])),
    st.tuples(st.sampled_from(["sleep", "sleep", "start"]), st.integers(0, HOSTS - 1)),
    st.tuples(st.sampled_from(["cut", "deafen", "heal", "pause", "resume", "kill"]), st.integers(0, HOSTS - 1)),
)


async def play(operations: list[tuple], seed: int) -> int:
    chance = random.Random(seed)
    with trio.fail_after(END_S + 15 * len(operations)):
        async with trio.open_nursery() as life:
            async with trio.open_nursery() as nursery:
                world = World(nursery, chance)
                world.hosts = [Host(world, f"h{number}") for number in range(HOSTS)]
                for host in world.hosts:
                    life.start_soon(host.run)
                for name, *arguments in operations:
                    if name == "wait":
                        await trio.sleep(arguments[0])
                        continue
                    host = world.hosts[arguments[0]]
                    match name:
                        case "use":
                            nursery.start_soon(host.use, arguments[1])
                        case "sleep":
                            nursery.start_soon(host.put_to_sleep)
                        case "start":
                            nursery.start_soon(host.start)
                        case "cut":
                            host.wire.cut = True
                        case "deafen":
                            host.wire.deaf = True
                        case "heal":
                            host.wire.cut = host.wire.deaf = False
                        case "pause":
                            host.wire.running = trio.Event()
                        case "resume":
                            host.wire.running.set()
                        case "kill":
                            # Its clients die with it; what it had in the rows stays there, and a new one takes its place.
                            host.wire.cut = True
                            host.wire.running.set()
                            world.hosts[arguments[0]] = Host(world, host.name + "'")
                            life.start_soon(world.hosts[arguments[0]].run)
                for host in world.hosts:
                    host.wire.cut = host.wire.deaf = False
                    host.wire.running.set()
            # Everything that was begun has ended.
            for host in world.hosts:
                host.coordination.leave_nowait(A)
            before = world.stops
            while world.stops == before:
                await trio.sleep(1)
                await world.hosts[0].put_to_sleep()
            life.cancel_scope.cancel()
    return before


@settings(max_examples=int(os.environ.get("BENTPIPE_EXAMPLES", "150")), deadline=None)
@given(st.lists(OPERATIONS, max_size=40), st.integers(0, 1 << 30))
def test_no_stop_under_anybody_and_no_two_turns(operations: list[tuple], seed: int) -> None:
    trio.run(play, operations, seed, clock=MockClock(autojump_threshold=0))


def test_the_simulation_does_put_it_to_sleep() -> None:
    """Else its laws would say nothing."""
    operations = [("use", 0, 3.0), ("wait", 1.0), ("sleep", 1), ("wait", 15.0), ("sleep", 0), ("wait", 5.0)]
    assert trio.run(play, operations, 1, clock=MockClock(autojump_threshold=0)) >= 1
