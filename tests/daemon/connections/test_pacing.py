"""Costly steps of many tasks are spread over turns: none is long, none waits for ever, and a task that leaves delays none.

The clock that measures a turn is the test's own, and steps say what they cost; so nothing here depends on the machine.
"""

import collections
from collections.abc import Callable

import pytest
import trio

from bentpipe.daemon.connections import pacing
from bentpipe.daemon.connections.pacing import TURN_BUDGET_S, take_turn

STEP_S = 0.001


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


class TurnLog(trio.abc.Instrument):
    """What each turn cost by the clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_s = clock.now_s
        self.longest_s = 0.0
        self.turns = 0

    def after_io_wait(self, timeout: float) -> None:
        self._began_s = self._clock.now_s
        self.turns += 1

    def before_io_wait(self, timeout: float) -> None:
        self.longest_s = max(self.longest_s, self._clock.now_s - self._began_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pacing, "time", made)
    return made


async def test_a_thousand_steps_at_once_are_many_short_turns(clock: Clock) -> None:
    turns = TurnLog(clock)
    trio.lowlevel.add_instrument(turns)
    done = collections.Counter[int]()

    async def work(number: int) -> None:
        for _ in range(3):
            await take_turn()
            clock.now_s += STEP_S
            done[number] += 1

    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(work, number)
    trio.lowlevel.remove_instrument(turns)
    assert done == {number: 3 for number in range(1000)}
    assert turns.longest_s <= TURN_BUDGET_S + 2 * STEP_S
    assert turns.turns >= 3000 * STEP_S / turns.longest_s


async def test_a_step_alone_does_not_wait(clock: Clock) -> None:
    turns = TurnLog(clock)
    trio.lowlevel.add_instrument(turns)
    for _ in range(5):
        await take_turn()
        clock.now_s += STEP_S
    trio.lowlevel.remove_instrument(turns)
    assert turns.turns == 0


async def test_some_go_on_however_busy_others_are(clock: Clock) -> None:
    """Tasks that ask nobody use up every turn."""
    done = 0

    async def work() -> None:
        nonlocal done
        await take_turn()
        clock.now_s += STEP_S
        done += 1

    async def hog() -> None:
        while True:
            clock.now_s += 2 * TURN_BUDGET_S
            await trio.lowlevel.checkpoint()

    with trio.fail_after(30):
        async with trio.open_nursery() as hogs:
            hogs.start_soon(hog)
            await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(work)
            hogs.cancel_scope.cancel()
    assert done == 50


async def test_who_is_cancelled_while_it_waits_holds_up_nobody(clock: Clock) -> None:
    done: list[int] = []

    async def work(number: int) -> None:
        await take_turn()
        clock.now_s += TURN_BUDGET_S
        done.append(number)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as leaving:
                for number in range(20):
                    leaving.start_soon(work, number)
                await trio.lowlevel.checkpoint()
                scope.cancel()
        before = len(done)
        for number in range(100, 120):
            nursery.start_soon(work, number)
    assert before < 20
    assert sorted(done[before:]) == list(range(100, 120))


async def test_who_may_be_a_caller_goes_before_those_who_are_none(clock: Clock) -> None:
    """Strangers who keep the daemon busy with health checks hold up no newcomer: before, it waited behind all of them."""
    served = 0
    waited: list[int] = []

    async def ask_for_health() -> None:
        nonlocal served
        while len(waited) < 10:
            await take_turn(last=True)
            clock.now_s += 5 * STEP_S
            served += 1

    async with trio.open_nursery() as nursery:
        for _ in range(1_000):
            nursery.start_soon(ask_for_health)
        await trio.lowlevel.checkpoint()
        turns = TurnLog(clock)
        trio.lowlevel.add_instrument(turns)
        for _ in range(10):
            before = served
            await take_turn()
            waited.append(served - before)
            await trio.lowlevel.checkpoint()
        trio.lowlevel.remove_instrument(turns)
    # The rest of the turn in which it came, and the next, in which Trio runs it in any order; each with the one step that is
    # owed to the others.
    assert max(waited) <= 2 * (TURN_BUDGET_S / (5 * STEP_S) + 1)
    assert turns.longest_s <= TURN_BUDGET_S + 2 * 5 * STEP_S


async def test_those_in_the_last_line_go_on_nevertheless(clock: Clock) -> None:
    served = 0

    async def call() -> None:
        while served < 20:
            await take_turn()
            clock.now_s += TURN_BUDGET_S

    async def ask_for_health() -> None:
        nonlocal served
        await take_turn(last=True)
        clock.now_s += STEP_S
        served += 1

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(call)
            for _ in range(20):
                nursery.start_soon(ask_for_health)


async def test_the_thread_is_woken_once_a_turn_however_many_wait(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    run_sync_soon = trio.lowlevel.TrioToken.run_sync_soon

    def counted(token: trio.lowlevel.TrioToken, sync_fn: Callable[[], object], *, idempotent: bool = False) -> None:
        nonlocal calls
        calls += 1
        run_sync_soon(token, sync_fn, idempotent=idempotent)

    monkeypatch.setattr(trio.lowlevel.TrioToken, "run_sync_soon", counted)
    turns = TurnLog(clock)
    trio.lowlevel.add_instrument(turns)

    async def work() -> None:
        await take_turn()
        clock.now_s += STEP_S

    async with trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(work)
    assert 0 < calls <= turns.turns + 1
