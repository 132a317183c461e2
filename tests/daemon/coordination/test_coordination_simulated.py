"""Coordination under everything at once: hosts with clocks of their own that are cut off, left without an answer, paused
and killed while clients come and go and each host tries to put the machine to sleep. Time is simulated.

Laws: a stop is never on its way while a host that let somebody in is registered; never do two hosts believe that it is
their turn; and when all is well again everything that was begun ends, and the machine can be put to sleep.
"""

import collections
import contextlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given, settings
from trio.testing import MockClock

from beds.contracts.ledger import A
from beds.stores.memory_rows import MemoryRows
from bentpipe.daemon.coordination.contract import InUse
from bentpipe.daemon.coordination.shared import SharedCoordination
from bentpipe.daemon.coordination.turn import SharedTurn
from bentpipe.daemon.errors import StoreError

HOSTS = 2
LEASE_S = 8.0
EXPIRY_S = 12.0
CALL_LONGEST_S = 3.0
"""Of a stop, from when it is sent to its effect: within what is left of the lease by the slowest clock of all."""
END_S = 1000.0


class Wire:
    """One host's way to the rows, and what it suffers."""

    def __init__(self, rows: MemoryRows, life: trio.Nursery, chance: random.Random) -> None:
        self._rows, self._liveness, self._chance = rows, life, chance
        self._suffers: collections.Counter[str] = collections.Counter()
        self._over = trio.Event()
        self._well_since = float("-inf")
        self.has_failed = False
        self._steps_to_pause: int | None = None
        self._pause_s = 0.0

    def is_well(self) -> bool:
        """Whether it has been for so long that nothing is left of what it suffered."""
        return not self._suffers.total() and trio.current_time() - self._well_since > 2 * EXPIRY_S

    def pause_after(self, steps: int, lasting_s: float) -> None:
        """Pause at the `steps`th way from now, there or back."""
        self._steps_to_pause, self._pause_s = steps, lasting_s

    async def suffer(self, what: str, lasting_s: float) -> None:
        self._suffers[what] += 1
        await trio.sleep(lasting_s)
        self._suffers[what] -= 1
        self._well_since = trio.current_time()
        self._over.set()
        self._over = trio.Event()

    async def _end_pause(self) -> None:
        self._suffers["pause"] -= 1
        await self.suffer("pause", self._pause_s)

    def kill(self) -> None:
        self._suffers["cut"] += 1

    def __getattr__(self, name: str) -> Callable[..., Any]:
        step = getattr(self._rows, name)

        async def call(*arguments: object, **named: object) -> object:
            await self._travel()
            if self._suffers["cut"]:
                self.has_failed = True
                raise StoreError("cut off")
            result = await step(*arguments, **named)
            await self._travel()
            if self._suffers["cut"] or self._suffers["deafen"]:
                self.has_failed = True
                raise StoreError("no answer")
            return result

        return call

    async def _travel(self) -> None:
        await trio.sleep(self._chance.choice([0.001, 0.01, 0.2, 1.0]))
        if self._steps_to_pause is not None:
            self._steps_to_pause -= 1
            if self._steps_to_pause < 0:
                self._steps_to_pause = None
                self._suffers["pause"] += 1
                self._liveness.start_soon(self._end_pause)
        while self._suffers["pause"]:
            await self._over.wait()


class World:
    """The machine that all share, and what must be true of it."""

    def __init__(self, nursery: trio.Nursery, life: trio.Nursery, chance: random.Random) -> None:
        self.nursery, self.life, self.chance = nursery, life, chance
        self.rows = MemoryRows()
        self.stops = self.on_their_way = self.stops_before_the_end = 0
        self.hosts = [self._begin(f"h{number}") for number in range(HOSTS)]

    def _begin(self, name: str) -> "Host":
        host = Host(self, name)
        self.life.start_soon(host.run)
        return host

    def replace(self, number: int) -> None:
        """Kill a host. Its clients die with it; what it had in the rows stays, and a new one takes its place."""
        self.hosts[number].wire.kill()
        self.hosts[number] = self._begin(self.hosts[number].name + "'")

    def check_turns(self) -> None:
        ours = [host.name for host in self.hosts if host.has_turn()]
        assert len(ours) <= 1, f"{ours} have the turn"

    def check_unused(self, stopper: "Host") -> None:
        users = [
            host.name
            for host in self.hosts
            if host.leases and (host.coordination.is_registered(A) or host.wire.is_well())
        ]
        assert not users, f"{stopper.name} stops it under {users}"


class Host:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.wire = Wire(world.rows, world.life, world.chance)
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
            if self.coordination.is_registered(A):
                assert not self.world.on_their_way, "let in under a stop"
            else:
                assert self.wire.has_failed, "let in though nobody knows"
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
                assert isinstance(turn, SharedTurn)
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
                assert isinstance(turn, SharedTurn)
                self.turns.append(turn)
                if turn.is_ours():
                    self.world.check_turns()
        except StoreError:
            pass

    async def _look(self) -> None:
        await trio.sleep(0.01)


OPERATIONS = st.tuples(
    st.sampled_from(["use", "use", "sleep", "sleep", "sleep", "start", "pause", "pause", "cut", "deafen", "kill"]),
    st.integers(0, HOSTS - 1),
    st.sampled_from([0.5, 4.0, 20.0]),
    st.sampled_from([0.0, 0.1, 1.0, 5.0, 15.0]),
)
"""What happens, to which host, for how long, and how long until the next thing does."""


@contextlib.asynccontextmanager
async def world_of(seed: int, lasting_s: float) -> AsyncIterator[World]:
    """A world; at its end all that was begun in it must end, and the machine must fall asleep once more."""
    with trio.fail_after(END_S + lasting_s):
        async with trio.open_nursery() as life:
            async with trio.open_nursery() as nursery:
                world = World(nursery, life, random.Random(seed))
                yield world
            for host in world.hosts:
                host.coordination.leave_nowait(A)
            world.stops_before_the_end = world.stops
            while world.stops == world.stops_before_the_end:
                await trio.sleep(1)
                await world.hosts[0].put_to_sleep()
            life.cancel_scope.cancel()


async def play(operations: list[tuple[str, int, float, float]], seed: int) -> int:
    async with world_of(seed, 20 * len(operations)) as world:
        begin = world.nursery.start_soon
        for name, number, lasting_s, gap_s in operations:
            host = world.hosts[number]
            match name:
                case "use":
                    begin(host.use, lasting_s)
                case "sleep":
                    begin(host.put_to_sleep)
                case "start":
                    begin(host.start)
                case "cut" | "deafen" | "pause":
                    begin(host.wire.suffer, name, lasting_s)
                case "kill":
                    world.replace(number)
            await trio.sleep(gap_s)
    return world.stops_before_the_end


@settings(max_examples=int(os.environ.get("BENTPIPE_EXAMPLES", "80")), deadline=None)
@given(st.lists(OPERATIONS, max_size=40), st.integers(0, 1 << 30))
def test_no_stop_under_anybody_and_no_two_turns(operations: list[tuple[str, int, float, float]], seed: int) -> None:
    trio.run(play, operations, seed, clock=MockClock(autojump_threshold=0))


def test_the_simulation_does_put_it_to_sleep() -> None:
    """Else its laws would say nothing."""
    operations = [("use", 0, 4.0, 5.0), ("sleep", 1, 0.0, 15.0), ("sleep", 0, 0.0, 5.0)]
    assert trio.run(play, operations, 1, clock=MockClock(autojump_threshold=0)) >= 1


async def stopper_is_paused(steps: int, seed: int) -> None:
    """Somebody else takes over while the stopper is away, and lets a client in."""
    async with world_of(seed, 200) as world:
        stopper, other = world.hosts
        stopper.wire.pause_after(steps, 3 * LEASE_S)
        world.nursery.start_soon(stopper.put_to_sleep)
        await trio.sleep(1)
        world.nursery.start_soon(other.use, 5 * LEASE_S)


async def user_is_paused(steps: int, seed: int) -> None:
    """The others take a host for dead that has a client, and is visited by another when it comes back."""
    async with world_of(seed, 200) as world:
        user, other = world.hosts
        world.nursery.start_soon(user.use, 6 * EXPIRY_S)
        await trio.sleep(EXPIRY_S)
        user.wire.pause_after(steps, 3 * EXPIRY_S)
        for _ in range(6):
            await trio.sleep(EXPIRY_S)
            world.nursery.start_soon(other.put_to_sleep)
            world.nursery.start_soon(user.use, 1.0)


async def somebody_comes(steps: int, seed: int) -> None:
    """To the host that puts the machine to sleep, at any moment of that."""
    async with world_of(seed, 200) as world:
        stopper, other = world.hosts
        world.nursery.start_soon(stopper.use, 1.0)
        await trio.sleep(8)
        world.nursery.start_soon(stopper.put_to_sleep)
        await trio.sleep(steps * 0.1)
        world.nursery.start_soon(stopper.use, 4 * LEASE_S)
        for _ in range(3):
            await trio.sleep(LEASE_S)
            world.nursery.start_soon(other.put_to_sleep)


@pytest.mark.parametrize("story", [stopper_is_paused, user_is_paused, somebody_comes])
@pytest.mark.parametrize("seed", range(3))
def test_at_any_moment(story: Callable[[int, int], Awaitable[None]], seed: int) -> None:
    for steps in range(25):
        trio.run(story, steps, seed, clock=MockClock(autojump_threshold=0))
