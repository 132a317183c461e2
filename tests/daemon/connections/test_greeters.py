"""Which greeting a new client gets, and what happens where the one in C stops."""

import logging
import socket
from collections.abc import AsyncIterator

import pytest

from beds.http2 import EMPTY_SETTINGS
from bentpipe.daemon.connections import greeters
from bentpipe.daemon.connections.arrival import Arrival, Proxies
from bentpipe.daemon.connections.greeters import NO_NGHTTP2, Greeters
from bentpipe.daemon.connections.native_greeting import NativeGreeting
from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.connections.transport import Transport
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.records.book import Book
from bentpipe.native.greeting import LIMITS, GreetingLimits, GreetingReader, nghttp2_version
from bentpipe.proto import limits
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.events import NotHttp2, PingAnswered, RequestHeaders
from bentpipe.proto.frames import END_HEADERS, PREFACE, FrameType, frame
from bentpipe.proto.greeting import Greeting

QUOTAS = QuotaLimits(strangers=10, strangers_bytes=1 << 30, per_prefix=10, admitted=10, said_bytes=100_000)
PING = frame(FrameType.PING, 0, 0, b"12345678")
REQUEST = frame(FrameType.HEADERS, END_HEADERS, 1, b"\x83")
built_in = pytest.mark.skipif(nghttp2_version() is None, reason="the engine was built without nghttp2")


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    ours, theirs = socket.socketpair()
    made = Transport(ours)
    with theirs:
        yield made
    made.close()


async def caller_of(transport: Transport, greeting: Greeting | NativeGreeting) -> Caller:
    return Caller(transport, Arrival(Quotas(QUOTAS, lambda: 0.0), None, Proxies(), Book()), greeting=greeting)


@built_in
def test_new_clients_get_what_is_configured() -> None:
    made = Greeters("auto")
    assert isinstance(made.make(), NativeGreeting)
    made.follow("python")
    assert isinstance(made.make(), Greeting)
    made.follow("auto")
    assert isinstance(made.make(), NativeGreeting)


def test_a_build_without_nghttp2_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(greeters, "nghttp2_version", lambda: None)
    with caplog.at_level(logging.WARNING, "bentpipe.edge"):
        made = Greeters("python")
        assert not caplog.records
        made.follow("auto")
    [record] = caplog.records
    assert record.__dict__["fields"] == {"reason": NO_NGHTTP2}
    assert isinstance(made.make(), Greeting)


@built_in
async def test_python_goes_on_where_c_stops(transport: Transport) -> None:
    caller = await caller_of(transport, Greeters("auto").make())
    [ping, request] = caller.receive(PREFACE + EMPTY_SETTINGS + PING + REQUEST)
    assert (type(ping), type(request)) == (PingAnswered, RequestHeaders)
    assert isinstance(caller.greeting, NativeGreeting)
    for stream in range(3, 99, 2):
        caller.receive(frame(FrameType.HEADERS, END_HEADERS, stream, b"\x83"))
    assert isinstance(caller.greeting, Greeting)
    assert len(caller.greeting.open_streams) == 49
    assert caller.greeting.awaiting_ack


@built_in
async def test_another_protocol_is_named_by_python(transport: Transport) -> None:
    caller = await caller_of(transport, Greeters("auto").make())
    assert [type(event) for event in caller.receive(b"GET / HTTP/1.1\r\n")] == [NotHttp2]
    assert caller.take_all() == b"GET / HTTP/1.1\r\n"


@built_in
async def test_a_refusal_has_the_words_of_python(transport: Transport) -> None:
    caller = await caller_of(transport, Greeters("auto").make())
    caller.receive(PREFACE + EMPTY_SETTINGS)
    with pytest.raises(GreetingError, match="over the limit PING_FRAMES"):
        caller.receive(PING * (limits.PING_FRAMES + 1))


@built_in
async def test_what_c_alone_refuses_is_read_by_python_and_reported(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {**{name: float(getattr(limits, name)) for name in LIMITS}, "PING_FRAMES": 1.0}
    reader = GreetingReader(GreetingLimits(wrong, limits.HEADER_FIELDS))
    caller = await caller_of(transport, NativeGreeting(reader))
    events = caller.receive(PREFACE + EMPTY_SETTINGS + PING * 3 + REQUEST)
    assert [type(event) for event in events] == [*[PingAnswered] * 3, RequestHeaders]
    [record] = caplog.records
    assert record.__dict__["fields"]["limit"] == "PING_FRAMES"
