"""What counts as a satellite that does not answer at once: its own silence, and not that this process was busy."""

import contextlib
import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from beds.http2 import EMPTY_SETTINGS
from bentpipe.daemon.connections import transport
from bentpipe.daemon.connections.arrival import Arrival, Proxies
from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.connections.transport import Transport
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.introduction import AT_ONCE_S, Introduction
from bentpipe.daemon.records.book import Book
from bentpipe.proto.frames import PREFACE

LIMITS = QuotaLimits(strangers=10, strangers_bytes=1 << 30, per_prefix=10, admitted=10, said_bytes=100_000)


@contextlib.contextmanager
def introduction_of() -> Iterator[tuple[Introduction, socket.socket]]:
    """A client that has our SETTINGS, on its way to a satellite; and the satellite's end of the connection."""
    client, _client = socket.socketpair()
    satellite, theirs = socket.socketpair()
    caller = Caller(Transport(client), Arrival(Quotas(LIMITS, trio.current_time), None, Proxies(), Book()))
    caller.receive(PREFACE + EMPTY_SETTINGS)
    caller.greeting.end_of_first_flight()
    ours = Transport(satellite)
    try:
        with theirs, _client:
            yield Introduction(caller, ours), theirs
    finally:
        caller.transport.close()
        ours.close()


async def test_an_answer_that_came_in_time_counts_though_there_was_no_turn_to_read_it(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def never() -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(transport, "take_turn", never)
    with introduction_of() as (introduction, satellite):

        async def answer() -> None:
            await trio.sleep(AT_ONCE_S / 2)
            assert satellite.recv(1000) == PREFACE + EMPTY_SETTINGS
            satellite.sendall(EMPTY_SETTINGS)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            assert await introduction.make_at_once()
        assert introduction.heard is not None
        assert introduction.read_bytes == len(EMPTY_SETTINGS)
        assert trio.current_time() >= AT_ONCE_S, "it has waited for a turn"


async def test_a_silent_satellite_is_given_up_and_gets_its_opening_once(autojump_clock: trio.testing.MockClock) -> None:
    with introduction_of() as (introduction, satellite):
        assert not await introduction.make_at_once()
        assert not await introduction.make_at_once()
        satellite.sendall(EMPTY_SETTINGS)
        await introduction.make()
        assert introduction.heard is not None
        assert satellite.recv(1000) == PREFACE + EMPTY_SETTINGS
