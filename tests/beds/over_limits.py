"""A client at each limit of proto/limits.py that holds for a greeting, and one past it."""

import dataclasses

import hpack

from beds.http2 import EMPTY_SETTINGS
from bentpipe.proto import limits
from bentpipe.proto.errors import ErrorCode
from bentpipe.proto.frames import END_HEADERS, PREFACE, FrameType, frame

START = PREFACE + EMPTY_SETTINGS
PING = frame(FrameType.PING, 0, 0, bytes(8))
WINDOW_UPDATE = frame(FrameType.WINDOW_UPDATE, 0, 0, b"\0\0\0\1")
PRIORITY = frame(FrameType.PRIORITY, 0, 3, b"\0\0\0\5\1")
UNKNOWN = b"\0\0\1\xfa\0\0\0\0\0x"
RST = frame(FrameType.RST_STREAM, 0, 1, bytes(4))
POST = b"\x83"
REQUEST = frame(FrameType.HEADERS, END_HEADERS, 1, POST)
EMPTY_DATA = frame(FrameType.DATA, 0, 1)


def block(content: bytes, stream: int = 1) -> bytes:
    """HEADERS and as many CONTINUATIONs as it takes."""
    parts = [content[at : at + limits.FRAME_BYTES] for at in range(0, len(content), limits.FRAME_BYTES)]
    out = b""
    for number, part in enumerate(parts):
        kind = FrameType.CONTINUATION if number else FrameType.HEADERS
        out += frame(kind, END_HEADERS if number == len(parts) - 1 else 0, stream, part)
    return out


def continuations(count: int) -> bytes:
    last = frame(FrameType.CONTINUATION, END_HEADERS, 1)
    return frame(FrameType.HEADERS, 0, 1, POST) + frame(FrameType.CONTINUATION, 0, 1) * (count - 1) + last


def block_of(size: int) -> bytes:
    """A header block of exactly so many bytes, without Huffman coding."""
    overhead = len(hpack.Encoder().encode([("k", "")], huffman=False))
    value = b"v" * (size - overhead - 3)  # its length takes three bytes more than that of nothing
    made = hpack.Encoder().encode([(b"k", value)], huffman=False)
    assert len(made) == size
    return made


def list_of(size: int) -> bytes:
    """A header block that decodes to exactly so many bytes as RFC 9113 counts."""
    return hpack.Encoder().encode([(b"k", b"a" * (size - 32 - 1))], huffman=True)


def table_size(value: int) -> bytes:
    """A dynamic table size update (RFC 7541 §6.3), which in a block comes first."""
    rest = value - 31
    return bytes((0x3F, 0x80 | rest & 0x7F, rest >> 7)) + POST


def greeting_bytes(size: int) -> bytes:
    """An opening that is so long when its header block is still not complete: three frames, and a part of a fourth."""
    filler = b"\0\x40\0\xfa\0\0\0\0\0" + bytes(0x4000)
    return (START + filler * 4)[:size]


@dataclasses.dataclass(frozen=True)
class Case:
    limit: str
    at_limit: bytes
    past_it: bytes
    code: ErrorCode = ErrorCode.ENHANCE_YOUR_CALM

    @classmethod
    def count(cls, limit: str, before: bytes, each: bytes, already: int = 0) -> "Case":
        number = getattr(limits, limit) - already
        return cls(limit, before + each * number, before + each * (number + 1))


HELD = START + REQUEST
CASES = [
    Case(
        "FRAME_BYTES",
        START + b"\0\x40\0\xfa\0\0\0\0\0" + bytes(limits.FRAME_BYTES),
        START + b"\0\x40\1\xfa\0\0\0\0\0",
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    Case("CONTINUATION_FRAMES", START + continuations(8), START + continuations(9)),
    Case("CONTINUATION_FRAMES", HELD + continuations(8), HELD + continuations(9)),
    Case(
        "HEADER_BLOCK_BYTES",
        START + block(block_of(limits.HEADER_BLOCK_BYTES)),
        START + block(block_of(limits.HEADER_BLOCK_BYTES + 1)),
    ),
    Case(
        "HEADER_BLOCK_BYTES",
        HELD + block(bytes(limits.HEADER_BLOCK_BYTES), 3),
        HELD + block(bytes(limits.HEADER_BLOCK_BYTES + 1), 3),
    ),
    Case.count("SETTINGS_FRAMES", PREFACE, EMPTY_SETTINGS),
    Case.count("SETTINGS_FRAMES", HELD, EMPTY_SETTINGS, already=1),
    Case(
        "SETTINGS_ENTRIES",
        PREFACE + frame(FrameType.SETTINGS, 0, 0, bytes(6 * 32)),
        PREFACE + frame(FrameType.SETTINGS, 0, 0, bytes(6 * 33)),
    ),
    Case("GREETING_BYTES", greeting_bytes(limits.GREETING_BYTES), greeting_bytes(limits.GREETING_BYTES + 1)),
    Case.count("OPENING_FRAMES", START, WINDOW_UPDATE),
    Case.count("OPENING_FRAMES", START, PRIORITY),
    Case.count("OPENING_FRAMES", START, UNKNOWN),
    Case.count("PING_FRAMES", START, PING),
    Case(
        "HEADER_LIST_BYTES",
        START + block(list_of(limits.HEADER_LIST_BYTES)),
        START + block(list_of(limits.HEADER_LIST_BYTES + 1)),
    ),
    Case("HEADER_FIELDS", START + block(POST * 100), START + block(POST * 101)),
    Case(
        "TABLE_SIZE_UPDATES",
        START + block(b"\x20\x3f\xe1\x1f" + POST),
        START + block(b"\x20\x20\x3f\xe1\x1f" + POST),
        ErrorCode.COMPRESSION_ERROR,
    ),
    Case(
        "HPACK_INTEGER_BYTES",
        START + block(b"\x3f" + b"\x80" * 4 + b"\0" + POST),
        START + block(b"\x3f" + b"\x80" * 5 + b"\0" + POST),
        ErrorCode.COMPRESSION_ERROR,
    ),
    Case("TABLE_BYTES", START + block(table_size(4096)), START + block(table_size(4097)), ErrorCode.COMPRESSION_ERROR),
    Case(
        "WINDOW_BYTES",
        HELD + frame(FrameType.DATA, 0, 1, bytes(16_383)) * 4 + frame(FrameType.DATA, 0, 1, bytes(3)),
        HELD + frame(FrameType.DATA, 0, 1, bytes(16_384)) * 4,
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    Case.count("HELD_HEADERS", HELD, frame(FrameType.HEADERS, END_HEADERS, 3)),
    Case.count("RST_STREAM_FRAMES", HELD, RST),
    Case.count("QUIET_FRAMES", HELD, WINDOW_UPDATE),
    Case.count("QUIET_FRAMES", HELD, PRIORITY),
    Case.count("QUIET_FRAMES", HELD, UNKNOWN),
    Case.count("EMPTY_DATA_FRAMES", HELD, EMPTY_DATA),
    Case.count("PING_BURST", HELD, PING),
]
