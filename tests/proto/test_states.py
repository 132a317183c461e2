"""The greeting's table: what its diagram says, what RFC 9113 says of frames, and that nothing leads out of the end."""

import re
from operator import attrgetter

import pytest

from beds.http2 import EMPTY_SETTINGS
from bentpipe.proto import limits, states
from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.frames import ACK, END_HEADERS, PREFACE, FrameType, frame
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.states import COUNTED, FRAME_STATES, SHAPES, TABLE, Input, State

ARROW = re.compile(r"(?=\b([A-Z_0-9]+) ──([A-Z_0-9]+)──▶ ([A-Z_]+))")
BEGIN = PREFACE + EMPTY_SETTINGS
POST = b"\x83"
WAY_TO = {
    State.SETTINGS: PREFACE,
    State.OPENING: BEGIN,
    State.OPENING_BLOCK: BEGIN + frame(FrameType.HEADERS, 0, 1, POST),
    State.HELD: BEGIN + frame(FrameType.HEADERS, END_HEADERS, 1, POST),
    State.HELD_BLOCK: BEGIN + frame(FrameType.HEADERS, END_HEADERS, 1, POST) + frame(FrameType.HEADERS, 0, 3, POST),
}
FRAMES = {
    Input.SETTINGS: EMPTY_SETTINGS,
    Input.PING: frame(FrameType.PING, 0, 0, bytes(8)),
    Input.GOAWAY: frame(FrameType.GOAWAY, 0, 0, bytes(8)),
    Input.HEADERS: frame(FrameType.HEADERS, END_HEADERS, 3, POST),
    Input.HEADERS_PART: frame(FrameType.HEADERS, 0, 3, POST),
    Input.CONTINUATION: frame(FrameType.CONTINUATION, END_HEADERS, 3, POST),
    Input.CONTINUATION_PART: frame(FrameType.CONTINUATION, 0, 3, POST),
    Input.DATA: frame(FrameType.DATA, 0, 1, b"x"),
    Input.RST_STREAM: frame(FrameType.RST_STREAM, 0, 1, bytes(4)),
    Input.PUSH_PROMISE: frame(FrameType.PUSH_PROMISE, 0, 1, bytes(4)),
    Input.QUIET: frame(FrameType.WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
}


def arrows() -> list[tuple[State, Input, State]]:
    return [(State[a], Input[b], State[c]) for a, b, c in ARROW.findall(states.__doc__ or "")]


def test_the_diagram_says_what_the_table_says() -> None:
    for before, seen, after in arrows():
        assert TABLE[before][seen] is after


def test_the_diagram_has_every_change_of_state() -> None:
    changes = {(a, c) for a, row in TABLE.items() for c in row.values() if a is not c}
    assert changes == {(a, c) for a, _, c in arrows()}


def test_every_state_has_its_row_and_the_end_has_no_way_out() -> None:
    assert set(TABLE) == set(State)
    assert TABLE[State.ENDED] == {}


def test_what_is_counted_can_come_and_its_limit_exists() -> None:
    for state, row in COUNTED.items():
        for seen, name in row.items():
            assert seen in TABLE[state]
            assert isinstance(getattr(limits, name), int)


@pytest.mark.parametrize("state", sorted(FRAME_STATES, key=attrgetter("value")))
@pytest.mark.parametrize("seen", FRAMES)
def test_every_frame_in_every_state(state: State, seen: Input) -> None:
    """The greeting itself, driven by bytes, does what the table says."""
    greeting = Greeting()
    greeting.receive_data(WAY_TO[state], 0.0)
    assert greeting.state is state
    sent = FRAMES[seen]
    if state is State.OPENING_BLOCK:
        sent = sent[:5] + b"\0\0\0\1" + sent[9:] if sent[3] == FrameType.CONTINUATION else sent
    if seen in TABLE[state]:
        greeting.receive_data(sent, 0.0)
        assert greeting.state is TABLE[state][seen]
    else:
        with pytest.raises(GreetingError) as error:
            greeting.receive_data(sent, 0.0)
        assert error.value.error_code is ErrorCode.PROTOCOL_ERROR
        assert greeting.state is State.ENDED


WRONG_LENGTHS = [
    (FrameType.PRIORITY, 0, 1, 4),
    (FrameType.PRIORITY, 0, 1, 6),
    (FrameType.RST_STREAM, 0, 1, 3),
    (FrameType.RST_STREAM, 0, 1, 5),
    (FrameType.SETTINGS, 0, 0, 5),
    (FrameType.SETTINGS, ACK, 0, 6),
    (FrameType.PING, 0, 0, 7),
    (FrameType.PING, ACK, 0, 9),
    (FrameType.GOAWAY, 0, 0, 7),
    (FrameType.WINDOW_UPDATE, 0, 0, 3),
    (FrameType.WINDOW_UPDATE, 0, 1, 5),
]


@pytest.mark.parametrize(("kind", "flags", "stream", "length"), WRONG_LENGTHS)
def test_lengths_of_rfc_9113(kind: FrameType, flags: int, stream: int, length: int) -> None:
    with pytest.raises(GreetingError) as error:
        Greeting().receive_data(WAY_TO[State.HELD] + frame(kind, flags, stream, bytes(length)), 0.0)
    assert error.value.error_code is ErrorCode.FRAME_SIZE_ERROR


@pytest.mark.parametrize("kind", [kind for kind, shape in SHAPES.items() if shape.on_stream is not None])
def test_streams_of_rfc_9113(kind: FrameType) -> None:
    wrong = 0 if SHAPES[kind].on_stream else 1
    length = SHAPES[kind].length or SHAPES[kind].at_least
    with pytest.raises(GreetingError) as error:
        Greeting().receive_data(WAY_TO[State.HELD] + frame(kind, 0, wrong, bytes(length)), 0.0)
    assert error.value.error_code is ErrorCode.PROTOCOL_ERROR


def test_frames_are_refused_by_their_header_before_their_payload_comes() -> None:
    for sent in (b"\0\x10\0\x05\0\0\0\0\1", b"\0\0\5\x04\0\0\0\0\0", b"\0\x10\0\x00\0\0\0\0\0"):
        with pytest.raises(GreetingError):
            Greeting().receive_data(BEGIN + sent, 0.0)


def test_goaway_lets_open_streams_finish_unless_it_is_an_error() -> None:
    held = Greeting()
    held.receive_data(WAY_TO[State.HELD] + frame(FrameType.GOAWAY, 0, 0, bytes(8)), 0.0)
    assert not held.leaving
    held.receive_data(frame(FrameType.RST_STREAM, 0, 1, bytes(4)), 0.0)
    assert held.leaving
    failing = Greeting()
    failing.receive_data(WAY_TO[State.HELD] + frame(FrameType.GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\2"), 0.0)
    assert failing.leaving


def test_a_client_that_reset_every_stream_is_still_there() -> None:
    """Its next request may come at once, on this connection: a deadline that passed, and the caller's second attempt."""
    greeting = Greeting()
    greeting.receive_data(WAY_TO[State.HELD] + frame(FrameType.RST_STREAM, 0, 1, bytes(4)), 0.0)
    assert not greeting.open_streams
    assert not greeting.leaving
    greeting.receive_data(frame(FrameType.HEADERS, END_HEADERS, 3, POST), 0.0)
    assert greeting.open_streams == (3,)
