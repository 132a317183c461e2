"""Connections that the daemon answers itself, against an h2 client in memory; floods end by the limit's name."""

import contextlib

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beds.http2 import EMPTY_SETTINGS, texts
from beds.peers.joined_client import JoinedClient
from bentpipe.proto import limits
from bentpipe.proto.answering import AnsweredCall, Answering
from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.frames import PREFACE, FrameType, frame
from bentpipe.proto.grpc_server import CallEnded
from bentpipe.proto.grpc_status import GrpcStatus

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/grpc.health.v1.Health/Check"),
    (":authority", "edge"),
    ("content-type", "application/grpc"),
]
MESSAGE = b"\0\0\0\0\2\x08\x01"


class Pair(JoinedClient):
    ours: Answering

    def __init__(self, **initial: int) -> None:
        super().__init__(**initial)
        self.ours = Answering()
        self.calls: list[AnsweredCall | CallEnded] = []

    def hear(self, data: bytes) -> None:
        self.calls += self.ours.receive_data(data, 0.0)


def test_message_and_trailers() -> None:
    pair = Pair()
    pair.client.send_headers(1, HEADERS)
    pair.client.send_data(1, b"request", end_stream=True)
    pair.turn()
    [call] = pair.calls
    assert isinstance(call, AnsweredCall)
    assert call.body == b"request"
    pair.ours.send_message(1, MESSAGE)
    pair.ours.finish(1, GrpcStatus.OK)
    events = pair.turn()
    assert [e.data for e in events if isinstance(e, h2.events.DataReceived)] == [MESSAGE]
    [trailers] = [e for e in events if isinstance(e, h2.events.TrailersReceived)]
    assert ("grpc-status", "0") in texts(trailers.headers).items()


def test_an_answer_waits_for_the_window() -> None:
    pair = Pair(INITIAL_WINDOW_SIZE=0)
    pair.client.send_headers(1, HEADERS, end_stream=True)
    pair.turn()
    pair.ours.send_message(1, MESSAGE)
    pair.ours.finish(1, GrpcStatus.OK)
    assert pair.ours.unsent(1)
    assert not [e for e in pair.turn() if isinstance(e, h2.events.DataReceived)]
    got = b""
    for _ in MESSAGE:
        pair.client.increment_flow_control_window(1, 1)
        got += b"".join(e.data for e in pair.turn() if isinstance(e, h2.events.DataReceived))
    assert got == MESSAGE
    assert not pair.ours.unsent(1)


def test_a_request_that_is_too_long_is_refused_before_its_end() -> None:
    pair = Pair()
    pair.client.send_headers(1, HEADERS)
    pair.client.send_data(1, bytes(limits.ANSWERED_MESSAGE_BYTES + 1))
    events = pair.turn()
    [response] = [e for e in events if isinstance(e, h2.events.ResponseReceived)]
    assert ("grpc-status", "8") in texts(response.headers).items()
    assert any(isinstance(e, h2.events.StreamReset) for e in events)
    assert pair.calls == []


def test_a_call_that_is_given_up() -> None:
    pair = Pair()
    pair.client.send_headers(1, HEADERS, end_stream=True)
    pair.client.reset_stream(1)
    pair.turn()
    assert pair.calls[-1] == CallEnded(1)
    pair.ours.send_message(1, MESSAGE)
    pair.ours.finish(1, GrpcStatus.OK)
    assert pair.turn() == []


@pytest.mark.parametrize("then", ["reset", "goaway", "window-update"])
def test_what_is_too_long_and_what_follows_it_in_the_same_read(then: str) -> None:
    """h2 is ahead of its events: an answer to the first must not break over the second."""
    pair = Pair()
    pair.client.send_headers(1, HEADERS)
    pair.client.send_data(1, bytes(limits.ANSWERED_MESSAGE_BYTES + 1), end_stream=True)
    if then == "reset":
        pair.client.reset_stream(1)
    elif then == "goaway":
        pair.client.close_connection()
    else:
        pair.client.increment_flow_control_window(1)
    calls = pair.ours.receive_data(pair.client.data_to_send(), 0.0)
    assert calls == ([CallEnded(1)] if then == "reset" else [])
    assert pair.ours.ended is (then == "goaway")


def test_a_request_with_goaway_behind_it_breaks_nothing() -> None:
    pair = Pair()
    pair.client.send_headers(1, HEADERS, end_stream=True)
    pair.client.close_connection()
    [call] = pair.ours.receive_data(pair.client.data_to_send(), 0.0)
    pair.ours.send_message(call.stream_id, MESSAGE)
    pair.ours.finish(call.stream_id, GrpcStatus.OK)
    assert pair.ours.ended


REQUEST = h2.connection.H2Connection()
REQUEST.initiate_connection()
REQUEST.send_headers(1, HEADERS)
OPENING = REQUEST.data_to_send()


def rapid_reset() -> bytes:
    client = h2.connection.H2Connection()
    client.initiate_connection()
    for stream_id in range(1, 1200, 2):
        client.send_headers(stream_id, HEADERS)
        client.reset_stream(stream_id)
    return client.data_to_send()


@pytest.mark.parametrize(
    "flood",
    [
        OPENING + frame(FrameType.PING, 0, 0, bytes(8)) * 600,
        OPENING + EMPTY_SETTINGS * 600,
        OPENING + frame(FrameType.WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 600,
        OPENING + frame(FrameType.DATA, 0, 1) * 600,
        OPENING + frame(FrameType.PRIORITY, 0, 3, b"\0\0\0\5\1") * 600,
        rapid_reset(),
    ],
    ids=["ping", "settings", "window-update", "empty-data", "priority", "rapid-reset"],
)
def test_floods(flood: bytes) -> None:
    ours = Answering()
    with pytest.raises(GreetingError) as error:
        ours.receive_data(flood, 0.0)
    assert (error.value.error_code, error.value.limit) == (ErrorCode.ENHANCE_YOUR_CALM, "ANSWERED_PER_S")
    assert frame(FrameType.GOAWAY, 0, 0)[3:5] in ours.data_to_send()


def test_the_budget_comes_back() -> None:
    ours = Answering()
    ours.receive_data(OPENING, 0.0)
    for second in range(100):
        ours.receive_data(frame(FrameType.PING, 0, 0, bytes(8)) * 90, float(second))


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_raise_nothing_but_greeting_error(data: bytes, opened: bool) -> None:
    ours = Answering()
    with contextlib.suppress(GreetingError):
        ours.receive_data(OPENING + data if opened else PREFACE + EMPTY_SETTINGS + data, 0.0)
    ours.data_to_send()


FRAMES = st.builds(
    frame,
    st.sampled_from(FrameType),
    st.integers(0, 255),
    st.sampled_from((0, 1, 3)),
    st.one_of(st.binary(max_size=12), st.sampled_from((bytes(4), bytes(5), bytes(8), b"\x82\x84\x86"))),
)


@given(st.lists(FRAMES, max_size=12))
def test_any_frames_raise_nothing_but_greeting_error(frames: list[bytes]) -> None:
    ours = Answering()
    with contextlib.suppress(GreetingError):
        for call in ours.receive_data(OPENING + b"".join(frames), 0.0):
            ours.send_message(call.stream_id, MESSAGE)
            ours.finish(call.stream_id, GrpcStatus.OK)
    ours.data_to_send()


@pytest.mark.untraced
def test_what_is_kept_is_counted_and_bounded() -> None:
    """Headers of unfinished requests, their bodies, and streams at all; nothing of it stays when they are over."""
    pair = Pair()
    pair.turn()
    alone_bytes = pair.ours.kept_bytes
    big = [*HEADERS, ("metadata", "x" * 12_000)]
    pair.client.send_headers(1, big)
    pair.client.send_data(1, b"y" * 3_000)
    pair.turn()
    assert pair.ours.kept_bytes - alone_bytes > 15_000
    pair.client.end_stream(1)
    pair.turn()
    assert pair.ours.kept_bytes - alone_bytes < 2_000, "the request is the caller's now"
    pair.ours.finish(1, GrpcStatus.OK)
    assert pair.ours.kept_bytes == alone_bytes

    def ask_on() -> None:
        for number in range(100):
            pair.client.send_headers(3 + 2 * number, big)
            pair.turn()
            assert pair.ours.kept_bytes <= limits.ANSWERED_BYTES

    with pytest.raises(GreetingError) as error:
        ask_on()
    assert (error.value.error_code, error.value.limit) == (ErrorCode.ENHANCE_YOUR_CALM, "ANSWERED_BYTES")


def test_an_end_that_is_announced_ends_no_stream() -> None:
    pair = Pair()
    pair.client.send_headers(1, HEADERS)
    pair.client.send_data(1, b"request", end_stream=True)
    pair.turn()
    pair.ours.announce_end()
    [ended] = [event for event in pair.turn() if isinstance(event, h2.events.ConnectionTerminated)]
    assert (ended.error_code, ended.last_stream_id) == (ErrorCode.NO_ERROR, 2**31 - 1)
    pair.ours.send_message(1, MESSAGE)
    assert MESSAGE in pair.ours.data_to_send()
