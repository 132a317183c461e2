"""Merged calls, and how the bad ones among them are found; `send` is the region of one's imagination."""

import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from bentpipe.daemon.providers.ec2.batch import BATCH, SPLITTING_CALLS, Batcher, StateChange, split
from bentpipe.daemon.providers.ec2.errors import NOT_PERMITTED, Ec2Failure, FailureKind, PermitOver, failure_of
from bentpipe.daemon.providers.permit import current_permit, permitted_by

OK = StateChange("stopped", "pending")


class Region:
    """Fails calls as EC2 does: as a whole, for the first bad instance, by name or not."""

    def __init__(self, bad: dict[str, FailureKind], *, names: bool) -> None:
        self.bad = bad
        self.names = names
        self.calls: list[list[str]] = []
        self.turns = 0
        self.silent_on = ""
        self.gate = trio.Event()
        self.gate.set()

    async def take_turn(self) -> None:
        await self.gate.wait()
        self.turns += 1

    async def send(self, ids: Sequence[str], turn_taken: bool) -> dict[str, StateChange]:
        if not turn_taken:
            await self.take_turn()
        self.calls.append(list(ids))
        await trio.sleep(0.1)
        for each in ids:
            if each in self.bad:
                raise Ec2Failure("StartInstances", "Bad", each if self.names else "one of them", self.bad[each])
        return dict.fromkeys(set(ids) - {self.silent_on}, OK)


@contextlib.asynccontextmanager
async def batching(region: Region) -> AsyncIterator[Batcher]:
    batcher = Batcher(region.take_turn, region.send)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batcher.run_batches)
        yield batcher
        nursery.cancel_scope.cancel()


async def add_all(batcher: Batcher, ids: Sequence[str]) -> dict[str, StateChange | FailureKind]:
    outcomes: dict[str, StateChange | FailureKind] = {}

    async def add(each: str) -> None:
        try:
            outcomes[each] = await batcher.add(each)
        except Ec2Failure as failure:
            outcomes[each] = failure.kind

    async with trio.open_nursery() as nursery:
        for each in ids:
            nursery.start_soon(add, each)
    return outcomes


def ids_of(count: int) -> list[str]:
    return [f"i-{n:017x}" for n in range(count)]


async def test_what_comes_together_is_one_call(autojump_clock: MockClock) -> None:
    region, ids = Region({}, names=False), ids_of(40)
    async with batching(region) as batcher:
        assert await add_all(batcher, ids + ids) == dict.fromkeys(ids, OK)
    assert [sorted(call) for call in region.calls] == [ids]
    assert region.turns == 1


async def test_more_than_fit_are_more_calls(autojump_clock: MockClock) -> None:
    region, ids = Region({}, names=False), ids_of(2 * BATCH + 1)
    async with batching(region) as batcher:
        await add_all(batcher, ids)
    assert [len(call) for call in region.calls] == [BATCH, BATCH, 1]
    assert region.turns == 3


@pytest.mark.parametrize("names", [False, True])
async def test_a_bad_one_fails_alone(autojump_clock: MockClock, names: bool) -> None:
    ids = ids_of(BATCH)
    region = Region({ids[7]: FailureKind.NOT_FOUND}, names=names)
    async with batching(region) as batcher:
        outcomes = await add_all(batcher, ids)
    assert outcomes.pop(ids[7]) is FailureKind.NOT_FOUND
    assert set(outcomes.values()) == {OK}
    assert len(region.calls) <= (2 if names else SPLITTING_CALLS)
    assert region.turns == len(region.calls)


async def test_what_is_everybodys_fails_everybody_at_once(autojump_clock: MockClock) -> None:
    ids = ids_of(30)
    region = Region({ids[0]: FailureKind.THROTTLED}, names=False)
    async with batching(region) as batcher:
        assert set((await add_all(batcher, ids)).values()) == {FailureKind.THROTTLED}
    assert len(region.calls) == 1


async def test_who_is_left_out_of_the_answer_is_told_so(autojump_clock: MockClock) -> None:
    ids = ids_of(3)
    region = Region({}, names=False)
    region.silent_on = ids[1]
    async with batching(region) as batcher:
        assert await add_all(batcher, ids) == {ids[0]: OK, ids[1]: FailureKind.RETRYABLE, ids[2]: OK}


@pytest.mark.parametrize(
    ("kind", "outcome"), [(FailureKind.CAPACITY, FailureKind.CAPACITY), (FailureKind.NOT_FOUND, FailureKind.RETRYABLE)]
)
async def test_the_search_is_bounded(autojump_clock: MockClock, kind: FailureKind, outcome: FailureKind) -> None:
    ids = ids_of(BATCH)
    region = Region(dict.fromkeys(ids, kind), names=False)
    async with batching(region) as batcher:
        assert await add_all(batcher, ids) == dict.fromkeys(ids, outcome)
    assert len(region.calls) <= 2 * SPLITTING_CALLS + 1


async def test_a_wish_is_taken_back_before_its_call(autojump_clock: MockClock) -> None:
    region, (first, second) = Region({}, names=False), ids_of(2)
    region.gate = trio.Event()
    async with batching(region) as batcher:
        with trio.move_on_after(5):
            await batcher.add(first)
        with trio.move_on_after(5):
            await add_all(batcher, [first, second])
        region.gate.set()
        assert await batcher.add(second) == OK
        assert region.calls == [[second]]
        with trio.move_on_after(0.05):  # after the window, while the call is under way
            await batcher.add(first)
        await trio.sleep(1)
        assert region.calls == [[second], [first]]


async def test_what_is_wanted_no_more_is_not_sent_again(autojump_clock: MockClock) -> None:
    """A call fails because of one instance. Meanwhile the turn for another was lost, and a third is not wanted any more."""
    bad, lost, cancelled, kept = ids_of(4)
    region = Region({bad: FailureKind.NOT_FOUND}, names=True)
    turns = {lost: True}
    outcomes: dict[str, StateChange | str] = {}

    async def add(each: str) -> None:
        with permitted_by(lambda: turns.get(each, True)):
            try:
                outcomes[each] = await batcher.add(each)
            except Ec2Failure as failure:
                outcomes[each] = failure.code

    async with batching(region) as batcher, trio.open_nursery() as nursery:
        for each in (bad, lost, kept):
            nursery.start_soon(add, each)
        with trio.move_on_after(0.08):  # after the window, within the first call
            await batcher.add(cancelled)
        turns[lost] = False
    assert [sorted(call) for call in region.calls] == [[bad, lost, cancelled, kept], [kept]]
    assert outcomes == {bad: "Bad", lost: NOT_PERMITTED, kept: OK}


async def test_a_call_carries_the_permits_of_all_its_wishes(autojump_clock: MockClock) -> None:
    """They are looked at where it is sent: in a thread, after a repeat and waits of which nobody here knows."""
    turns = dict.fromkeys(ids_of(2), True)
    first, second = turns
    sent: list[list[str]] = []
    outcomes: dict[str, StateChange | str] = {}

    async def send(ids: Sequence[str], turn_taken: bool) -> dict[str, StateChange]:
        turns[first] = False
        if not await trio.to_thread.run_sync(lambda: current_permit()()):
            raise failure_of("StopInstances", PermitOver())
        sent.append(list(ids))
        return dict.fromkeys(ids, OK)

    async def add(batcher: Batcher, each: str) -> None:
        with permitted_by(lambda: turns[each]):
            try:
                outcomes[each] = await batcher.add(each)
            except Ec2Failure as failure:
                outcomes[each] = failure.code

    async with trio.open_nursery() as nursery:
        batcher = Batcher(trio.lowlevel.checkpoint, send)
        nursery.start_soon(batcher.run_batches)
        async with trio.open_nursery() as waiting:
            for each in turns:
                waiting.start_soon(add, batcher, each)
        nursery.cancel_scope.cancel()
    assert sent == [[second]]
    assert outcomes == {first: NOT_PERMITTED, second: OK}


@given(
    count=st.integers(1, 40),
    kind=st.sampled_from(FailureKind),
    words=st.sets(st.integers(0, 50), max_size=4),
)
def test_splitting_loses_and_doubles_nobody(count: int, kind: FailureKind, words: set[int]) -> None:
    part = ids_of(count)
    failure = Ec2Failure("StartInstances", "Bad", " ".join(f"i-{n:017x}" for n in words), kind)
    failed, again = split(part, failure)
    assert sorted(failed + [each for one in again for each in one]) == part
    assert all(0 < len(one) < len(part) for one in again)
