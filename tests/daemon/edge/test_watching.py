"""A client that is held: its end or its eviction ends the work that is done for it, and nothing else does."""

import contextlib
import socket
from collections.abc import Callable, Iterator

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
from bentpipe.daemon.edge.watching import held
from bentpipe.daemon.errors import DialFailed, LimitReached
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


async def hold_for_ever(caller: Caller, then: Callable[[], None]) -> None:
    async with held(caller):
        then()
        await trio.sleep_forever()


async def test_its_pings_are_answered_while_the_work_goes_on() -> None:
    with admitted(Quotas(LIMITS, lambda: 0.0), "ci") as (caller, client), trio.fail_after(DEADLINE_S):
        client.sendall(PREFACE + EMPTY_SETTINGS + PING)
        async with held(caller) as hold:
            assert caller.place.held_bytes >= PLACE_BYTES + HELD_BYTES
            client.setblocking(False)
            received = b""
            while b"12345678" not in received:
                await trio.lowlevel.wait_readable(client)
                received += client.recv(4096)
            await hold.stop_watching()


async def test_if_it_leaves_the_work_is_cancelled() -> None:
    with admitted(Quotas(LIMITS, lambda: 0.0), "ci") as (caller, client), trio.fail_after(DEADLINE_S):
        client.sendall(PREFACE + EMPTY_SETTINGS)
        with pytest.raises(ConnectionOver) as caught:
            await hold_for_ever(caller, client.close)
        assert caught.value.outcome is Outcome.CLIENT_GONE
        assert caller.place.cost_bytes == PLACE_BYTES


async def test_an_error_of_the_work_is_raised_by_itself() -> None:
    with admitted(Quotas(LIMITS, lambda: 0.0), "ci") as (caller, _), pytest.raises(DialFailed):
        async with held(caller):
            raise DialFailed("refused")


async def test_if_it_is_evicted_it_is_told_why() -> None:
    quotas = Quotas(LIMITS, lambda: 0.0, lambda: 2)
    with (
        admitted(quotas, "ci") as (greedy, _),
        admitted(quotas, "dev") as (modest, _),
        trio.fail_after(DEADLINE_S),
    ):
        greedy.place.keep(90_000)
        with pytest.raises(LimitReached, match="held_bytes is reached"):
            await hold_for_ever(greedy, lambda: modest.place.keep(20_000))


async def test_once_it_is_not_watched_it_is_not_evicted() -> None:
    quotas = Quotas(LIMITS, lambda: 0.0, lambda: 2)
    with (
        admitted(quotas, "ci") as (greedy, _),
        admitted(quotas, "dev") as (modest, _),
        trio.fail_after(DEADLINE_S),
    ):
        greedy.place.keep(90_000)
        async with held(greedy) as hold:
            await hold.stop_watching()
            with contextlib.suppress(LimitReached):
                modest.place.keep(20_000)
            await trio.lowlevel.checkpoint()
        assert greedy.place.eviction_words is None
