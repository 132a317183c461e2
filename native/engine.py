"""The engine's binding: handles, counters, ends. It is thin: include/bp.h says what the engine does.

Only one Python thread may use an Engine. A splice's C object lives until its end is taken here.
"""

import dataclasses
import enum
import functools
from typing import Literal, NewType, Protocol, cast

from bentpipe.native.lib import Pointer, address, check, ffi, lib
from bentpipe.native.tls import TlsConnection
from bentpipe.native.turns import ThreadTurns, ThreadUse, read_turns

SpliceId = NewType("SpliceId", int)
Splice = Literal["off", "auto", "always"]
"""Whether plain bytes are moved by splice(2)."""

MESSAGE_BYTES = 512


class Priority(enum.Enum):
    """How soon a thread runs that has something to do, beside others that want its core: enum bp_priority."""

    NORMAL = 0
    SLICE = 1
    """Slices of 0.1 ms under SCHED_OTHER; needs Linux 6.12, and no privilege."""
    REALTIME = 2
    """SCHED_RR 1, except while a thread is busy all the time; needs RLIMIT_RTPRIO."""


class EndReason(enum.Enum):
    """Why a splice ended: enum bp_reason."""

    CLOSED = 1
    CLIENT_RESET = 2
    SATELLITE_RESET = 3
    CLIENT_TIMEOUT = 4
    SATELLITE_TIMEOUT = 5
    CLIENT_TRUNCATED = 6
    SATELLITE_TRUNCATED = 7
    CLIENT_TLS_ERROR = 8
    SATELLITE_TLS_ERROR = 9
    IDLE_TIMEOUT = 10
    HALF_CLOSED_TIMEOUT = 11
    ABORTED = 12
    ENGINE_CLOSED = 13
    NO_MEMORY = 14
    GIVEN_BACK = 15
    CLIENT_TLS_FLOOD = 16
    SATELLITE_TLS_FLOOD = 17


class Ktls(enum.IntFlag):
    """What the kernel does of TLS: enum bp_ktls."""

    NONE = 0
    TX = 1
    RX = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Leg:
    """One side of a connection: a connected socket, and its TLS if it has any."""

    fd: int
    tls: TlsConnection | None


@dataclasses.dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine runs; 0 threads is one per core, a timeout of 0 is none (whole seconds, rounded up)."""

    threads: int = 0
    splice: Splice = "auto"
    ktls: Ktls = Ktls.NONE
    """What may be spliced to and from connections whose TLS is the kernel's: the result of `ktls_self_test`."""
    idle_timeout_s: float = 0.0
    half_closed_timeout_s: float = 60.0
    priority: Priority = Priority.NORMAL
    """A thread that is refused one gets the next below it."""
    unsent_bytes: int = 0
    """TCP_NOTSENT_LOWAT of clients' sockets (tcp(7)); 0: the system's."""
    busy_poll_s: float = 0.0
    """The longest time that a thread polls for events before it sleeps, in whole microseconds; 0: it never polls."""
    pipes: int = 0
    """The most pipes that a thread has open at once, two descriptors each; without a pipe it copies. 0: PIPES_A_THREAD."""


@dataclasses.dataclass(frozen=True, slots=True)
class SpliceCounters:
    """What a splice moved: bytes delivered each way, and when it last moved any (time.monotonic() seconds; 0: not known)."""

    client_to_satellite_bytes: int
    satellite_to_client_bytes: int
    spliced_bytes: int
    last_activity_monotonic_s: float
    first_down_monotonic_s: float = 0.0
    """When the first byte was delivered to the client, by the same clock; 0 if none was."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """A splice that is over; `error` is the errno behind it, or 0."""

    splice_id: SpliceId
    reason: EndReason
    counters: SpliceCounters
    error: int
    sockets: tuple[int, int] | None = None
    """Client's and satellite's descriptors, now the caller's to close, if it was given back."""


@dataclasses.dataclass(frozen=True, slots=True)
class EngineStatistics:
    """The engine's threads summed up."""

    live: int
    pipes_open: int
    pipe_fallbacks: int
    spliced_bytes: int
    copied_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class ThreadPriority:
    """One thread's priority; `error` is the errno of the priority that it was refused at its start, or 0."""

    held: Priority
    error: int


class _CCounters(Protocol):
    up_bytes: int
    down_bytes: int
    spliced_bytes: int
    last_activity_ms: int
    first_down_ms: int
    reason: int
    error: int


PIPES_A_THREAD = 512
"""PIPE_MAX in src/internal.h."""

_MODES = {"off": 0, "auto": 1, "always": 2}


class Engine:
    """Native threads that move bytes. Raises OSError if they cannot be started."""

    def __init__(self, options: EngineOptions) -> None:
        self._pointer: Pointer = ffi.NULL
        self._live: dict[SpliceId, Pointer] = {}
        wanted = ffi.new(
            "struct bp_options *",
            {
                "threads": options.threads,
                "splice": _MODES[options.splice],
                "ktls": int(options.ktls),
                "idle_timeout_s": -int(-options.idle_timeout_s // 1),
                "half_closed_timeout_s": -int(-options.half_closed_timeout_s // 1),
                "pipes": options.pipes,
                "priority": options.priority.value,
                "unsent_bytes": options.unsent_bytes,
                "busy_poll_us": round(options.busy_poll_s * 1e6),
            },
        )
        made = ffi.new("bp_engine **")
        check(lib.bp_engine_new(wanted, made))
        self._pointer = _first(made)
        self.event_fd: int = lib.bp_engine_event_fd(self._pointer)
        """Readable when `take_ended` has something; the engine closes it."""

    def splice(self, client: Leg, satellite: Leg) -> SpliceId:
        """Take both sockets and TLS connections and move bytes between them.

        Raises OSError; the caller then keeps all of them."""
        made = ffi.new("bp_splice **")
        check(
            lib.bp_engine_splice(
                self._pointer,
                client.fd,
                client.tls.pointer if client.tls else ffi.NULL,
                satellite.fd,
                satellite.tls.pointer if satellite.tls else ffi.NULL,
                made,
            )
        )
        for leg in (client, satellite):
            if leg.tls:
                leg.tls.release()
        splice_id = SpliceId(address(_first(made)))
        self._live[splice_id] = _first(made)
        return splice_id

    def splice_lane(self, client: Pointer) -> SpliceId:
        """The same for a joiner's bp_stream: see `Joiner.splice`. Raises OSError."""
        made = ffi.new("bp_splice **")
        check(lib.bp_lane_splice(self._pointer, client, made))
        splice_id = SpliceId(address(_first(made)))
        self._live[splice_id] = _first(made)
        return splice_id

    def take_ended(self, at_most: int = 1 << 30) -> list[Ended]:
        """Take splices that have ended; never waits. `event_fd` does not become readable again for those that are left."""
        ended: list[Ended] = []
        while len(ended) < at_most and (pointer := lib.bp_engine_take_ended(self._pointer)) != ffi.NULL:
            splice_id = SpliceId(address(pointer))
            counters = _c_counters(pointer)
            reason = EndReason(counters.reason)
            sockets = _take_sockets(pointer) if reason is EndReason.GIVEN_BACK else None
            del self._live[splice_id]
            lib.bp_splice_free(pointer)
            ended.append(Ended(splice_id, reason, _counters(counters), counters.error, sockets))
        return ended

    def counters(self, splice_id: SpliceId) -> SpliceCounters:
        """What a splice has moved so far, read without stopping its thread. Raises KeyError if its end was taken."""
        return _counters(_c_counters(self._live[splice_id]))

    def abort(self, splice_id: SpliceId) -> None:
        """Reset both legs; `take_ended` returns the end. Raises KeyError if its end was taken."""
        lib.bp_splice_abort(self._live[splice_id])

    def give_back(self, splice_id: SpliceId) -> None:
        """Ask for a live plain connection's sockets; `take_ended` returns them, with nothing in flight.

        A peer that does not read delays that. A connection that ends before ends as if nothing had been asked. Raises
        OSError (EOPNOTSUPP) if a leg is TLS, KeyError if its end was taken.
        """
        check(lib.bp_splice_give_back(self._live[splice_id]))

    def thread_cpu_s(self) -> tuple[float, ...]:
        """CPU seconds used by each thread."""
        used = []
        for index in range(lib.bp_engine_threads(self._pointer)):
            ret = ffi.new("uint64_t *")
            check(lib.bp_engine_thread_cpu_ns(self._pointer, index, ret))
            used.append(cast(list[int], ret)[0] / 1e9)
        return tuple(used)

    def thread_turns(self) -> tuple[ThreadTurns, ...]:
        """Each thread's turns, read without stopping it."""
        pointer = self._pointer
        return tuple(
            read_turns(functools.partial(lib.bp_engine_thread_turns, pointer, index))
            for index in range(lib.bp_engine_threads(pointer))
        )

    def threads(self) -> dict[str, ThreadUse]:
        """Each thread's turns and CPU time by its number."""
        read = enumerate(zip(self.thread_turns(), self.thread_cpu_s(), strict=True))
        return {str(number): ThreadUse(turns, cpu_s) for number, (turns, cpu_s) in read}

    def thread_priorities(self) -> tuple[ThreadPriority, ...]:
        """The priority that each thread has now."""
        found = []
        for index in range(lib.bp_engine_threads(self._pointer)):
            held, error = ffi.new("enum bp_priority *"), ffi.new("int *")
            check(lib.bp_engine_thread_priority(self._pointer, index, held, error))
            found.append(ThreadPriority(Priority(cast(list[int], held)[0]), cast(list[int], error)[0]))
        return tuple(found)

    def statistics(self) -> EngineStatistics:
        """The counters of all threads, added up."""
        ret = ffi.new("struct bp_statistics *")
        lib.bp_engine_statistics(self._pointer, ret)
        fields = cast(EngineStatistics, ret)
        return EngineStatistics(
            fields.live, fields.pipes_open, fields.pipe_fallbacks, fields.spliced_bytes, fields.copied_bytes
        )

    def close(self) -> None:
        """Reset live connections, join the threads, free all. Idempotent; call nothing else afterwards."""
        pointer, self._pointer = self._pointer, ffi.NULL
        self._live.clear()
        if pointer != ffi.NULL:
            lib.bp_engine_free(pointer)

    def __del__(self) -> None:
        self.close()


def _first(pointer: Pointer) -> Pointer:
    return cast(list[Pointer], pointer)[0]


def give_way() -> None:
    """Give the calling thread, and those that it starts later, a tenth of an engine thread's weight. Raises OSError."""
    check(lib.bp_thread_give_way())


def ktls_self_test() -> tuple[Ktls, str]:
    """Try kTLS over loopback. Returns what may be spliced, and what was found, for people. Blocks for some milliseconds."""
    message = ffi.new("char[]", MESSAGE_BYTES)
    found = lib.bp_ktls_self_test(message, MESSAGE_BYTES)
    return Ktls(max(found, 0)), ffi.string(message).decode(errors="replace")


def _take_sockets(splice: Pointer) -> tuple[int, int]:
    client, satellite = ffi.new("int *"), ffi.new("int *")
    check(lib.bp_splice_take_sockets(splice, client, satellite))
    return cast(list[int], client)[0], cast(list[int], satellite)[0]


def _c_counters(splice: Pointer) -> _CCounters:
    ret = ffi.new("struct bp_counters *")
    lib.bp_splice_counters(splice, ret)
    return cast(_CCounters, ret)


def _counters(c: _CCounters) -> SpliceCounters:
    return SpliceCounters(c.up_bytes, c.down_bytes, c.spliced_bytes, c.last_activity_ms / 1000, c.first_down_ms / 1000)
