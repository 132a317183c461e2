"""A client that is held: its end or its eviction ends the work that is done for it, and nothing else does."""

import contextlib
import dataclasses
import functools
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
import trio.testing

from beds.http2 import EMPTY_SETTINGS
from bentpipe.daemon.connections.arrival import Arrival, Proxies
from bentpipe.daemon.connections.held_bytes import HELD_BYTES, PLACE_BYTES
from bentpipe.daemon.connections.outcomes import ConnectionOver, Outcome
from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.connections.transport import Transport
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.watching import Hold, held
from bentpipe.daemon.errors import DialFailed, LimitReached
from bentpipe.daemon.fleet.batched_release import BatchedEvent, BatchedRelease
from bentpipe.daemon.records.book import Book
from bentpipe.proto.frames import PREFACE, FrameType, frame

DEADLINE_S = 10.0
LIMITS = QuotaLimits(strangers=10, strangers_bytes=1 << 30, per_prefix=10, admitted=10, said_bytes=100_000)
PING = frame(FrameType.PING, 0, 0, b"12345678")


@contextlib.contextmanager
def admitted(quotas: Quotas, principal: str) -> Iterator[tuple[Caller, socket.socket]]:
    """A client of the principal's, and its end of the connection."""
    ours, theirs = socket.socketpair()
    arrival = Arrival(quotas, None, Proxies(), Book())
    arrival.place.promote(principal, None)
    caller = Caller(Transport(ours), arrival)
    try:
        with theirs:
            yield caller, theirs
    finally:
        caller.transport.close()


async def wait(hold: Hold, over: BatchedEvent) -> None:
    """As for a satellite that sleeps."""
    await hold.until(over)


async def work(hold: Hold, over: BatchedEvent) -> None:
    """As while it is dialled for seconds."""
    await hold.during(over.wait)


Held = Callable[[Hold, BatchedEvent], Awaitable[None]]
in_both_ways = pytest.mark.parametrize("way", [wait, work])


async def hold_for_ever(way: Held, caller: Caller, then: Callable[[], None]) -> None:
    with held(caller) as hold:
        then()
        await way(hold, BatchedRelease().event())


async def receive(client: socket.socket, wanted: bytes) -> None:
    client.setblocking(False)
    received = b""
    while wanted not in received:
        await trio.lowlevel.wait_readable(client)
        received += client.recv(4096)


@in_both_ways
async def test_its_pings_are_answered_until_the_event(way: Held) -> None:
    over = BatchedRelease().event()
    with admitted(Quotas(LIMITS, lambda: 0.0), "ci") as (caller, client), trio.fail_after(DEADLINE_S):
        client.sendall(PREFACE + EMPTY_SETTINGS + PING)
        with held(caller) as hold:
            assert caller.place.held_bytes >= PLACE_BYTES + HELD_BYTES
            async with trio.open_nursery() as nursery:
                nursery.start_soon(way, hold, over)
                await receive(client, b"12345678")
                over.set()
            client.sendall(EMPTY_SETTINGS)  # what it says from now on stays in its socket
            await trio.testing.wait_all_tasks_blocked()
            hold.end()
        assert caller.greeting.transcript_bytes == PREFACE + EMPTY_SETTINGS
        assert caller.transport.receive_nowait() == EMPTY_SETTINGS


async def test_it_goes_on_at_once_if_the_event_is_set_before() -> None:
    over = BatchedRelease().event()
    over.set()
    with admitted(Quotas(LIMITS, lambda: 0.0), "ci") as (caller, _), trio.fail_after(DEADLINE_S), held(caller) as hold:
        await hold.until(over)
        hold.end()


async def test_its_pings_are_answered_while_it_rests() -> None:
    with admitted(Quotas(LIMITS, lambda: 0.0), "ci") as (caller, client), trio.fail_after(DEADLINE_S):
        client.sendall(PREFACE + EMPTY_SETTINGS + PING)
        with held(caller) as hold:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold.rest, 0.01)
                await receive(client, b"12345678")


@in_both_ways
async def test_if_it_leaves_the_work_is_cancelled(way: Held) -> None:
    with admitted(Quotas(LIMITS, lambda: 0.0), "ci") as (caller, client), trio.fail_after(DEADLINE_S):
        client.sendall(PREFACE + EMPTY_SETTINGS)
        with pytest.raises(ConnectionOver) as caught:
            await hold_for_ever(way, caller, client.close)
        assert caught.value.outcome is Outcome.CLIENT_GONE
        assert caller.place.cost_bytes == PLACE_BYTES


async def test_an_error_of_the_work_is_raised_by_itself() -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise DialFailed("refused")

    with admitted(Quotas(LIMITS, lambda: 0.0), "ci") as (caller, _), pytest.raises(DialFailed), held(caller) as hold:
        await hold.during(fail)


@in_both_ways
async def test_if_it_is_evicted_it_is_told_why(way: Held) -> None:
    quotas = Quotas(LIMITS, lambda: 0.0, lambda: 2)
    with (
        admitted(quotas, "ci") as (greedy, _),
        admitted(quotas, "dev") as (modest, _),
        trio.fail_after(DEADLINE_S),
    ):
        greedy.place.keep(90_000)
        with pytest.raises(LimitReached, match="held_bytes is reached"):
            await hold_for_ever(way, greedy, lambda: modest.place.keep(20_000))


async def test_once_the_hold_has_ended_it_is_not_evicted() -> None:
    quotas = Quotas(LIMITS, lambda: 0.0, lambda: 2)
    with (
        admitted(quotas, "ci") as (greedy, _),
        admitted(quotas, "dev") as (modest, _),
        trio.fail_after(DEADLINE_S),
    ):
        greedy.place.keep(90_000)
        with held(greedy) as hold:
            hold.end()
            with contextlib.suppress(LimitReached):
                modest.place.keep(20_000)
            await trio.lowlevel.checkpoint()
        assert greedy.place.eviction_words is None


async def test_a_herd_is_let_go_without_a_second_task_for_each() -> None:
    """Only the clients' own tasks run: nothing else has to be ended for each of them."""
    batches = BatchedRelease()
    quotas = Quotas(dataclasses.replace(LIMITS, strangers=100, per_prefix=100, admitted=100), lambda: 0.0)
    with contextlib.ExitStack() as stack, trio.fail_after(DEADLINE_S):
        callers = [stack.enter_context(admitted(quotas, "ci"))[0] for _ in range(50)]
        tasks = trio.lowlevel.current_statistics().tasks_living
        overs = [batches.event() for _ in callers]
        async with trio.open_nursery() as nursery:
            for caller, over in zip(callers, overs, strict=True):
                nursery.start_soon(functools.partial(_hold_until, caller, over))
            await trio.testing.wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().tasks_living == tasks + len(callers)
            for over in overs:
                over.set()


async def _hold_until(caller: Caller, over: BatchedEvent) -> None:
    with held(caller) as hold:
        await hold.until(over)
        hold.end()
