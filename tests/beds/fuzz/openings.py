"""Random openings of clients, honest and hostile: frames, HPACK of every kind, floods, changed bytes, and cuts."""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import hpack

from bentpipe.proto.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    PADDED,
    PREFACE,
    PRIORITY_FLAG,
    FrameType,
    frame,
)

CORPUS = Path(__file__).parents[2] / "corpus"
RECORDED = tuple((path.read_bytes(), path.with_suffix(".1").read_bytes()) for path in sorted(CORPUS.glob("*.0")))
"""What real clients sent, in two flights."""
HOSTILE_INTEGERS = (b"\x3f", b"\x7f", b"\x0f", b"\x40\x7f", b"\x00\x01a\x7f", b"\xff", b"\x1f", b"\x00\xff")
NAMES = (b":method", b":path", b":authority", b"te", b"satellite_name", b"satellite_token", b"k", b"", b"X")
MOST_BYTES, MOST_PIECES = 60_000, 300
"""Of one opening, so that a run has many of them."""


HUFFMAN_CODES = {b"a": "00011", b"0": "00000", b"\x7f": "1" * 26 + "00"}
"""RFC 7541, appendix B."""


@functools.cache
def long_field(character: bytes, size: int, *, huffman: bool) -> bytes:
    """The field `k` with so many of one character as its value; `hpack` takes seconds to make it."""
    value = character * size
    if huffman:
        bits = HUFFMAN_CODES[character] * size
        bits += "1" * (-len(bits) % 8)
        value = int(bits, 2).to_bytes(len(bits) // 8)
    length = len(value) - 0x7F
    return (
        b"\x40\x01k"
        + bytes((0x7F | huffman << 7, 0x80 | length & 0x7F, 0x80 | length >> 7 & 0x7F, length >> 14))
        + value
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Flight:
    """Bytes that come at once."""

    data: bytes
    at_s: float
    last: bool
    """Nothing more can be read for now."""


class Openings:
    """Makes them, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._stream = 1
        self._frames: tuple[Callable[[], bytes], ...] = (
            *(self._headers, self._headers, self._headers, self._data, self._data, self._settings, self._ping),
            *(self._reset, self._goaway, self._window, self._priority, self._unknown, self._any, self._flood),
        )

    def make(self) -> list[Flight]:
        """One opening, cut into flights."""
        self._stream = 1
        said = self._mutated(self._said())[:MOST_BYTES]
        flights, at_s = [], 0.0
        for piece in self._pieces(said):
            at_s += self._random.choice((0.0, 0.0, 0.001, 0.3, 1.0, 20.0, -1.0))
            flights.append(Flight(piece, at_s, self._random.random() < 0.3))
        return flights

    def _said(self) -> bytes:
        pick = self._random
        match pick.randrange(10):
            case 0:
                return b"".join(pick.choice(RECORDED))
            case 1:
                return b"".join((*pick.choice(RECORDED), *self._more()))
            case 2:
                return pick.randbytes(pick.randrange(60))
            case 3:
                return PREFACE + b"".join(self._more())
            case _:
                return PREFACE + frame(FrameType.SETTINGS, 0, 0) + b"".join(self._more())

    def _more(self) -> Iterator[bytes]:
        for _ in range(self._random.choice((1, 2, 5, 12, 30))):
            yield self._random.choice(self._frames)()

    def _mutated(self, said: bytes) -> bytes:
        if self._random.random() < 0.7 or not said:
            return said
        changed = bytearray(said)
        for _ in range(self._random.choice((1, 1, 2, 5))):
            at = self._random.randrange(len(changed))
            match self._random.randrange(3):
                case 0:
                    changed[at] = self._random.randrange(256)
                case 1:
                    changed[at] ^= 1 << self._random.randrange(8)
                case _:
                    del changed[at : at + self._random.choice((1, 1, 9, 40))]
            if not changed:
                break
        return bytes(changed)

    def _pieces(self, said: bytes) -> Iterator[bytes]:
        size = self._random.choice((1, 3, 7, 20, 100, 1000, 16_384, 16_384, 100_000))
        said = said[: size * MOST_PIECES]
        at = 0
        while at < len(said):
            step = size if self._random.random() < 0.5 else self._random.randrange(1, size + 1)
            yield said[at : at + step]
            at += step

    # -- frames ------------------------------------------------------------------------------------------------------

    def _id(self) -> int:
        pick = self._random.random()
        if pick < 0.6:
            return max(1, self._stream - 2)
        return self._random.choice((0, 1, 2, 3, self._stream, self._stream + 1, 1 << 31 | 1, 0x7FFFFFFF))

    def _headers(self) -> bytes:
        flags, block = 0, self._block()
        if self._random.random() < 0.1:
            flags, block = flags | PRIORITY_FLAG, self._random.randbytes(5) + block
        if self._random.random() < 0.1:
            padding = self._random.choice((0, 1, 3, 200))
            flags, block = flags | PADDED, bytes((padding,)) + block + bytes(self._random.choice((padding, padding, 0)))
        flags |= END_STREAM * self._random.randrange(2)
        stream = self._stream if self._random.random() < 0.85 else self._id()
        self._stream += 2
        parts = self._random.choice((1, 1, 1, 1, 2, 3, 9, 10))
        size = max(1, min(16_384, -(-len(block) // parts)))
        pieces = [block[at : at + size] for at in range(0, len(block), size)] or [b""]
        pieces += [b""] * (parts - len(pieces) if self._random.random() < 0.2 else 0)
        out = b""
        for number, piece in enumerate(pieces):
            kind = FrameType.CONTINUATION if number else FrameType.HEADERS
            last = END_HEADERS if number == len(pieces) - 1 and self._random.random() < 0.97 else 0
            own = stream if self._random.random() < 0.99 else self._id()
            out += frame(kind, last | (0 if number else flags), own, piece)
        return out

    def _block(self) -> bytes:
        pick = self._random
        encoder = hpack.Encoder()
        match pick.randrange(12):
            case 0:
                return pick.randbytes(pick.randrange(60))
            case 1:
                return self._fields(encoder) + pick.choice(HOSTILE_INTEGERS) + b"\xff" * pick.randrange(7) + b"\x01"
            case 2:
                return pick.choice(HOSTILE_INTEGERS) + b"\x80" * pick.randrange(7) + pick.randbytes(3)
            case 3:
                return b"".join(self._resize() for _ in range(pick.randrange(4))) + self._fields(encoder)
            case 4:
                return self._fields(encoder) + self._resize() + self._fields(encoder)
            case 5:
                return b"\x82" * pick.choice((99, 100, 101, 400))
            case 6:  # one entry of the table, over and over
                entry = encoder.encode([(b"k", b"v" * pick.choice((60, 400, 4000)))], huffman=False)
                return entry + b"\xbe" * pick.choice((3, 11, 12, 13, 100))
            case 7:  # Huffman's codes, some of them wrong or without end
                value = pick.choice((b"\xff" * pick.randrange(1, 6), pick.randbytes(pick.randrange(1, 9))))
                return b"\x40\x01k" + bytes((0x80 | len(value),)) + value
            case 8:
                size = pick.choice((1000, 32_000, 32_700, 33_000, 48_000, 50_000))
                return long_field(pick.choice(tuple(HUFFMAN_CODES)), size, huffman=bool(pick.randrange(2)))
            case _:
                return self._fields(encoder)

    def _fields(self, encoder: hpack.Encoder) -> bytes:
        pick = self._random
        if not pick.randrange(8):
            encoder.header_table_size = pick.choice((0, 64, 100, 4096))
        fields = [
            (
                pick.choice((*NAMES, pick.randbytes(3))),
                pick.choice((b"", b"x", b"POST", pick.randbytes(pick.randrange(70)))),
            )
            for _ in range(pick.choice((0, 1, 3, 10, 40)))
        ]
        return encoder.encode(fields + fields[:2], huffman=bool(pick.randrange(2)))

    def _resize(self) -> bytes:
        value = self._random.choice((0, 30, 31, 100, 4095, 4096, 4097, 5000))
        if value < 31:
            return bytes((0x20 | value,))
        rest = value - 31
        return bytes((0x3F, 0x80 | rest & 0x7F, rest >> 7))

    def _data(self) -> bytes:
        payload = self._random.randbytes(self._random.choice((0, 0, 1, 10, 1000, 16_384, 16_385)))
        flags = self._random.choice((0, 0, END_STREAM, PADDED, 0xFF))
        return frame(FrameType.DATA, flags, self._id(), payload)

    def _settings(self) -> bytes:
        pick = self._random
        if not pick.randrange(2):
            return frame(FrameType.SETTINGS, ACK, 0 if pick.randrange(9) else 1, b"" if pick.randrange(9) else bytes(6))
        entries = b"".join(
            pick.choice((1, 2, 3, 4, 5, 6, 9, 0x9A9A)).to_bytes(2)
            + pick.choice(
                (0, 1, 2, 100, 16_383, 16_384, 65_535, (1 << 24) - 1, 1 << 24, (1 << 31) - 1, 1 << 31)
            ).to_bytes(4)
            for _ in range(pick.choice((0, 1, 1, 2, 6, 32, 33)))
        )
        return frame(FrameType.SETTINGS, 0, 0, entries + bytes(0 if pick.randrange(12) else 3))

    def _ping(self) -> bytes:
        size = 8 if self._random.randrange(12) else 7
        said = frame(FrameType.PING, self._random.choice((0, 0, ACK)), 0, self._random.randbytes(size))
        return said * self._random.choice((1, 1, 2, 9, 10, 11))

    def _reset(self) -> bytes:
        return frame(
            FrameType.RST_STREAM, 0, self._id(), self._random.randbytes(4 if self._random.randrange(12) else 3)
        )

    def _goaway(self) -> bytes:
        code = self._random.choice((0, 0, 2)).to_bytes(4)
        return frame(FrameType.GOAWAY, 0, 0, bytes(4) + code + self._random.randbytes(self._random.choice((0, 0, 9))))

    def _window(self) -> bytes:
        increment = self._random.choice((1, 1, 65_535, (1 << 31) - 65_536, (1 << 31) - 1, 0, 1 << 31 | 1))
        return frame(FrameType.WINDOW_UPDATE, 0, self._random.choice((0, 0, self._id())), increment.to_bytes(4))

    def _priority(self) -> bytes:
        return frame(FrameType.PRIORITY, 0, self._id(), self._random.randbytes(5 if self._random.randrange(12) else 4))

    def _unknown(self) -> bytes:
        kind = cast(FrameType, self._random.choice((0xFA, 0x10, 0x0A)))
        return frame(
            kind, self._random.randrange(256), self._id(), self._random.randbytes(self._random.choice((0, 3, 900)))
        )

    def _any(self) -> bytes:
        header = self._random.randrange(40).to_bytes(3) + bytes(
            (self._random.randrange(12), self._random.randrange(256))
        )
        return header + self._id().to_bytes(4) + self._random.randbytes(self._random.randrange(40))

    def _flood(self) -> bytes:
        small = (
            frame(FrameType.PRIORITY, 0, 1, bytes(5)),
            frame(FrameType.WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
            frame(FrameType.RST_STREAM, 0, max(1, self._stream - 2), bytes(4)),
            frame(FrameType.DATA, 0, max(1, self._stream - 2)),
            frame(FrameType.HEADERS, END_HEADERS, max(1, self._stream - 2), b"\x83"),
            frame(FrameType.GOAWAY, 0, 0, bytes(8)),
            frame(FrameType.SETTINGS, 0, 0),
        )
        count = self._random.choice((3, 63, 64, 65, 99, 100, 101, 1001, 2001))
        if self._random.randrange(3):
            return self._random.choice(small) * count
        out = b""
        for _ in range(self._random.choice((5, 15, 16, 17, 40))):
            out += frame(FrameType.HEADERS, END_HEADERS, self._stream, b"\x83")
            self._stream += 2
        return out
