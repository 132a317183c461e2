"""The server's side of a connection with streams of messages, against an h2 client in memory, at each of its limits."""

import contextlib
from collections.abc import Iterator

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import pytest
from hyperframe.frame import SettingsFrame
from hypothesis import given
from hypothesis import strategies as st

from beds.http2 import EMPTY_SETTINGS, texts
from beds.peers.joined_client import JoinedClient
from bentpipe.proto import limits
from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.frames import END_HEADERS, END_STREAM, PREFACE, FrameType, frame
from bentpipe.proto.grpc_server import API_BOUNDS, CallBegan, CallComplete, CallData, CallEnded, CallEvent, GrpcServer
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.messages import PREFIX_BYTES, MessageError, MessageReader, encode_message, is_grpc

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/api.public.compute.Compute/GetSatellite"),
    (":authority", "edge"),
    ("content-type", "application/grpc"),
]


class Pair(JoinedClient):
    ours: GrpcServer

    def __init__(self, **initial: int) -> None:
        super().__init__(**initial)
        self.ours = GrpcServer(API_BOUNDS)
        self.events: list[CallEvent] = []
        self.now_s = 0.0

    def hear(self, data: bytes) -> None:
        self.events += self.ours.receive_data(data, self.now_s)

    def take(self, kind: type[CallEvent]) -> list[CallEvent]:
        found = [each for each in self.events if isinstance(each, kind)]
        self.events = [each for each in self.events if not isinstance(each, kind)]
        return found


def test_a_request_in_parts_and_an_answer_of_many() -> None:
    pair = Pair()
    pair.client.send_headers(1, HEADERS)
    pair.client.send_data(1, b"one")
    pair.turn()
    pair.client.send_data(1, b"two", end_stream=True)
    pair.turn()
    assert [type(each) for each in pair.events] == [CallBegan, CallData, CallData, CallComplete]
    assert [each.data for each in pair.events if isinstance(each, CallData)] == [b"one", b"two"]
    for number in range(3):
        pair.ours.send_message(1, encode_message(b"%d" % number))
    pair.ours.finish(1, GrpcStatus.ABORTED, "ünd")
    events = pair.turn()
    assert b"".join(e.data for e in events if isinstance(e, h2.events.DataReceived)) == b"".join(
        encode_message(b"%d" % number) for number in range(3)
    )
    [trailers] = [e for e in events if isinstance(e, h2.events.TrailersReceived)]
    assert list(texts(trailers.headers).items()) == [("grpc-status", "10"), ("grpc-message", "%C3%BCnd")]
    assert pair.ours.open_streams == 0


def test_the_client_may_send_no_more_than_was_acknowledged() -> None:
    pair = Pair()
    pair.client.send_headers(1, HEADERS)
    window = pair.client.local_flow_control_window(1)
    for _ in range(window // 8_192):
        pair.client.send_data(1, bytes(8_192))
    pair.turn()
    left = pair.client.local_flow_control_window(1)
    assert left < 8_192
    for data in pair.take(CallData):
        assert isinstance(data, CallData)
        pair.ours.acknowledge(1, data.window_bytes)
    pair.turn()
    assert pair.client.local_flow_control_window(1) > left + 32_000


def test_what_comes_for_a_call_that_is_over_opens_the_windows_again() -> None:
    pair = Pair()
    pair.client.send_headers(1, HEADERS)
    pair.turn()
    pair.ours.finish(1, GrpcStatus.UNAUTHENTICATED)
    before = pair.client.outbound_flow_control_window
    for _ in range(8):
        pair.client.send_data(1, bytes(8_000))
    pair.turn()
    pair.turn()
    assert pair.client.outbound_flow_control_window > before - 64_000 + 16_000
    assert pair.take(CallData) == []


def test_trailers_that_are_malformed_end_a_call_that_began() -> None:
    pair = Pair()
    pair.client.config.validate_outbound_headers = False
    pair.client.config.normalize_outbound_headers = False
    pair.client.send_headers(1, HEADERS)
    pair.turn()
    pair.client.send_headers(1, [("x", "y\n")], end_stream=True)
    events = pair.turn()
    assert [type(each) for each in pair.events] == [CallBegan, CallEnded]
    assert any(isinstance(e, h2.events.StreamReset) for e in events)


def test_a_client_that_takes_no_answer_can_be_reset() -> None:
    pair = Pair(INITIAL_WINDOW_SIZE=0)
    pair.client.send_headers(1, HEADERS, end_stream=True)
    pair.turn()
    pair.ours.send_message(1, encode_message(b"x"))
    assert pair.ours.unsent(1) == PREFIX_BYTES + 1
    pair.ours.reset(1, ErrorCode.ENHANCE_YOUR_CALM)
    [reset] = [e for e in pair.turn() if isinstance(e, h2.events.StreamReset)]
    assert reset.error_code == ErrorCode.ENHANCE_YOUR_CALM
    assert pair.ours.unsent(1) == 0


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over_by", [0, 1])
def test_streams(over_by: int) -> None:
    ours, encoder = GrpcServer(API_BOUNDS), hpack.Encoder()
    requests = [
        frame(FrameType.HEADERS, END_HEADERS, 1 + 2 * number, encoder.encode(HEADERS))
        for number in range(limits.API_STREAMS + over_by)
    ]
    opening = PREFACE + EMPTY_SETTINGS + EMPTY_SETTINGS[:4] + b"\1" + EMPTY_SETTINGS[5:]  # with the ACK of ours
    if over_by:
        with pytest.raises(GreetingError):
            ours.receive_data(opening + b"".join(requests), 0.0)
    else:
        assert len(ours.receive_data(opening + b"".join(requests), 0.0)) == limits.API_STREAMS


@pytest.mark.parametrize("over_by", [0, 1])
def test_bytes(over_by: int) -> None:
    pair = Pair()
    pair.turn()
    elsewhere = limits.API_BYTES - pair.ours.kept_bytes + over_by
    if over_by:
        with pytest.raises(GreetingError) as error:
            pair.ours.bound(elsewhere)
        assert (error.value.error_code, error.value.limit) == (ErrorCode.ENHANCE_YOUR_CALM, "API_BYTES")
        assert frame(FrameType.GOAWAY, 0, 0)[3:5] in pair.ours.data_to_send()
    else:
        pair.ours.bound(elsewhere)


@pytest.mark.parametrize("over_by", [0, 1])
def test_resets(over_by: int) -> None:
    pair = Pair()
    pair.turn()
    for number in range(limits.API_RESETS + over_by):
        pair.client.send_headers(1 + 2 * number, HEADERS)
        pair.client.reset_stream(1 + 2 * number)
        if number < limits.API_RESETS:
            pair.turn()
    if over_by:
        with pytest.raises(GreetingError) as error:
            pair.turn()
        assert (error.value.error_code, error.value.limit) == (ErrorCode.ENHANCE_YOUR_CALM, "API_RESETS_PER_S")
    assert pair.ours.open_streams == 0


def test_resets_at_the_rate_that_is_allowed() -> None:
    pair = Pair()
    for number in range(3 * limits.API_RESETS):
        pair.now_s += 1 / limits.API_RESETS_PER_S
        pair.client.send_headers(1 + 2 * number, HEADERS)
        pair.client.reset_stream(1 + 2 * number)
        pair.turn()


def test_too_many_frames_are_paced_and_end_nothing() -> None:
    pair = Pair()
    pair.turn()
    assert pair.ours.pause_s == 0
    ping = frame(FrameType.PING, 0, 0, bytes(8))
    pair.ours.receive_data(ping * (limits.API_FRAMES + 500), 0.0)
    assert 0 < pair.ours.pause_s <= 510 / limits.API_FRAMES_PER_S
    pair.ours.receive_data(ping, 1.0)
    assert pair.ours.pause_s == 0


def test_a_client_that_would_keep_a_huge_table_of_fields_gets_a_small_one() -> None:
    """Each answer has other words. The table of all would take memory for each, and h2 searches all of it for each field."""
    ours, encoder, decoder = GrpcServer(API_BOUNDS), hpack.Encoder(), hpack.Decoder()
    decoder.max_allowed_table_size = 2**32 - 1
    table = SettingsFrame.HEADER_TABLE_SIZE

    def settings(size: int) -> bytes:
        return frame(FrameType.SETTINGS, 0, 0, table.to_bytes(2) + size.to_bytes(4))

    ours.receive_data(PREFACE + settings(2**32 - 1), 0.0)
    for number in range(300):
        if number == 200:
            ours.receive_data(settings(50), 0.0)
        elif number == 250:
            ours.receive_data(settings(2**20), 0.0)
        stream = 1 + 2 * number
        ours.receive_data(frame(FrameType.HEADERS, END_HEADERS | END_STREAM, stream, encoder.encode(HEADERS)), 0.0)
        words = f"{number} " + "x" * 50
        ours.finish(stream, GrpcStatus.UNIMPLEMENTED, words)
        said = ours.data_to_send()
        [block] = [payload for kind, payload in frames_of(said) if kind == FrameType.HEADERS]
        assert dict(decoder.decode(block, raw=True))[b"grpc-message"] == words.encode()
        assert decoder.header_table_size == (50 if 200 <= number < 250 else limits.TABLE_BYTES)


def frames_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and payload of each frame."""
    while data:
        size = int.from_bytes(data[:3])
        yield data[3], data[9 : 9 + size]
        data = data[9 + size :]


def test_what_the_client_breaks_ends_in_one_goaway() -> None:
    """A second one without an error would hide the first."""
    pair = Pair()
    pair.turn()
    with pytest.raises(GreetingError):
        pair.ours.receive_data(frame(FrameType.DATA, 0, 3, b"on a stream that was never opened"), 0.0)
    assert pair.ours.ended
    [goaway] = [payload for kind, payload in frames_of(pair.ours.data_to_send()) if kind == FrameType.GOAWAY]
    assert int.from_bytes(goaway[4:8]) == ErrorCode.PROTOCOL_ERROR


FRAMES = st.builds(
    frame,
    st.sampled_from(FrameType),
    st.integers(0, 255),
    st.sampled_from((0, 1, 3)),
    st.one_of(st.binary(max_size=12), st.sampled_from((bytes(4), bytes(5), bytes(8), b"\x82\x84\x86"))),
)
OPENING = Pair().client.data_to_send()


@given(st.lists(FRAMES, max_size=12), st.integers(0, 5))
def test_any_frames_raise_nothing_but_greeting_error(frames: list[bytes], do: int) -> None:
    """Whatever the calls do with what comes, and however much of it comes at once."""
    encoder = hpack.Encoder()
    ours = GrpcServer(API_BOUNDS)
    requests = [frame(FrameType.HEADERS, END_HEADERS, stream, encoder.encode(HEADERS)) for stream in (1, 3)]
    with contextlib.suppress(GreetingError):
        for piece in (OPENING + b"".join(requests), *frames):
            for event in ours.receive_data(piece, 0.0):
                ours.acknowledge(event.stream_id, event.window_bytes if isinstance(event, CallData) else 0)
                if do >= 1:
                    ours.send_message(event.stream_id, encode_message(b"x"))
                if do == 2:
                    ours.finish(event.stream_id, GrpcStatus.OK)
                if do == 3:
                    ours.reset(event.stream_id, ErrorCode.CANCEL)
                if do == 4:
                    ours.announce_end()
        if do == 5:
            ours.close()
    ours.data_to_send()
    assert ours.kept_bytes <= limits.API_BYTES


# -- messages ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=50), max_size=8), st.data())
def test_messages_are_cut_right_however_they_come(messages: list[bytes], data: st.DataObject) -> None:
    body = b"".join(map(encode_message, messages))
    reader, found = MessageReader(50, "LIMIT"), []
    at = 0
    while at < len(body):
        size = data.draw(st.integers(1, len(body) - at))
        found += reader.receive_data(body[at : at + size])
        at += size
    reader.end()
    assert found == messages


@pytest.mark.parametrize("over_by", [0, 1])
def test_messages_of_the_largest_size(over_by: int) -> None:
    reader = MessageReader(limits.API_MESSAGE_BYTES, "API_MESSAGE_BYTES")
    message = encode_message(bytes(limits.API_MESSAGE_BYTES + over_by))
    if over_by:
        with pytest.raises(MessageError, match="API_MESSAGE_BYTES") as error:
            reader.receive_data(message[:PREFIX_BYTES])
        assert error.value.status is GrpcStatus.RESOURCE_EXHAUSTED
    else:
        assert reader.receive_data(message) == [message[PREFIX_BYTES:]]
        assert reader.kept_bytes == 0


def test_a_body_that_ends_in_a_message_and_one_that_is_compressed() -> None:
    reader = MessageReader(10, "LIMIT")
    reader.receive_data(encode_message(b"abc")[:-1])
    assert reader.kept_bytes == PREFIX_BYTES + 2
    with pytest.raises(MessageError) as error:
        reader.end()
    assert error.value.status is GrpcStatus.INTERNAL
    with pytest.raises(MessageError) as error:
        MessageReader(10, "LIMIT").receive_data(b"\1\0\0\0\0")
    assert error.value.status is GrpcStatus.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("content_type", "grpc"),
    [
        (b"application/grpc", True),
        (b"Application/gRPC", True),
        (b"application/grpc+proto", True),
        (b"application/grpc;charset=utf-8", True),
        (b"application/grpc-web", False),
        (b"application/grpc-web+proto", False),
        (b"application/grpcx", False),
        (b"application/json", False),
        (b"", False),
    ],
)
def test_content_types(content_type: bytes, grpc: bool) -> None:
    assert is_grpc(content_type) is grpc
