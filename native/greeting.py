"""The binding of the greeting in C: a client's first frames, read without I/O. include/bp.h says what it does.

It takes limits by their names and gives numbers back. daemon/connections/native_greeting.py makes events of them.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

from bentpipe.native.lib import Pointer, ffi, lib

Fields = tuple[tuple[bytes, bytes], ...]

LIMITS = (
    "FRAME_BYTES",
    "CONTINUATION_FRAMES",
    "HEADER_BLOCK_BYTES",
    "SETTINGS_FRAMES",
    "SETTINGS_ENTRIES",
    "GREETING_BYTES",
    "OPENING_FRAMES",
    "PING_FRAMES",
    "HEADER_LIST_BYTES",
    "HEADER_FIELDS",
    "TABLE_SIZE_UPDATES",
    "HPACK_INTEGER_BYTES",
    "TABLE_BYTES",
    "WINDOW_BYTES",
    "HELD_HEADERS",
    "RST_STREAM_FRAMES",
    "QUIET_FRAMES",
    "EMPTY_DATA_FRAMES",
    "PING_BURST",
    "PING_PER_S",
)
"""The names of enum bp_limit, from 1 on."""
STREAMS = 16
"""BP_GREETING_STREAMS."""


class GreetingVerdict(enum.IntEnum):
    """enum bp_greeting_verdict."""

    MORE = 0
    ACKED = 1
    PINGED = 2
    REQUEST = 3
    RESET = 4
    GOING_AWAY = 5
    REFUSED = 6
    UNUSUAL = 7


class CGreeting(Protocol):
    """struct bp_greeting, as far as Python reads it."""

    state: int
    framed: int
    opening_bytes: int
    removed: int
    passed: int
    words: Pointer
    words_bytes: int
    streams: int
    window_bytes: int
    settings_sent: bool
    acked: bool
    going_away: bool
    failing: bool
    last_stream: int
    open_count: int
    open: Sequence[int]
    counts: Sequence[int]
    ping_tokens: float
    ping_at_s: float
    block_end_stream: bool
    told_stream: int
    error_code: int
    limit: int


class _CFields(Protocol):
    count: int
    sizes: Pointer
    text: Pointer
    text_bytes: int


def nghttp2_version() -> str | None:
    """The version of nghttp2; None if the engine was built without it, so that nothing of this can be used."""
    text = lib.bp_nghttp2_version()
    return ffi.string(text).decode() if text != ffi.NULL else None


class GreetingLimits:
    """The limits of all greetings, and the room in which one request at a time is decoded.

    Greetings that share it must not be used by several threads.
    """

    def __init__(self, values: Mapping[str, float], most_fields: int) -> None:
        """`values`: by the names of LIMITS. `most_fields`: a request with more fields is unusual. Raises KeyError."""
        self.pointer = ffi.new(
            "struct bp_greeting_limits *", {"most": [0.0, *(float(values[name]) for name in LIMITS)]}
        )
        text_bytes = int(values["HEADER_LIST_BYTES"])
        self._sizes = ffi.new("uint32_t[]", 2 * most_fields)
        self._text = ffi.new("char[]", text_bytes)
        room = {"most": most_fields, "sizes": self._sizes, "text": self._text, "text_most": text_bytes}
        self.fields = ffi.new("struct bp_fields *", room)
        self._c = cast(_CFields, self.fields)

    def decoded(self) -> Fields:
        """The fields of the request that was read last."""
        c, at, parts = self._c, 0, []
        text = bytes(ffi.buffer(c.text, c.text_bytes))
        for size in ffi.unpack(c.sizes, 2 * c.count):
            parts.append(text[at : at + size])
            at += size
        return tuple(zip(parts[::2], parts[1::2], strict=True))


class GreetingReader:
    """One client's greeting. The caller keeps the client's bytes."""

    def __init__(self, limits: GreetingLimits) -> None:
        self.limits = limits
        self.pointer = ffi.new("struct bp_greeting *")
        lib.bp_greeting_init(self.pointer, limits.pointer)
        self.c = cast(CGreeting, self.pointer)

    def next(self, kept: bytearray, now_s: float) -> int:
        """Read on in all bytes of the client that are kept. Returns a GreetingVerdict, as a number.

        After ACKED and PINGED the caller takes `c.removed` bytes at `c.framed` out of `kept`.
        """
        return lib.bp_greeting_next(self.pointer, ffi.from_buffer(kept), len(kept), now_s, self.limits.fields)

    def words(self) -> bytes:
        """What the last call has said to the client."""
        return bytes(ffi.buffer(self.c.words, self.c.words_bytes))

    def speak(self) -> bytes:
        """Our SETTINGS, unless the client has them."""
        lib.bp_greeting_speak(self.pointer)
        return self.words()

    @property
    def mark(self) -> int:
        """What the client has heard of us, in 64 bits."""
        return lib.bp_greeting_mark(self.pointer)

    def resume(self, mark: int) -> None:
        """Go on for another reader, which had this mark. Call it before anything is read."""
        lib.bp_greeting_resume(self.pointer, mark)
