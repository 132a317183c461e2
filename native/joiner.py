"""The joiner's binding: connections between their first bytes and their splice. include/bp.h says what it does.

Only one Python thread may use a Joiner. It borrows each socket until the news say that the stream is released.
"""

import contextlib
import dataclasses
import enum
import functools
from collections.abc import Callable, Iterator
from typing import NewType, Protocol, cast

from bentpipe.native.engine import Engine, SpliceId
from bentpipe.native.lane import Lane, LaneOptions, read_lane
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
    UP = 256
    COMMITTED = 512


FAILS = int(NewsFlag.BROKEN | NewsFlag.RELEASED)
"""With these more is told."""

FROM_LANE = int(NewsFlag.UP | NewsFlag.COMMITTED)
"""With these a stream is told of for the first time."""


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
        self._close_before: Callable[[], None] = _nothing
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

    @property
    def pointer(self) -> Pointer:
        """For the opener."""
        return self._pointer

    def close_before(self, close: Callable[[], None]) -> None:
        """Call this before `close` does anything: it ends those who give clients to this joiner."""
        self._close_before = close

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
            found.append(self._read(cast(_CNews, self._news)))
        return found

    def _read(self, c: _CNews) -> News:
        news = _read(c)
        if news.flags & FROM_LANE:
            self._streams[news.stream] = c.stream
        return news

    # -- lanes: clients that C brings to their satellites --------------------------------------------------------------

    def admit(self, options: LaneOptions) -> None:
        """Let clients of `Opener.admit` come. Raises OSError."""
        wanted = {
            "admission": options.admission.pointer,
            "limits": options.limits.pointer,
            "most_fields": options.most_fields,
            "silent_clients": options.silent_clients,
            "request_ms": round(1000 * options.request_s),
            "reach_ms": round(1000 * options.reach_s),
            "join_ms": round(1000 * options.join_s),
        }
        self._admits = options
        check(lib.bp_joiner_admit(self._pointer, ffi.new("struct bp_lane_options *", wanted)))

    @property
    def lanes(self) -> int:
        """How many clients are on their way."""
        return lib.bp_joiner_lanes(self._pointer) if self._pointer != ffi.NULL else 0

    def look(self) -> None:
        """Have those looked at that are on their way, since what was told has changed."""
        lib.bp_joiner_look(self._pointer)

    def take_committed(self) -> list[StreamId]:
        """Take the COMMITTED of all streams that have it, and leave their other news."""
        found = []
        while (pointer := lib.bp_joiner_take_committed(self._pointer)) != ffi.NULL:
            found.append(StreamId(address(pointer)))
            self._streams[found[-1]] = pointer
        return found

    def lane(self, stream: StreamId) -> Lane:
        """What is known of a client whose news have UP or COMMITTED."""
        return read_lane(lib.bp_lane_facts(self._streams[stream]))

    def take_socket(self, stream: StreamId) -> int:
        """Take the descriptor of such a client, whose news have UP or RELEASED; it is borrowed from now on."""
        return lib.bp_stream_take_fd(self._streams[stream])

    def splice(self, engine: Engine, stream: StreamId) -> SpliceId:
        """Hand a client over that is COMMITTED and JOINED, and its satellite. Raises OSError, and nothing has changed."""
        splice_id = engine.splice_lane(self._streams[stream])
        del self._streams[stream]
        return splice_id

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
        self._close_before()
        pointer, self._pointer = self._pointer, ffi.NULL
        self._streams.clear()
        if pointer != ffi.NULL:
            lib.bp_joiner_free(pointer)

    def __del__(self) -> None:
        self.close()


def _nothing() -> None:
    pass


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
