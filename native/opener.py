"""The opener's binding: accepted connections, until their first bytes are there. include/bp.h says what it does.

Only one Python thread may use an Opener. It borrows sockets and contexts until it has returned the opening.
"""

import dataclasses
import enum
import errno
import functools
import os
from typing import NewType, Protocol, cast

from bentpipe.native.joiner import Joiner
from bentpipe.native.lib import Pointer, address, check, ffi, lib
from bentpipe.native.tls import TlsConnection, TlsError, TlsServerContext
from bentpipe.native.turns import ThreadUse, read_use

OpeningId = NewType("OpeningId", int)


class OpeningStep(enum.Enum):
    """Where an opening ended: enum bp_opening_step."""

    FIRST_BYTE = 0
    HANDSHAKE = 1
    FLIGHT = 2
    DONE = 3


class OpeningAborted(OSError):
    """The opening was aborted by `Opener.abort`, or since the opener has ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """An opening that is over. Unless it is done it has failed by `error`, or the peer has closed if that is None."""

    id: OpeningId
    step: OpeningStep
    first: bytes
    tls: TlsConnection | None
    """None: the peer speaks no TLS."""
    error: TlsError | OSError | None
    """OpeningAborted after `abort`."""
    fd: int = -1
    """The socket of an opening of `admit`, the caller's from now on; -1: the caller has had it all the time."""


class _COpened(Protocol):
    step: int
    result: int
    tls: Pointer
    first: Pointer
    first_bytes: int


class Opener:
    """Native threads that complete handshakes and read the first bytes. Raises OSError if they cannot be started."""

    def __init__(self, threads: int, first_bytes: int) -> None:
        """`threads`: 0 is one per core. `first_bytes`: the most that is read."""
        self._pointer: Pointer = ffi.NULL
        self._open: dict[OpeningId, tuple[Pointer, TlsServerContext | None, bool]] = {}
        """With what the opening borrows, and whether it has the socket itself."""
        made = ffi.new("bp_opener **")
        check(lib.bp_opener_new(threads, first_bytes, made))
        self._pointer = _first(made)
        self.event_fd: int = lib.bp_opener_event_fd(self._pointer)
        """Readable when `take` has something; the opener closes it."""

    def __len__(self) -> int:
        return len(self._open)

    def threads(self) -> dict[str, ThreadUse]:
        """Each thread's turns and CPU time by its name, read without stopping it; none once it is closed."""
        pointer = self._pointer
        count = lib.bp_opener_threads(pointer) if pointer != ffi.NULL else 0
        return {
            f"opener-{index}": read_use(functools.partial(lib.bp_opener_turns, pointer, index))
            for index in range(count)
        }

    def limit(self, handshakes_per_s: int) -> None:
        """Bound the handshakes that begin in a second; 0: no bound. Those beyond wait for their turn."""
        lib.bp_opener_limit(self._pointer, handshakes_per_s)

    def start(self, fd: int, context: TlsServerContext | None) -> OpeningId:
        """Begin with a socket. With a context the peer may speak TLS. Raises OSError."""
        made = ffi.new("bp_opening **")
        check(lib.bp_opener_start(self._pointer, fd, context.pointer if context else ffi.NULL, made))
        return self._keep(_first(made), context, has_socket=False)

    def admit(self, fd: int, context: TlsServerContext | None, joiner: Joiner, rules: Pointer) -> OpeningId:
        """Likewise, and take the socket; the client goes on to `joiner` if that may bring it to its satellite.

        `rules`: a struct bp_request_rules that stays. Raises OSError, and the socket is the caller's.
        """
        made = ffi.new("bp_opening **")
        pointer = context.pointer if context else ffi.NULL
        check(lib.bp_opener_admit(self._pointer, fd, pointer, joiner.pointer, rules, made))
        joiner.close_before(self.close)
        return self._keep(_first(made), context, has_socket=True)

    def _keep(self, pointer: Pointer, context: TlsServerContext | None, *, has_socket: bool) -> OpeningId:
        opening = OpeningId(address(pointer))
        self._open[opening] = pointer, context, has_socket
        return opening

    def forget(self, opening: OpeningId) -> None:
        """It has come as news of a stream: see `Lane`. Raises KeyError."""
        lib.bp_opener_forget(self._open.pop(opening)[0])

    def abort(self, opening: OpeningId) -> None:
        """Ask for the end of an opening that `take` has not returned. Raises KeyError if it has."""
        if self._pointer != ffi.NULL:
            lib.bp_opening_abort(self._open[opening][0])

    def take(self, at_most: int = 1 << 30) -> list[Opened]:
        """Take openings that are over; never waits. `event_fd` does not become readable again for those that are left."""
        found: list[Opened] = []
        while len(found) < at_most and (pointer := lib.bp_opener_take(self._pointer)) != ffi.NULL:
            opening = OpeningId(address(pointer))
            try:
                found.append(_read(opening, pointer, has_socket=self._open[opening][2]))
            finally:
                lib.bp_opening_free(pointer)
                del self._open[opening]
        return found

    def close(self) -> None:
        """End all openings, join the threads, free all. Idempotent; call nothing else afterwards."""
        pointer, self._pointer = self._pointer, ffi.NULL
        if pointer != ffi.NULL:
            lib.bp_opener_free(pointer)
        self._open.clear()

    def __del__(self) -> None:
        self.close()


def _first(pointer: Pointer) -> Pointer:
    return cast(list[Pointer], pointer)[0]


def _read(opening: OpeningId, pointer: Pointer, *, has_socket: bool) -> Opened:
    ret = ffi.new("struct bp_opened *")
    lib.bp_opening_read(pointer, ret)
    c = cast(_COpened, ret)
    taken = lib.bp_opening_take_tls(pointer)
    tls = TlsConnection.of(taken) if taken != ffi.NULL else None
    step = OpeningStep(c.step)
    first = bytes(ffi.buffer(c.first, c.first_bytes)) if step is OpeningStep.DONE else b""
    fd = lib.bp_opening_take_fd(pointer) if has_socket else -1
    return Opened(opening, step, first, tls, _error(c.result, tls), fd)


def _error(result: int, tls: TlsConnection | None) -> TlsError | OSError | None:
    if result == 0:
        return None
    if result == -errno.ECANCELED:
        return OpeningAborted()
    return tls.failure(result) if tls is not None else OSError(-result, os.strerror(-result))
