"""Walks over an HPACK block without decoding it, so that a small block that is costly to decode is refused before.

One byte of HPACK can cost a decoder as much as a whole header field, or resize its table (RFC 7541 §6). The `hpack` library
bounds a block's fields by their bytes only, and does not bound size updates. This module skips strings, so it costs a
microsecond for each field, and there are at most HEADER_FIELDS. The decoder reports malformed blocks.
"""

from bentpipe.proto import limits
from bentpipe.proto.errors import ErrorCode, GreetingError, over

INDEXED, INDEXED_PREFIX = 0x80, 0x7F
LITERAL_INDEXED, LITERAL_INDEXED_PREFIX = 0x40, 0x3F
SIZE_UPDATE, SIZE_UPDATE_PREFIX = 0x20, 0x1F
LITERAL_PREFIX = 0x0F
LENGTH_PREFIX = 0x7F
MORE = 0x80


def check_block(block: bytes | bytearray) -> int:
    """Count the fields of a complete header block. Raises GreetingError over a limit, and if RFC 7541 §4.2 is broken."""
    at, end, fields, updates = 0, len(block), 0, 0
    while at < end:
        first = block[at]
        if first & INDEXED:
            _, at = _integer(block, at, INDEXED_PREFIX)
        elif first & LITERAL_INDEXED or not first & SIZE_UPDATE:
            name, at = _integer(block, at, LITERAL_INDEXED_PREFIX if first & LITERAL_INDEXED else LITERAL_PREFIX)
            if not name:
                at = _string(block, at)
            at = _string(block, at)
        else:
            _, at = _integer(block, at, SIZE_UPDATE_PREFIX)
            updates += 1
            if fields:
                raise GreetingError(ErrorCode.COMPRESSION_ERROR, "a table size update behind a field (RFC 7541 §4.2)")
            if updates > limits.TABLE_SIZE_UPDATES:
                raise _malformed("TABLE_SIZE_UPDATES")
            continue
        fields += 1
        if fields > limits.HEADER_FIELDS:
            raise over("HEADER_FIELDS")
    return fields


def _integer(block: bytes | bytearray, at: int, prefix: int) -> tuple[int, int]:
    """The integer at `at` (RFC 7541 §5.1), and the position after it."""
    value = block[at] & prefix
    at += 1
    if value < prefix:
        return value, at
    for shift in range(0, 7 * limits.HPACK_INTEGER_BYTES, 7):
        if at >= len(block):
            return value, at
        byte = block[at]
        at += 1
        value += (byte & ~MORE) << shift
        if not byte & MORE:
            return value, at
    raise _malformed("HPACK_INTEGER_BYTES")


def _string(block: bytes | bytearray, at: int) -> int:
    """The position after the string at `at`."""
    if at >= len(block):
        return at
    length, at = _integer(block, at, LENGTH_PREFIX)
    return at + length


def _malformed(limit: str) -> GreetingError:
    return GreetingError(ErrorCode.COMPRESSION_ERROR, f"over the limit {limit}", limit)
