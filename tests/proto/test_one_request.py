"""One request a connection: what is the first's goes on byte for byte, what is others' never does, however it is cut."""

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beds.http2 import EMPTY_SETTINGS
from bentpipe.proto import limits
from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.frames import ACK, END_HEADERS, END_STREAM, PREFACE, FrameType, frame
from bentpipe.proto.one_request import PING_PAYLOAD, OneRequest

BLOCK = hpack.Encoder().encode([(":method", "POST"), ("satellite_token", "bp_red")])
OTHERS_BLOCK = hpack.Encoder().encode([(":method", "POST"), ("satellite_token", "bp_blue")])
FIRST = frame(FrameType.HEADERS, END_HEADERS, 1, BLOCK)
OWN_DATA = frame(FrameType.DATA, END_STREAM, 1, b"mine")
CONNECTIONS = frame(FrameType.WINDOW_UPDATE, 0, 0, b"\0\0\1\0") + frame(FrameType.PING, 0, 0, bytes(8))
SETTINGS_ACK = frame(FrameType.SETTINGS, ACK, 0)
FOREIGN_PING_ACK = frame(FrameType.PING, ACK, 0, b"another!")
OUR_PING_ACK = frame(FrameType.PING, ACK, 0, PING_PAYLOAD)
START = PREFACE + EMPTY_SETTINGS
REFUSED = ErrorCode.REFUSED_STREAM.to_bytes(4)


def begun(first: bytes = START + FIRST) -> OneRequest:
    """A client that has asked once and was told."""
    one = OneRequest()
    assert one.receive_data(first) == first
    one.tell()
    assert one.data_to_send() == b""
    return one


def test_the_first_request_and_the_connections_frames_go_on() -> None:
    one = begun()
    said = SETTINGS_ACK + OWN_DATA + CONNECTIONS + FOREIGN_PING_ACK
    assert one.receive_data(said) == said
    assert (one.done, one.refused, one.data_to_send()) == (False, 0, b"")


def test_from_the_ack_on_nothing_is_looked_at() -> None:
    one = begun()
    blind = frame(FrameType.HEADERS, END_HEADERS, 3, OTHERS_BLOCK) + b"no frame"
    assert one.receive_data(OWN_DATA + OUR_PING_ACK + blind) == OWN_DATA + blind
    assert one.done
    assert one.receive_data(b"anything") == b"anything"


def test_an_ack_before_it_was_told_is_not_ours() -> None:
    one = OneRequest()
    early = START + FIRST + OUR_PING_ACK
    assert one.receive_data(early) == early
    assert not one.done


def test_what_it_is_told_stops_new_streams_and_no_word_of_the_satellites() -> None:
    """GOAWAY of 2^31-1 without an error, as §6.8 begins a graceful shutdown; the satellite's may be as high."""
    told = OneRequest().tell()
    size = 9 + int.from_bytes(told[:3])
    assert (told[3], told[9:13], told[13:17]) == (FrameType.GOAWAY, b"\x7f\xff\xff\xff", b"\0\0\0\0")
    assert told[size:] == frame(FrameType.PING, 0, 0, PING_PAYLOAD)


def test_further_requests_are_refused_and_their_window_given_back() -> None:
    one = begun()
    further = [
        frame(FrameType.HEADERS, 0, 3, OTHERS_BLOCK[:4]),
        frame(FrameType.CONTINUATION, END_HEADERS, 3, OTHERS_BLOCK[4:]),
        frame(FrameType.DATA, 0, 3, b"other's"),
        frame(FrameType.DATA, END_STREAM, 3),
        frame(FrameType.WINDOW_UPDATE, 0, 3, b"\0\0\0\1"),
        frame(FrameType.RST_STREAM, 0, 3, bytes(4)),
        frame(FrameType.HEADERS, END_HEADERS, 5, OTHERS_BLOCK),
    ]
    assert one.receive_data(b"".join(further) + OWN_DATA) == OWN_DATA
    assert one.refused == 2
    assert one.data_to_send() == (
        frame(FrameType.RST_STREAM, 0, 3, REFUSED)
        + frame(FrameType.WINDOW_UPDATE, 0, 0, len(b"other's").to_bytes(4))
        + frame(FrameType.RST_STREAM, 0, 5, REFUSED)
    )
    assert one.receive_data(OUR_PING_ACK) == b""
    assert one.done


def test_a_first_block_in_pieces_is_the_firsts() -> None:
    pieces = frame(FrameType.HEADERS, 0, 7, BLOCK[:3]) + frame(FrameType.CONTINUATION, END_HEADERS, 7, BLOCK[3:])
    one = begun(START + pieces)
    assert one.receive_data(frame(FrameType.HEADERS, END_HEADERS, 9, OTHERS_BLOCK)) == b""
    assert one.refused == 1


def test_trailers_go_on_unless_a_block_is_missing_before_them() -> None:
    trailers = frame(FrameType.HEADERS, END_HEADERS | END_STREAM, 1, b"\xbe")
    assert begun().receive_data(trailers) == trailers
    one = begun()
    one.receive_data(frame(FrameType.HEADERS, END_HEADERS, 3, OTHERS_BLOCK))
    with pytest.raises(GreetingError, match="trailers"):
        one.receive_data(trailers)


def test_limits_of_what_is_dropped() -> None:
    one = begun()
    small = frame(FrameType.WINDOW_UPDATE, 0, 3, b"\0\0\0\1")
    assert one.receive_data(small * limits.FURTHER_FRAMES) == b""
    with pytest.raises(GreetingError) as error:
        one.receive_data(small)
    assert error.value.limit == "FURTHER_FRAMES"
    with pytest.raises(GreetingError) as error:
        begun().receive_data((limits.FRAME_BYTES + 1).to_bytes(3) + b"\0\0\0\0\0\3")
    assert error.value.error_code is ErrorCode.FRAME_SIZE_ERROR


FRAMES = st.one_of(
    st.builds(
        frame,
        st.sampled_from([kind for kind in FrameType if kind is not FrameType.PING]),
        st.sampled_from([0, END_STREAM, END_HEADERS, END_HEADERS | END_STREAM]),
        st.sampled_from([0, 1, 3, 5, 7]),
        st.binary(max_size=30),
    ),
    st.sampled_from([OUR_PING_ACK, FOREIGN_PING_ACK, SETTINGS_ACK]),
)


@given(frames=st.lists(FRAMES, max_size=20), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=40))
def test_how_it_is_cut_makes_no_difference_and_no_byte_of_another_stream_goes_on(
    frames: list[bytes], sizes: list[int]
) -> None:
    data = b"".join(frames)

    def outcome(pieces: list[bytes]) -> tuple[bytes, bytes, bool, str]:
        one, out, error = begun(), b"", ""
        try:
            for piece in pieces:
                out += one.receive_data(piece)
        except GreetingError as exc:
            return b"", b"", one.done, str(exc)
        return out, one.data_to_send(), one.done, error

    pieces: list[bytes] = []
    at = 0
    while at < len(data):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(data[at : at + size])
        at += size
    whole = outcome([data])
    assert outcome(pieces) == whole
    if whole[3]:
        return
    acked = frames.index(OUR_PING_ACK) if OUR_PING_ACK in frames else len(frames)
    watched = frames[:acked]
    own = b"".join(each for each in watched if int.from_bytes(each[5:9]) in (0, 1))
    assert whole[0] == own + b"".join(frames[acked + 1 :])
