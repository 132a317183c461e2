"""Frames of HTTP/2 (RFC 9113), messages of gRPC and fields of protobuf: what a server and a client both need of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Union

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 1
END_HEADERS, PADDED, HAS_PRIORITY = 4, 8, 32
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
MAX_FRAME = 16384
"""SETTINGS_MAX_FRAME_SIZE, at its default, of either side."""
DEFAULT_WINDOW = 65535
MAX_WINDOW = (1 << 31) - 1
PREFIX_BYTES = 5
"""gRPC's Length-Prefixed-Message: a compressed flag and four bytes of length (doc/PROTOCOL-HTTP2.md)."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""The wire types of protobuf that are in use."""

Value = Union[None, int, float, str, bytes, list[str], list[bytes]]
Fields = list[tuple[int, Value]]


class WireError(Exception):
    """Bytes that are not what their protocol says."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def read_head(buffer: bytearray) -> tuple[int, int, int, int]:
    """Read the first nine bytes: length, type, flags, stream."""
    high, low, kind, flags, stream = struct.unpack_from(">BHBBI", buffer)
    return high << 16 | low, kind, flags, stream & MAX_WINDOW


def grpc_message(data: bytes) -> bytes:
    """Put gRPC's prefix before a message that is not compressed."""
    return struct.pack(">BI", 0, len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_fields(fields: Fields) -> bytes:
    """Encode a message of protobuf. None is left out, an int is a varint, a float a double, each of a list a field."""
    out = b""
    for number, value in fields:
        if isinstance(value, list):
            out += encode_fields([(number, each) for each in value])
        elif isinstance(value, float):
            out += _varint(number << 3 | FIXED64) + struct.pack("<d", value)
        elif isinstance(value, int):
            out += _varint(number << 3 | VARINT) + _varint(value)
        elif value is not None:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | BYTES) + _varint(len(data)) + data
    return out


def decode_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Read the fields of a message, of which the end may be missing: the last value is then what there is of it.

    Raises WireError for what no message begins with.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while at < len(data):
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value
            if shift > 63:
                raise WireError("a number in a message is too long")
        return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == VARINT:
            yield key >> 3, varint()
        elif kind in (BYTES, FIXED64, FIXED32):
            length = varint() if kind == BYTES else 8 if kind == FIXED64 else 4
            yield key >> 3, data[at : at + length]
            at += length
        else:
            raise WireError("a message has a field of an unknown type")
