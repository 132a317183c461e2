"""A crowd is let in a few a turn, in order, and nobody who comes later waits behind it."""

import trio
import trio.testing

from bentpipe.daemon.fleet.batched_release import WAKES_A_TURN, BatchedRelease

CROWD = 5 * WAKES_A_TURN + 3


class Turns(trio.abc.Instrument):
    def __init__(self) -> None:
        self.number = 0

    def before_io_wait(self, timeout: float) -> None:
        self.number += 1


async def test_a_crowd_is_let_in_a_few_a_turn_and_in_order() -> None:
    batches, turns = BatchedRelease(), Turns()
    events = [batches.event() for _ in range(CROWD)]
    release: list[tuple[int, int]] = []
    trio.lowlevel.add_instrument(turns)

    async def wait(number: int) -> None:
        await events[number].wait()
        release.append((number, turns.number))

    async with trio.open_nursery() as nursery:
        for number in range(CROWD):
            nursery.start_soon(wait, number)
        await trio.testing.wait_all_tasks_blocked()
        for event in events:
            event.set()
        assert all(event.is_set() for event in events), "what was decided stands at once"
    trio.lowlevel.remove_instrument(turns)
    by_turn: dict[int, list[int]] = {}
    for number, turn in release:
        by_turn.setdefault(turn, []).append(number)
    # Within a turn Trio's order is random on purpose.
    assert [sorted(numbers) for numbers in by_turn.values()] == [
        list(range(at, min(at + WAKES_A_TURN, CROWD))) for at in range(0, CROWD, WAKES_A_TURN)
    ]


async def test_who_is_let_in_before_waiting_does_not_wait_behind_the_crowd() -> None:
    batches = BatchedRelease()
    crowd = [batches.event() for _ in range(CROWD)]
    async with trio.open_nursery() as nursery:
        for event in crowd:
            nursery.start_soon(event.wait)
        await trio.testing.wait_all_tasks_blocked()
        for event in crowd:
            event.set()
        late = batches.event()
        late.set()
        await late.wait()
        assert nursery.child_tasks, "the crowd is still on its way"


async def test_a_waiter_that_gives_up_in_the_queue_is_passed_over() -> None:
    batches = BatchedRelease()
    events = [batches.event() for _ in range(CROWD)]
    done = 0

    async def wait(event: object, scope: trio.CancelScope) -> None:
        nonlocal done
        with scope:
            await event.wait()  # type: ignore[attr-defined]
            done += 1

    scopes = [trio.CancelScope() for _ in events]
    async with trio.open_nursery() as nursery:
        for event, scope in zip(events, scopes, strict=True):
            nursery.start_soon(wait, event, scope)
        await trio.testing.wait_all_tasks_blocked()
        for event in events:
            event.set()
            event.set()
        for scope in scopes[-10:]:
            scope.cancel()
    assert done == CROWD - 10


async def test_something_else_than_a_wait_is_called_in_its_turn() -> None:
    batches, called = BatchedRelease(), list[int]()
    events = [batches.event() for _ in range(CROWD)]
    for number, event in enumerate(events):
        event.when_set(lambda number=number: called.append(number))  # type: ignore[misc]
    for event in events:
        event.set()
    assert called == []
    await trio.testing.wait_all_tasks_blocked()
    assert called == list(range(CROWD))
    events[0].when_set(lambda: called.append(-1))
    assert called[-1] == -1, "at once, since it is set"
