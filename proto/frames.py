"""Frames of RFC 9113 §4.1: the 9-byte header, types and flags."""

import dataclasses
import enum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The client's connection preface (RFC 9113 §3.4)."""
HEADER_BYTES = 9
ACK = 0x1
END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20
STREAM_MASK = 0x7FFFFFFF


class FrameType(enum.IntEnum):
    """Frame types of RFC 9113 §6."""

    DATA = 0x0
    HEADERS = 0x1
    PRIORITY = 0x2
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PUSH_PROMISE = 0x5
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9


@dataclasses.dataclass(frozen=True, slots=True)
class FrameHeader:
    """Length of the payload in bytes, type, flags and stream."""

    length: int
    type: int
    flags: int
    stream_id: int


def parse_header(data: bytes | bytearray | memoryview) -> FrameHeader:
    """Read the first 9 bytes."""
    return FrameHeader(int.from_bytes(data[0:3]), data[3], data[4], int.from_bytes(data[5:9]) & STREAM_MASK)


def frame(kind: FrameType, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Build a frame."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream_id.to_bytes(4) + payload
