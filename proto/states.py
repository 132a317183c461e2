"""The greeting's states, what may come in each and where it leads. This is the only place where that is said.

An HTTP/2 client opens with its preface and SETTINGS (RFC 9113 §3.4), then sends frames in any order, of which only a
header block cannot be interrupted: HEADERS without END_HEADERS is followed by CONTINUATION of the same stream until
END_HEADERS, and by nothing else (§6.10). One more point matters to us, and to nobody else: the end of its first header
block, which says who asks for which satellite. Before it the client is a stranger, after it we hold it.

    PREFACE ──PREFACE──▶ SETTINGS ──SETTINGS──▶ OPENING ──HEADERS──▶ HELD
    PREFACE ──NOT_HTTP2──▶ ENDED
    OPENING ──HEADERS_PART──▶ OPENING_BLOCK ──CONTINUATION──▶ HELD
    HELD ──HEADERS_PART──▶ HELD_BLOCK ──CONTINUATION──▶ HELD

Rules. What TABLE does not have is a PROTOCOL_ERROR, in the words of `illegal`; what breaks any rule or limit leads to
ENDED. TABLE knows no streams but one: none is open before HELD, so DATA and RST_STREAM have no place before it.
SHAPES is what a frame's header alone must look like, COUNTED which limit counts frames of which kind in which state.
"""

import dataclasses
import enum

from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.frames import ACK, END_HEADERS, FrameHeader, FrameType


class State(enum.Enum):
    """Where the client is."""

    PREFACE = enum.auto()
    SETTINGS = enum.auto()
    OPENING = enum.auto()
    OPENING_BLOCK = enum.auto()
    HELD = enum.auto()
    HELD_BLOCK = enum.auto()
    ENDED = enum.auto()


class Input(enum.Enum):
    """What can come. The `_PART`s are without END_HEADERS."""

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
    """WINDOW_UPDATE, PRIORITY, PING ACK and unknown types (RFC 9113 §5.5): the satellite's business."""


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
    """What a frame's header must look like; None: anything goes."""

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
"""RFC 9113 §6.1 to §6.10; of other types nothing is known."""


def classify(header: FrameHeader) -> Input:
    """Say what a frame is to the table."""
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
    """The error for what the table does not have."""
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
