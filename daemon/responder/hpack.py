"""HPACK (RFC 7541): decodes with Huffman and the dynamic table, both bounded; encodes literals alone."""

from __future__ import annotations

Headers = list[tuple[bytes, bytes]]

TABLE_BYTES = 4096
"""SETTINGS_HEADER_TABLE_SIZE, at its default (RFC 9113, 6.5.2)."""
MAX_LIST_BYTES = 16384
"""Of one decoded list: names and values, and 32 for each field, as SETTINGS_MAX_HEADER_LIST_SIZE counts them."""
FIELD_OVERHEAD = 32
MAX_INTEGER = 1 << 28

STATIC_TABLE = [
    (name, value)
    for name, _, value in (
        line.partition(b"=")
        for line in b""":authority
:method=GET
:method=POST
:path=/
:path=/index.html
:scheme=http
:scheme=https
:status=200
:status=204
:status=206
:status=304
:status=400
:status=404
:status=500
accept-charset
accept-encoding=gzip, deflate
accept-language
accept-ranges
accept
access-control-allow-origin
age
allow
authorization
cache-control
content-disposition
content-encoding
content-language
content-length
content-location
content-range
content-type
cookie
date
etag
expect
expires
from
host
if-match
if-modified-since
if-none-match
if-range
if-unmodified-since
last-modified
link
location
max-forwards
proxy-authenticate
proxy-authorization
range
referer
refresh
retry-after
server
set-cookie
strict-transport-security
transfer-encoding
user-agent
vary
via
www-authenticate""".split(b"\n")
    )
]
"""RFC 7541, Appendix A."""

HUFFMAN_LENGTHS = (
    "ISXXXXXXXTZXXZXXXXXXXXZXXXXXXXXXBFFHIBDGFFDGDBBBAAABBBBBBBCDKBHFIBCCCCCCCCCCCCCCCCCCCCCCDC"
    "DIOIJBKABABABBBACCBBBABCBAABCCCCCKGJIXPRPPRRRSRSSSSSTSTTRSTSSSSQRSRSSTRQPRRSSQSRRTQRSSQQRQ"
    "SRSSPRRRSRRSVVPORSRUVVVWWVTUOQVWWVWTQQVVXWWWPTPQRQQSRRUUTTVSVWVVWWWWWXWWWWWVZ"
)
"""The bits of each symbol's code (RFC 7541, Appendix B), as letters from `A` for 5; the last one is EOS."""
EOS = 256


class HpackError(Exception):
    """The block cannot be decoded; the connection has lost its compression state."""


def _codes() -> dict[tuple[int, int], int]:
    """Symbols by (bits, code): the code is canonical, so that the lengths say all of it."""
    found, code, before = {}, 0, 0
    for bits, symbol in sorted((ord(letter) - ord("A") + 5, at) for at, letter in enumerate(HUFFMAN_LENGTHS)):
        code <<= bits - before
        found[bits, code] = symbol
        code, before = code + 1, bits
    return found


HUFFMAN_CODES = _codes()


def decode_huffman(data: bytes) -> bytes:
    """Decode a string. Raises HpackError for EOS, and for padding that is long or not of ones (5.2)."""
    out, code, bits = bytearray(), 0, 0
    for byte in data:
        for shift in range(7, -1, -1):
            code, bits = code << 1 | byte >> shift & 1, bits + 1
            symbol = HUFFMAN_CODES.get((bits, code))
            if symbol is not None:
                if symbol == EOS:
                    raise HpackError("a string contains EOS")
                out.append(symbol)
                code = bits = 0
            elif bits > 30:
                raise HpackError("a string has a code that does not exist")
    if bits > 7 or code != (1 << bits) - 1:
        raise HpackError("a string has wrong padding")
    return bytes(out)


class HeaderDecoder:
    """Decodes the blocks of one direction of a connection, in their order."""

    def __init__(self) -> None:
        self._table: Headers = []
        self._table_bytes = 0
        self._limit = TABLE_BYTES
        self._data = b""
        self._at = 0

    def decode(self, block: bytes) -> Headers:
        """Decode a whole block. Raises HpackError, also for a list that is too large."""
        self._data, self._at = block, 0
        found: Headers = []
        size = 0
        while self._at < len(block):
            first = block[self._at]
            if first & 0x80:
                field = self._entry(self._integer(7))
            elif first & 0xE0 == 0x20:
                if found:
                    raise HpackError("the table's size changes after the first field")
                self._limit = self._integer(5)
                if self._limit > TABLE_BYTES:
                    raise HpackError("the table is larger than announced")
                self._evict()
                continue
            else:
                index = self._integer(6 if first & 0x40 else 4)
                name = self._entry(index)[0] if index else self._string()
                field = name, self._string()
                if first & 0x40:
                    self._table.insert(0, field)
                    self._table_bytes += _size(field)
                    self._evict()
            size += _size(field)
            if size > MAX_LIST_BYTES:
                raise HpackError("the header list is too large")
            found.append(field)
        return found

    def _evict(self) -> None:
        while self._table_bytes > self._limit:
            self._table_bytes -= _size(self._table.pop())

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if not 0 < index <= len(STATIC_TABLE) + len(self._table):
            raise HpackError("an index is not in the table")
        if index <= len(STATIC_TABLE):
            return STATIC_TABLE[index - 1]
        return self._table[index - len(STATIC_TABLE) - 1]

    def _byte(self) -> int:
        if self._at >= len(self._data):
            raise HpackError("the block is cut off")
        self._at += 1
        return self._data[self._at - 1]

    def _integer(self, bits: int) -> int:
        """5.1; at most five bytes."""
        most = (1 << bits) - 1
        value = self._byte() & most
        shift = 0
        while value >= most or shift:
            byte = self._byte()
            value += (byte & 0x7F) << shift
            shift += 7
            if value > MAX_INTEGER or shift > 28:
                raise HpackError("an integer is too large")
            if not byte & 0x80:
                break
        return value

    def _string(self) -> bytes:
        coded = self._at < len(self._data) and self._data[self._at] & 0x80
        length = self._integer(7)
        raw = self._data[self._at : self._at + length]
        if len(raw) < length:
            raise HpackError("the block is cut off")
        self._at += length
        return decode_huffman(raw) if coded else raw


def _size(field: tuple[bytes, bytes]) -> int:
    return len(field[0]) + len(field[1]) + FIELD_OVERHEAD


def encode_headers(headers: Headers) -> bytes:
    """Encode each field as a literal that is not indexed, so that an encoder needs no state."""
    return b"".join(b"\0" + _encode_string(name) + _encode_string(value) for name, value in headers)


def _encode_string(value: bytes) -> bytes:
    length = len(value)
    if length < 0x7F:
        return bytes((length,)) + value
    head, length = b"\x7f", length - 0x7F
    while length > 0x7F:
        head, length = head + bytes((length & 0x7F | 0x80,)), length >> 7
    return head + bytes((length,)) + value
