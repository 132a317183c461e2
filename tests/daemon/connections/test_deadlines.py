"""Late scopes are ended, a few a turn; a scope that is in time is not, and leaves nothing behind."""

import trio
import trio.testing

from bentpipe.daemon.connections.deadlines import ENDS_A_TURN, Deadlines


class Turns(trio.abc.Instrument):
    def __init__(self) -> None:
        self.number = 0

    def before_io_wait(self, timeout: float) -> None:
        self.number += 1


async def test_each_has_its_time_from_its_own_beginning(autojump_clock: trio.testing.MockClock) -> None:
    deadlines = Deadlines(10)
    ends: list[float] = []

    async def late(begin: float) -> None:
        await trio.sleep(begin)
        with deadlines.scope() as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        ends.append(trio.current_time() - start)

    async def in_time() -> None:
        with deadlines.scope() as scope:
            await trio.sleep(9.5)
        assert not scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        start = trio.current_time()
        nursery.start_soon(deadlines.run_deadlines)
        for begin in (0, 3, 3, 30):
            nursery.start_soon(late, begin)
        nursery.start_soon(in_time)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert ends == [10, 13, 13, 40]


async def test_a_crowd_is_ended_a_few_a_turn(autojump_clock: trio.testing.MockClock) -> None:
    deadlines, turns = Deadlines(10), Turns()
    by_turn: dict[int, int] = {}

    async def late() -> None:
        with deadlines.scope():
            await trio.sleep_forever()
        by_turn[turns.number] = by_turn.get(turns.number, 0) + 1

    trio.lowlevel.add_instrument(turns)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run_deadlines)
        for _ in range(10 * ENDS_A_TURN):
            nursery.start_soon(late)
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(turns)
    assert sum(by_turn.values()) == 10 * ENDS_A_TURN
    assert max(by_turn.values()) <= ENDS_A_TURN
