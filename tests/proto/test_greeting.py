"""The greeting: every case whole, byte by byte and with trailing bytes; hostile input ends in GreetingError alone."""

import contextlib

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beds.http2 import EMPTY_SETTINGS, texts
from bentpipe.proto.ack_filter import AckFilter
from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.events import NotHttp2, PeerKind, RequestHeaders
from bentpipe.proto.first_settings import Announcement
from bentpipe.proto.frames import ACK, END_HEADERS, PREFACE, FrameType, frame
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.refusal import Refusal

HEADERS = [
    (":method", "POST"),
    (":scheme", "https"),
    (":path", "/moby.buildkit.v1.Control/ListWorkers"),
    (":authority", "edge:8372"),
    ("content-type", "application/grpc"),
    ("satellite_name", "builder"),
]
SETTINGS_ACK = frame(FrameType.SETTINGS, ACK, 0)


def client() -> h2.connection.H2Connection:
    made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    made.initiate_connection()
    return made


def opening(data: bytes = b"") -> bytes:
    made = client()
    made.send_headers(1, HEADERS)
    if data:
        made.send_data(1, data)
    return made.data_to_send()


def feed(greeting: Greeting, data: bytes, size: int) -> list[object]:
    return [e for at in range(0, len(data), size) for e in greeting.receive_data(data[at : at + size], 0.0)]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("trailing", [b"", frame(FrameType.WINDOW_UPDATE, 0, 0, b"\0\0\1\0"), b"\0\0\5\0\0\0"])
def test_request_is_read_and_every_byte_kept(size: int, trailing: bytes) -> None:
    greeting = Greeting()
    sent = opening(b"data") + trailing
    [request] = feed(greeting, sent, size)
    assert isinstance(request, RequestHeaders)
    assert [(n.decode(), v.decode()) for n, v in request.headers] == HEADERS
    assert greeting.transcript_bytes == sent
    assert greeting.data_to_send() == b""


def test_empty_settings_once_if_the_client_waits_for_them() -> None:
    greeting = Greeting()
    greeting.receive_data(PREFACE + EMPTY_SETTINGS, 0.0)
    greeting.end_of_first_flight()
    greeting.end_of_first_flight()
    assert greeting.data_to_send() == EMPTY_SETTINGS
    assert greeting.awaiting_ack
    greeting.receive_data(SETTINGS_ACK, 0.0)
    assert not greeting.awaiting_ack
    assert greeting.transcript_bytes == PREFACE + EMPTY_SETTINGS


def test_ping_is_answered_behind_our_settings_and_not_replayed() -> None:
    greeting = Greeting()
    sent = opening()
    greeting.receive_data(sent + frame(FrameType.PING, 0, 0, b"12345678"), 0.0)
    assert greeting.data_to_send() == EMPTY_SETTINGS + frame(FrameType.PING, ACK, 0, b"12345678")
    assert greeting.transcript_bytes == sent


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_raise_nothing_but_greeting_error(data: bytes, preface: bool) -> None:
    with contextlib.suppress(GreetingError):
        Greeting().receive_data(PREFACE + EMPTY_SETTINGS + data if preface else data, 0.0)


@given(st.lists(st.integers(1, 60), max_size=30))
def test_chunks_do_not_matter(sizes: list[int]) -> None:
    sent = opening(b"x" * 50)
    greeting = Greeting()
    events = []
    for size in [*sizes, len(sent)]:
        events += greeting.receive_data(sent[:size], 0.0)
        sent = sent[size:]
    assert len(events) == 1
    assert greeting.transcript_bytes == opening(b"x" * 50)


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"GET / HTTP/1.1\r\n", PeerKind.HTTP1), (b"\x16\x03\x01\x02", PeerKind.TLS), (b"\xf0\0", PeerKind.OTHER)],
)
@pytest.mark.parametrize("size", [1, 100])
def test_others_are_recognised(start: bytes, kind: PeerKind, size: int) -> None:
    greeting = Greeting()
    events: list[object] = []
    at = 0
    while not events and at < len(start):
        events += greeting.receive_data(start[at : at + size], 0.0)
        at += size
    assert events == [NotHttp2(kind)]


HEADERS_START = frame(FrameType.HEADERS, 0, 1, b"\x83")


@pytest.mark.parametrize(
    "sent",
    [
        frame(FrameType.DATA, 0, 1, b"x"),
        frame(FrameType.HEADERS, END_HEADERS, 2, b"\x83"),
        frame(FrameType.PING, 0, 1, bytes(8)),
        frame(FrameType.PUSH_PROMISE, 0, 1, bytes(8)),
        SETTINGS_ACK,
        HEADERS_START + frame(FrameType.DATA, 0, 1),
        frame(FrameType.HEADERS, END_HEADERS | 0x8, 1, b"\xff"),
    ],
)
def test_broken_frames(sent: bytes) -> None:
    with pytest.raises(GreetingError) as error:
        Greeting().receive_data(PREFACE + EMPTY_SETTINGS + sent, 0.0)
    assert error.value.error_code is ErrorCode.PROTOCOL_ERROR


@given(st.lists(st.binary(max_size=20), max_size=5), st.lists(st.binary(max_size=20), max_size=5), st.integers(1, 40))
def test_ack_filter_takes_the_first_ack_and_nothing_else(before: list[bytes], after: list[bytes], size: int) -> None:
    data = [b"".join(frame(FrameType.DATA, 0, 1, p) for p in part) for part in (before, after)]
    sent = data[0] + SETTINGS_ACK + data[1]
    taken = AckFilter()
    out = b"".join(taken.receive_data(sent[at : at + size]) for at in range(0, len(sent), size))
    assert (out, taken.done) == (data[0] + data[1], True)


@given(st.integers(0, 200))
def test_filter_goes_on_wherever_the_greeting_stopped(cut: int) -> None:
    start = PREFACE + EMPTY_SETTINGS
    rest = SETTINGS_ACK + opening()[len(PREFACE) :]
    greeting = Greeting()
    greeting.receive_data(start, 0.0)
    greeting.end_of_first_flight()
    greeting.receive_data(rest[:cut], 0.0)
    out = greeting.transcript_bytes
    if greeting.awaiting_ack:
        out += greeting.ack_filter().receive_data(rest[cut:])
    else:
        out += rest[cut:]
    assert out == start + opening()[len(PREFACE) :]


@pytest.mark.parametrize("spoke_before", [False, True])
def test_a_real_client_reads_our_refusal(spoke_before: bool) -> None:
    made = client()
    made.send_headers(1, HEADERS)
    greeting = Greeting()
    if spoke_before:
        greeting.receive_data(PREFACE + EMPTY_SETTINGS, 0.0)
        greeting.end_of_first_flight()
        made.receive_data(greeting.data_to_send())
        greeting.receive_data(made.data_to_send()[len(PREFACE) :], 0.0)
    else:
        greeting.receive_data(made.data_to_send(), 0.0)
    refusal = Refusal()
    refusal.receive_data(greeting.take_all())
    while refusal.refuse_some(GrpcStatus.NOT_FOUND, "no such satellite: ä"):
        pass
    events = made.receive_data(refusal.close())
    [response] = [e for e in events if isinstance(e, h2.events.ResponseReceived)]
    assert ("grpc-status", "5") in texts(response.headers).items()
    assert ("grpc-message", "no such satellite: %C3%A4") in texts(response.headers).items()
    assert any(isinstance(e, h2.events.ConnectionTerminated) for e in events)


def test_the_ranges_that_do_not_belong_to_the_transcript_are_told_once() -> None:
    greeting = Greeting()
    assert greeting.take_removed() == ()
    ping = frame(FrameType.PING, 0, 0, bytes(8))
    said = opening() + ping
    greeting.receive_data(said, 0.0)
    assert greeting.take_removed() == ((len(said) - len(ping), len(ping)),)
    greeting.receive_data(SETTINGS_ACK + ping, 0.0)
    assert greeting.take_removed() == ((len(said), 9), (len(said) + 9, len(ping)))
    assert greeting.take_removed() == ()


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_another_greeting_goes_on_from_the_transcript_and_the_mark(cut: int) -> None:
    """Whatever is cut off in the middle: the next one says nothing twice, and answers what was not answered."""
    ping = frame(FrameType.PING, 0, 0, bytes(8))
    said = opening() + SETTINGS_ACK + ping
    first = Greeting()
    first.announce(Announcement(streams=100, window_bytes=0))
    first.take_removed()
    first.receive_data(opening()[:40], 0.0)
    first.end_of_first_flight()
    words = first.data_to_send()
    first.receive_data(said[40 : len(said) - cut], 0.0)
    words += first.data_to_send()
    kept = bytearray(said[: len(said) - cut])
    for at, size in reversed(first.take_removed()):
        del kept[at : at + size]
    second = Greeting()
    second.resume(first.mark)
    second.receive_data(bytes(kept) + said[len(said) - cut :], 0.0)
    words += second.data_to_send()
    assert words.count(frame(FrameType.PING, ACK, 0, bytes(8))) == 1
    assert words.startswith(Announcement(streams=100, window_bytes=0).frame())
    assert words.count(Announcement(streams=100, window_bytes=0).frame()) == 1
    assert second.announced == first.announced
    assert second.transcript_bytes == opening()
    assert not second.awaiting_ack


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_every_announcement_fits_the_mark(streams: int, window_bytes: int) -> None:
    greeting, other = Greeting(), Greeting()
    greeting.announce(Announcement(streams, window_bytes))
    greeting.speak()
    assert greeting.mark < 1 << 64
    other.resume(greeting.mark)
    assert (other.announced, other.spoke, other.awaiting_ack) == (Announcement(streams, window_bytes), True, True)
