"""The greeting's states, what may come in each, and which state follows. No other module knows that.

An HTTP/2 client opens with its preface and SETTINGS (RFC 9113 §3.4). Then it sends frames in any order, but a header block
may not be interrupted: after HEADERS without END_HEADERS only CONTINUATION of the same stream may come, until END_HEADERS
(§6.10). One more moment matters to the daemon: the end of the first header block, which says who asks for which satellite.
Before it the client is a stranger. After it the daemon holds the client.

    PREFACE ──PREFACE──▶ SETTINGS ──SETTINGS──▶ OPENING ──HEADERS──▶ HELD
    PREFACE ──NOT_HTTP2──▶ ENDED
    OPENING ──HEADERS_PART──▶ OPENING_BLOCK ──CONTINUATION──▶ HELD
    HELD ──HEADERS_PART──▶ HELD_BLOCK ──CONTINUATION──▶ HELD

Rules. Input that TABLE does not have is a PROTOCOL_ERROR, with the message of `illegal`. A broken rule or limit leads to
ENDED. TABLE knows only one stream: no stream is open before HELD, so DATA and RST_STREAM may not come before it. SHAPES says
how a frame's header alone must look. COUNTED says which limit counts frames of which kind in which state.
"""

import dataclasses
import enum

from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.frames import ACK, END_HEADERS, FrameHeader, FrameType


class State(enum.Enum):
    """The client's state."""

    PREFACE = enum.auto()
    SETTINGS = enum.auto()
    OPENING = enum.auto()
    OPENING_BLOCK = enum.auto()
    HELD = enum.auto()
    HELD_BLOCK = enum.auto()
    ENDED = enum.auto()


class Input(enum.Enum):
    """The kinds of input. The `_PART`s have no END_HEADERS."""

    PREFACE = enum.auto()
    NOT_HTTP2 = enum.auto()
    SETTINGS = enum.auto()
    SETTINGS_ACK = enum.auto()
    PING = enum.auto()
    GOAWAY = enum.auto()
    HEADERS = enum.auto()
    HEADERS_PART = enum.auto()
    CONTINUATION = enum.auto()
    CONTINUATION_PART = enum.auto()
    DATA = enum.auto()
    RST_STREAM = enum.auto()
    PUSH_PROMISE = enum.auto()
    QUIET = enum.auto()
    """WINDOW_UPDATE, PRIORITY, PING ACK and unknown types (RFC 9113 §5.5): they are for the satellite."""


S, I = State, Input  # noqa: E741 - the table reads better so

TABLE: dict[State, dict[Input, State]] = {
    S.PREFACE: {I.PREFACE: S.SETTINGS, I.NOT_HTTP2: S.ENDED},
    S.SETTINGS: {I.SETTINGS: S.OPENING},
    S.OPENING: {
        I.SETTINGS: S.OPENING,
        I.SETTINGS_ACK: S.OPENING,
        I.PING: S.OPENING,
        I.GOAWAY: S.OPENING,
        I.QUIET: S.OPENING,
        I.HEADERS: S.HELD,
        I.HEADERS_PART: S.OPENING_BLOCK,
    },
    S.OPENING_BLOCK: {I.CONTINUATION: S.HELD, I.CONTINUATION_PART: S.OPENING_BLOCK},
    S.HELD: {
        I.SETTINGS: S.HELD,
        I.SETTINGS_ACK: S.HELD,
        I.PING: S.HELD,
        I.GOAWAY: S.HELD,
        I.QUIET: S.HELD,
        I.HEADERS: S.HELD,
        I.HEADERS_PART: S.HELD_BLOCK,
        I.DATA: S.HELD,
        I.RST_STREAM: S.HELD,
    },
    S.HELD_BLOCK: {I.CONTINUATION: S.HELD, I.CONTINUATION_PART: S.HELD_BLOCK},
    S.ENDED: {},
}

REQUEST_SEEN = {S.HELD, S.HELD_BLOCK}
FRAME_STATES = {S.SETTINGS, S.OPENING, S.OPENING_BLOCK, S.HELD, S.HELD_BLOCK}

COUNTED: dict[State, dict[Input, str]] = {
    S.SETTINGS: {I.SETTINGS: "SETTINGS_FRAMES"},
    S.OPENING: {
        I.SETTINGS: "SETTINGS_FRAMES",
        I.PING: "PING_FRAMES",
        I.GOAWAY: "OPENING_FRAMES",
        I.QUIET: "OPENING_FRAMES",
    },
    S.HELD: {
        I.SETTINGS: "SETTINGS_FRAMES",
        I.GOAWAY: "QUIET_FRAMES",
        I.QUIET: "QUIET_FRAMES",
        I.HEADERS: "HELD_HEADERS",
        I.HEADERS_PART: "HELD_HEADERS",
        I.RST_STREAM: "RST_STREAM_FRAMES",
    },
}
"""Counted over the whole greeting. CONTINUATION_FRAMES is counted anew for each block; held PINGs have a rate; DATA counts
by its bytes, or by EMPTY_DATA_FRAMES if it has none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """How a frame's header must look; None: anything is allowed."""

    on_stream: bool | None = None
    """True: on a stream; False: on the connection, which is stream 0."""
    length: int | None = None
    at_least: int = 0
    multiple_of: int = 1


SHAPES: dict[int, Shape] = {
    FrameType.DATA: Shape(on_stream=True),
    FrameType.HEADERS: Shape(on_stream=True),
    FrameType.PRIORITY: Shape(on_stream=True, length=5),
    FrameType.RST_STREAM: Shape(on_stream=True, length=4),
    FrameType.SETTINGS: Shape(on_stream=False, multiple_of=6),
    FrameType.PING: Shape(on_stream=False, length=8),
    FrameType.GOAWAY: Shape(on_stream=False, at_least=8),
    FrameType.WINDOW_UPDATE: Shape(length=4),
    FrameType.CONTINUATION: Shape(on_stream=True),
}
"""By RFC 9113 §6.1 to §6.10. Other types have no rules."""


def classify(header: FrameHeader) -> Input:
    """Return the table's kind of input for a frame."""
    match header.type:
        case FrameType.SETTINGS:
            return I.SETTINGS_ACK if header.flags & ACK else I.SETTINGS
        case FrameType.PING:
            return I.QUIET if header.flags & ACK else I.PING
        case FrameType.HEADERS:
            return I.HEADERS if header.flags & END_HEADERS else I.HEADERS_PART
        case FrameType.CONTINUATION:
            return I.CONTINUATION if header.flags & END_HEADERS else I.CONTINUATION_PART
        case FrameType.DATA:
            return I.DATA
        case FrameType.RST_STREAM:
            return I.RST_STREAM
        case FrameType.GOAWAY:
            return I.GOAWAY
        case FrameType.PUSH_PROMISE:
            return I.PUSH_PROMISE
        case _:
            return I.QUIET


def check_shape(header: FrameHeader) -> None:
    """Raise GreetingError unless the frame's header is as its type must be."""
    shape = SHAPES.get(header.type)
    if shape is None:
        return
    if shape.on_stream is not None and shape.on_stream is not bool(header.stream_id):
        words = f"{FrameType(header.type).name} on stream {header.stream_id}"
        raise GreetingError(ErrorCode.PROTOCOL_ERROR, words)
    acknowledges = header.type == FrameType.SETTINGS and header.flags & ACK
    if (
        (shape.length is not None and header.length != shape.length)
        or header.length < shape.at_least
        or header.length % shape.multiple_of
        or (acknowledges and header.length)
    ):
        words = f"{FrameType(header.type).name} of {header.length} bytes"
        raise GreetingError(ErrorCode.FRAME_SIZE_ERROR, words)


def illegal(state: State, seen: Input) -> GreetingError:
    """Make the error for input that the table does not have."""
    if seen is I.PUSH_PROMISE:
        words = "PUSH_PROMISE from a client"
    elif state is S.SETTINGS:
        words = "the first frame must be SETTINGS"
    elif state in (S.OPENING_BLOCK, S.HELD_BLOCK) or seen in (I.CONTINUATION, I.CONTINUATION_PART):
        words = "a header block must be contiguous"
    elif state is S.OPENING:
        words = f"{seen.name} on an idle stream"
    else:
        words = "bytes after the end"
    return GreetingError(ErrorCode.PROTOCOL_ERROR, words)
