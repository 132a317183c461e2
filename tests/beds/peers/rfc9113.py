"""RFC 9113's rules for frames, as cases: what is sent before the splice, and what has to come of it.

`opening` is what comes of it right behind the client's SETTINGS, `held` behind a request on stream 1 that is not ended:
the error code of the GOAWAY, or None if it is accepted, which means kept for the satellite byte by byte. Errors of one
stream end the connection, as they may (§5.4.1); what depends on the satellite's own SETTINGS or on later header blocks,
which nobody decodes, is the satellite's to judge and is accepted here.
"""

import dataclasses

from beds.http2 import EMPTY_SETTINGS
from bentpipe.proto.errors import ErrorCode
from bentpipe.proto.frames import ACK, END_HEADERS, END_STREAM, PADDED, PREFACE, PRIORITY_FLAG, FrameType, frame

PROTOCOL, SIZE, FLOW = ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR, ErrorCode.FLOW_CONTROL_ERROR
COMPRESSION = ErrorCode.COMPRESSION_ERROR

POST = b"\x83"
"""The header block ":method: POST", by the static table (RFC 7541, appendix A)."""
LARGEST_FRAME = 1 << 14
LARGEST_WINDOW = (1 << 31) - 1
PRIORITY_FIELDS = b"\0\0\0\0\x10"
UNKNOWN_TYPE = 0xFA
RESERVED_BIT = 1 << 31


@dataclasses.dataclass(frozen=True)
class Case:
    section: str
    words: str
    sent: bytes
    opening: ErrorCode | None
    held: ErrorCode | None

    def __str__(self) -> str:
        return f"{self.section} {self.words}"


def raw(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """A frame of any type, and of any length that it claims to have."""
    size = len(payload) if length is None else length
    return size.to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def headers(stream: int, block: bytes = POST, flags: int = END_HEADERS) -> bytes:
    return frame(FrameType.HEADERS, flags, stream, block)


def continuation(stream: int, flags: int = END_HEADERS, block: bytes = POST) -> bytes:
    return frame(FrameType.CONTINUATION, flags, stream, block)


def data(stream: int, payload: bytes = b"x", flags: int = 0) -> bytes:
    return frame(FrameType.DATA, flags, stream, payload)


def setting(number: int, value: int) -> bytes:
    return frame(FrameType.SETTINGS, 0, 0, number.to_bytes(2) + value.to_bytes(4))


def window(stream: int, increment: int) -> bytes:
    return frame(FrameType.WINDOW_UPDATE, 0, stream, increment.to_bytes(4))


def reset(stream: int) -> bytes:
    return frame(FrameType.RST_STREAM, 0, stream, bytes(4))


WITHOUT_SETTINGS = [
    Case("3.4", "SETTINGS must be first: PING", frame(FrameType.PING, 0, 0, bytes(8)), PROTOCOL, None),
    Case("3.4", "SETTINGS must be first: HEADERS", headers(1), PROTOCOL, None),
    Case("3.4", "an ACK does not count as SETTINGS", frame(FrameType.SETTINGS, ACK, 0), PROTOCOL, None),
    Case("3.4", "SETTINGS may be empty", EMPTY_SETTINGS, None, None),
]
"""These come right behind the preface; `held` means nothing here."""

CASES = [
    # 4: frames
    Case("4.1", "an unknown type is ignored", raw(UNKNOWN_TYPE, 0xFF, 0, b"x"), None, None),
    Case("4.1", "an unknown type on any stream", raw(UNKNOWN_TYPE, 0, 9, b"x"), None, None),
    Case("4.1", "undefined flags are ignored", raw(FrameType.WINDOW_UPDATE, 0xFF, 0, b"\0\0\0\1"), None, None),
    Case("4.1", "the reserved bit of a stream's number", headers(3 | RESERVED_BIT), None, None),
    Case("4.1", "the reserved bit of an increment", window(0, 1 | RESERVED_BIT), None, None),
    Case("4.2", "the largest frame", raw(UNKNOWN_TYPE, 0, 0, bytes(LARGEST_FRAME)), None, None),
    Case("4.2", "a larger one, of any type", raw(UNKNOWN_TYPE, 0, 0, length=LARGEST_FRAME + 1), SIZE, SIZE),
    Case("4.2", "larger DATA", raw(FrameType.DATA, 0, 1, length=LARGEST_FRAME + 1), SIZE, SIZE),
    Case("4.2", "larger HEADERS", raw(FrameType.HEADERS, 0, 3, length=LARGEST_FRAME + 1), SIZE, SIZE),
    Case("4.2", "larger SETTINGS", raw(FrameType.SETTINGS, 0, 0, length=6 * 2731), SIZE, SIZE),
    Case("4.3", "a block that HPACK does not allow", headers(3, b"\x80"), COMPRESSION, None),
    Case("4.3", "a block that ends within a field", headers(3, b"\x40\x05ab"), COMPRESSION, None),
    Case("4.3", "a table size update behind a field", headers(3, POST + b"\x20"), COMPRESSION, None),
    Case("4.3", "an index beyond the table", headers(3, b"\xff\x00"), COMPRESSION, None),
    # 5: streams
    Case("5.1", "DATA on an idle stream", data(5), PROTOCOL, PROTOCOL),
    Case("5.1", "DATA on a server's stream", headers(3) + data(2), PROTOCOL, PROTOCOL),
    Case("5.1", "DATA on an open stream", data(1), PROTOCOL, None),
    Case("5.1", "RST_STREAM on an idle stream", reset(5), PROTOCOL, PROTOCOL),
    Case("5.1", "RST_STREAM on a server's stream", headers(3) + reset(2), PROTOCOL, PROTOCOL),
    Case("5.1", "RST_STREAM on an open stream", reset(1), PROTOCOL, None),
    Case("5.1", "RST_STREAM twice", headers(3) + reset(3) + reset(3), None, None),
    Case("5.1", "WINDOW_UPDATE on an idle stream", window(5, 1), PROTOCOL, PROTOCOL),
    Case("5.1", "WINDOW_UPDATE on a server's stream", headers(3) + window(2, 1), PROTOCOL, PROTOCOL),
    Case("5.1", "WINDOW_UPDATE on an open stream", window(1, 1), PROTOCOL, None),
    Case("5.1", "WINDOW_UPDATE on a closed stream", headers(3) + reset(3) + window(3, 1), None, None),
    Case("5.1", "PRIORITY on an idle stream", frame(FrameType.PRIORITY, 0, 7, PRIORITY_FIELDS), None, None),
    Case("5.1", "DATA behind END_STREAM (satellite)", headers(3, flags=END_HEADERS | END_STREAM) + data(3), None, None),
    Case("5.1", "DATA behind RST_STREAM (satellite)", headers(3) + reset(3) + data(3), None, None),
    Case("5.1.1", "a client's stream with an even number", headers(2), PROTOCOL, PROTOCOL),
    Case("5.1.1", "numbers may be left out", headers(101), None, None),
    Case("5.1.1", "a number below one before it (satellite)", headers(9) + headers(7), None, None),
    Case("5.5", "an unknown type within a block", headers(3, flags=0) + raw(UNKNOWN_TYPE, 0, 3), PROTOCOL, PROTOCOL),
    # 6.1: DATA
    Case("6.1", "DATA on stream 0", data(0), PROTOCOL, PROTOCOL),
    Case("6.1", "padding", headers(3) + data(3, b"\2x\0\0", PADDED), None, None),
    Case("6.1", "nothing but padding", headers(3) + data(3, b"\2\0\0", PADDED), None, None),
    Case("6.1", "padding longer than the rest", headers(3) + data(3, b"\3x\0", PADDED), PROTOCOL, PROTOCOL),
    Case("6.1", "padded, without the padding's length", headers(3) + data(3, b"", PADDED), SIZE, SIZE),
    # 6.2: HEADERS
    Case("6.2", "HEADERS on stream 0", headers(0), PROTOCOL, PROTOCOL),
    Case("6.2", "padding", headers(3, b"\1" + POST + b"\0", END_HEADERS | PADDED), None, None),
    Case("6.2", "priority", headers(3, PRIORITY_FIELDS + POST, END_HEADERS | PRIORITY_FLAG), None, None),
    Case("6.2", "padding longer than the rest", headers(3, b"\1", END_HEADERS | PADDED), PROTOCOL, PROTOCOL),
    Case("6.2", "padded, without the padding's length", headers(3, b"", END_HEADERS | PADDED), SIZE, SIZE),
    Case("6.2", "half a priority", headers(3, b"\0\0\0", END_HEADERS | PRIORITY_FLAG), SIZE, SIZE),
    Case("6.2", "HEADERS within a block", headers(3, flags=0) + headers(5), PROTOCOL, PROTOCOL),
    # 6.3: PRIORITY
    Case("6.3", "PRIORITY on stream 0", frame(FrameType.PRIORITY, 0, 0, PRIORITY_FIELDS), PROTOCOL, PROTOCOL),
    Case("6.3", "of 4 bytes", frame(FrameType.PRIORITY, 0, 3, bytes(4)), SIZE, SIZE),
    Case("6.3", "of 6 bytes", frame(FrameType.PRIORITY, 0, 3, bytes(6)), SIZE, SIZE),
    Case("6.3", "within a block", headers(3, flags=0) + raw(FrameType.PRIORITY, 0, 3, bytes(5)), PROTOCOL, PROTOCOL),
    # 6.4: RST_STREAM
    Case("6.4", "RST_STREAM on stream 0", reset(0), PROTOCOL, PROTOCOL),
    Case("6.4", "of 3 bytes", headers(3) + frame(FrameType.RST_STREAM, 0, 3, bytes(3)), SIZE, SIZE),
    Case("6.4", "of 5 bytes", headers(3) + frame(FrameType.RST_STREAM, 0, 3, bytes(5)), SIZE, SIZE),
    # 6.5: SETTINGS
    Case("6.5", "SETTINGS on a stream", frame(FrameType.SETTINGS, 0, 1), PROTOCOL, PROTOCOL),
    Case("6.5", "half an entry", frame(FrameType.SETTINGS, 0, 0, bytes(3)), SIZE, SIZE),
    Case("6.5", "an ACK with a payload", frame(FrameType.SETTINGS, ACK, 0, bytes(6)), SIZE, SIZE),
    Case("6.5.2", "ENABLE_PUSH 1", setting(2, 1), None, None),
    Case("6.5.2", "ENABLE_PUSH 2", setting(2, 2), PROTOCOL, PROTOCOL),
    Case("6.5.2", "MAX_CONCURRENT_STREAMS 0", setting(3, 0), None, None),
    Case("6.5.2", "INITIAL_WINDOW_SIZE, the largest", setting(4, LARGEST_WINDOW), None, None),
    Case("6.5.2", "INITIAL_WINDOW_SIZE, one more", setting(4, LARGEST_WINDOW + 1), FLOW, FLOW),
    Case("6.5.2", "MAX_FRAME_SIZE, the least", setting(5, LARGEST_FRAME), None, None),
    Case("6.5.2", "MAX_FRAME_SIZE, one less", setting(5, LARGEST_FRAME - 1), PROTOCOL, PROTOCOL),
    Case("6.5.2", "MAX_FRAME_SIZE, the largest", setting(5, (1 << 24) - 1), None, None),
    Case("6.5.2", "MAX_FRAME_SIZE, one more", setting(5, 1 << 24), PROTOCOL, PROTOCOL),
    Case("6.5.2", "an unknown setting is ignored", setting(0x9A9A, 0xFFFFFFFF), None, None),
    Case("6.5.3", "an ACK of nothing", frame(FrameType.SETTINGS, ACK, 0), PROTOCOL, PROTOCOL),
    # 6.6 to 6.8: PUSH_PROMISE, PING, GOAWAY
    Case(
        "6.6", "PUSH_PROMISE from a client", frame(FrameType.PUSH_PROMISE, END_HEADERS, 1, bytes(5)), PROTOCOL, PROTOCOL
    ),
    Case("6.7", "PING on a stream", frame(FrameType.PING, 0, 1, bytes(8)), PROTOCOL, PROTOCOL),
    Case("6.7", "PING of 7 bytes", frame(FrameType.PING, 0, 0, bytes(7)), SIZE, SIZE),
    Case("6.7", "an answer to no PING", frame(FrameType.PING, ACK, 0, bytes(8)), None, None),
    Case("6.8", "GOAWAY on a stream", frame(FrameType.GOAWAY, 0, 1, bytes(8)), PROTOCOL, PROTOCOL),
    Case("6.8", "GOAWAY of 7 bytes", frame(FrameType.GOAWAY, 0, 0, bytes(7)), SIZE, SIZE),
    # 6.9: WINDOW_UPDATE
    Case("6.9", "an increment of 0", window(0, 0), PROTOCOL, PROTOCOL),
    Case("6.9", "an increment of 0 on a stream", headers(3) + window(3, 0), PROTOCOL, PROTOCOL),
    Case("6.9", "of 3 bytes", frame(FrameType.WINDOW_UPDATE, 0, 0, bytes(3)), SIZE, SIZE),
    Case("6.9.1", "the largest window", window(0, LARGEST_WINDOW - 65_535), None, None),
    Case("6.9.1", "one more", window(0, LARGEST_WINDOW - 65_534), FLOW, FLOW),
    Case("6.9.1", "one more, in two", window(0, LARGEST_WINDOW - 65_535) + window(0, 1), FLOW, FLOW),
    Case("6.9.1", "one more on a stream (satellite)", headers(3) + window(3, LARGEST_WINDOW), None, None),
    Case("6.9.1", "more DATA than the window", headers(3) + data(3, bytes(LARGEST_FRAME)) * 4, FLOW, FLOW),
    Case("6.9.1", "as much DATA as the window", headers(3) + data(3, bytes(13_107)) * 5, None, None),
    # 6.10: CONTINUATION
    Case("6.10", "a block in three frames", headers(3, flags=0) + continuation(3, 0) + continuation(3), None, None),
    Case("6.10", "CONTINUATION without HEADERS", continuation(1), PROTOCOL, PROTOCOL),
    Case("6.10", "behind END_HEADERS", headers(3) + continuation(3), PROTOCOL, PROTOCOL),
    Case("6.10", "behind CONTINUATION's END_HEADERS", headers(3, flags=0) + continuation(3) * 2, PROTOCOL, PROTOCOL),
    Case("6.10", "behind DATA", headers(3) + data(3) + continuation(3), PROTOCOL, PROTOCOL),
    Case("6.10", "on another stream", headers(3, flags=0) + continuation(5), PROTOCOL, PROTOCOL),
    Case("6.10", "on stream 0", headers(3, flags=0) + continuation(0), PROTOCOL, PROTOCOL),
    # 8: requests; only the first is decoded, and who is asked judges it
    Case("8.1", "trailers", headers(3) + headers(3, flags=END_HEADERS | END_STREAM), None, None),
    Case("8.2.1", "a field name in upper case (satellite)", headers(3, b"\x40\1A\1b"), None, None),
    Case("8.3.1", "no :path (satellite)", headers(3, POST), None, None),
]

OPENING = PREFACE + EMPTY_SETTINGS
HELD = OPENING + headers(1)
