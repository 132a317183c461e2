"""The joiner's binding: connections between their first bytes and their splice. include/bp.h says what it does.

Only one Python thread may use a Joiner. It borrows each socket until the news say that the stream is released.
"""

import contextlib
import dataclasses
import enum
import functools
from collections.abc import Iterator
from typing import NewType, Protocol, cast

from bentpipe.native.lib import Pointer, address, check, ffi, lib
from bentpipe.native.tls import TlsConnection
from bentpipe.native.turns import ThreadUse, read_use

StreamId = NewType("StreamId", int)

HEADER_BYTES = 9
"""Of a frame (RFC 9113 §4.1)."""


class NewsFlag(enum.IntFlag):
    """What is new of a stream: enum bp_news_flag."""

    CONNECTED = 1
    DATA = 2
    END = 4
    BROKEN = 8
    HUNG_UP = 16
    SENT = 32
    JOINED = 64
    RELEASED = 128


FAILS = int(NewsFlag.BROKEN | NewsFlag.RELEASED)
"""With these more is told."""


class StreamFailure(enum.Enum):
    """What has failed when a stream is released: enum bp_stream_failure."""

    FINE = 0
    CONNECT = 1
    HANDSHAKE = 2
    CLIENT = 3
    SATELLITE = 4
    FRAME = 5
    LATE = 6
    STOPPED = 7


@dataclasses.dataclass(frozen=True, slots=True)
class News:
    """What is new of one stream: struct bp_news."""

    stream: StreamId
    flags: int
    """Of NewsFlag: a plain number, since `&` of enums is slow and this is read for each connection."""
    data: bytes
    failure: StreamFailure
    result: int
    words: str
    """TLS' message, if it has one: `failure_of` makes an exception of both."""
    unsent: bytes
    header: bytes
    """Of the frame that must not come."""


@dataclasses.dataclass(frozen=True, slots=True)
class Join:
    """What each side gets before the splice: struct bp_join."""

    to_client: bytes
    to_satellite: bytes
    frames: bytes
    """The client's bytes behind `to_satellite`, from the beginning of a frame on."""
    ack_owed: bool
    deadline_ms: int


class _CNews(Protocol):
    stream: Pointer
    flags: int
    failure: int
    result: int
    data: Pointer
    data_bytes: int
    unsent: Pointer
    unsent_bytes: int
    words: Pointer
    header: Pointer


class Joiner:
    """A native thread that reads, writes and joins connections. Raises OSError if it cannot be started."""

    def __init__(self) -> None:
        self._pointer: Pointer = ffi.NULL
        self._streams: dict[StreamId, Pointer] = {}
        made = ffi.new("bp_joiner **")
        check(lib.bp_joiner_new(made))
        self._pointer = _first(made)
        self._news = ffi.new("struct bp_news *")
        self._gathers = False
        self.event_fd: int = lib.bp_joiner_event_fd(self._pointer)
        """Readable while `take` has something; the joiner closes it."""

    def __len__(self) -> int:
        return len(self._streams)

    def threads(self) -> dict[str, ThreadUse]:
        """The thread's turns and CPU time by its name, read without stopping it; none once it is closed."""
        if self._pointer == ffi.NULL:
            return {}
        return {"joiner-0": read_use(functools.partial(lib.bp_joiner_turns, self._pointer))}

    @contextlib.contextmanager
    def gather(self) -> Iterator[None]:
        """Wake the thread once for all that is asked in the block."""
        if self._gathers:
            yield
            return
        self._gathers = True
        try:
            yield
        finally:
            self._gathers = False
            self._wake()

    def _wake(self) -> None:
        if not self._gathers and self._pointer != ffi.NULL:
            lib.bp_joiner_wake(self._pointer)

    def _keep(self, made: Pointer, tls: TlsConnection | None) -> StreamId:
        if tls is not None:
            tls.release()
        stream = StreamId(address(_first(made)))
        self._streams[stream] = _first(made)
        return stream

    def open(self, fd: int, tls: TlsConnection | None) -> StreamId:
        """Take a connected peer, and its TLS. Nothing is done before something is asked of it. Raises OSError."""
        made = ffi.new("bp_stream **")
        check(lib.bp_stream_open(self._pointer, fd, tls.pointer if tls else ffi.NULL, made))
        return self._keep(made, tls)

    def connect(self, fd: int, tls: TlsConnection | None, deadline_ms: int) -> StreamId:
        """Take a socket that is connecting, and the TLS whose handshake comes next; begins as `open`. Raises OSError."""
        made = ffi.new("bp_stream **")
        pointer = tls.pointer if tls else ffi.NULL
        check(lib.bp_stream_connect(self._pointer, fd, pointer, max(1, deadline_ms), made))
        return self._keep(made, tls)

    def allow(self, stream: StreamId, read_bytes: int) -> None:
        """Let so many bytes in all be read. Those that were read beyond already still come."""
        lib.bp_stream_allow(self._streams[stream], read_bytes)
        self._wake()

    def say(self, stream: StreamId, data: bytes) -> None:
        """Send words, behind those that wait. Raises OSError."""
        check(lib.bp_stream_say(self._streams[stream], ffi.from_buffer(data), len(data)))
        self._wake()

    def sent_bytes(self, stream: StreamId) -> int:
        """How many bytes of all words were sent, or dropped since nothing can be written."""
        return lib.bp_stream_sent_bytes(self._streams[stream])

    def read_bytes(self, stream: StreamId) -> int:
        """How many bytes of the peer were read, also by a join. The stream is released."""
        return lib.bp_stream_read_bytes(self._streams[stream])

    def join(self, client: StreamId, satellite: StreamId, join: Join) -> None:
        """Send each side what the other has said. Both are released when this is over. Raises OSError."""
        kept = [ffi.from_buffer(each) for each in (join.to_client, join.to_satellite, join.frames)]
        wanted = ffi.new(
            "struct bp_join *",
            {
                "to_client": kept[0],
                "to_client_bytes": len(join.to_client),
                "to_satellite": kept[1],
                "to_satellite_bytes": len(join.to_satellite),
                "frames": kept[2],
                "frames_bytes": len(join.frames),
                "ack_owed": int(join.ack_owed),
                "deadline_ms": join.deadline_ms,
            },
        )
        check(lib.bp_stream_join(self._streams[client], self._streams[satellite], wanted))
        self._wake()

    def release(self, stream: StreamId) -> None:
        """Ask for the socket. Of two that join, ask for the client's; the join then fails."""
        lib.bp_stream_release(self._streams[stream])
        self._wake()

    def take(self, at_most: int = 1 << 30) -> list[News]:
        """Take what is new; never waits."""
        found: list[News] = []
        while len(found) < at_most and lib.bp_joiner_take(self._pointer, self._news):
            found.append(_read(cast(_CNews, self._news)))
        return found

    def free(self, stream: StreamId) -> TlsConnection | None:
        """Forget a stream that is released. Returns its TLS."""
        pointer = self._streams.pop(stream)
        taken = lib.bp_stream_take_tls(pointer)
        lib.bp_stream_free(pointer)
        return TlsConnection.of(taken) if taken != ffi.NULL else None

    def pause(self, *, paused: bool) -> None:
        """Read no stream, or all again. Joins go on."""
        lib.bp_joiner_pause(self._pointer, int(paused))

    def close(self) -> None:
        """Join the thread, free all streams and their TLS. Idempotent; call nothing else afterwards."""
        pointer, self._pointer = self._pointer, ffi.NULL
        self._streams.clear()
        if pointer != ffi.NULL:
            lib.bp_joiner_free(pointer)

    def __del__(self) -> None:
        self.close()


def _first(pointer: Pointer) -> Pointer:
    return cast(list[Pointer], pointer)[0]


def _bytes(pointer: Pointer, size: int) -> bytes:
    return bytes(ffi.buffer(pointer, size)) if size else b""


def _read(c: _CNews) -> News:
    flags, failure = c.flags, StreamFailure.FINE
    words, unsent, header, result = "", b"", b"", 0
    if flags & FAILS:
        failure, result = StreamFailure(c.failure), c.result
        words = ffi.string(c.words).decode(errors="replace")
        unsent = _bytes(c.unsent, c.unsent_bytes)
        header = bytes(ffi.buffer(c.header, HEADER_BYTES))
    return News(
        StreamId(address(c.stream)), flags, _bytes(c.data, c.data_bytes), failure, result, words, unsent, header
    )
