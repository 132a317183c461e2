"""Accepted connections until their first bytes: a proxy's header is read here, the rest is done in the opener's threads.

A connection has no task meanwhile, unless a proxy has to name its client. It has its place and its record, and a deadline.
A peer that leaves before it has said anything never reaches the control plane: it is counted here.
"""

import contextlib
import dataclasses
import functools
import socket
from collections.abc import Callable

import trio

from bentpipe.daemon.connections.arrival import Arrival, read_origin
from bentpipe.daemon.connections.deadlines import Deadlines, TimedCall
from bentpipe.daemon.connections.ends import OUTCOME_ENDS
from bentpipe.daemon.connections.held_bytes import TLS_BYTES
from bentpipe.daemon.connections.listener import Begin, session_owner
from bentpipe.daemon.connections.outcomes import ConnectionCounters, ConnectionOver, Outcome
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.connections.transport import PeerLeft, Transport, TransportError
from bentpipe.daemon.dataplane.last_words import last_words
from bentpipe.daemon.dataplane.stream import close_in_order
from bentpipe.daemon.tasks import Owner, contained, run_owned
from bentpipe.native.joiner import Joiner
from bentpipe.native.lib import Pointer
from bentpipe.native.opener import Opened, Opener, OpeningId, OpeningStep
from bentpipe.native.tls import TlsConnection, TlsFlood, TlsTruncated
from bentpipe.proto.errors import GreetingError, over

OPENED_A_TURN = 32
"""Connections whose first bytes have come that are taken in one turn, at some 0.1 ms each."""


@dataclasses.dataclass(eq=False, slots=True)
class Opening:
    """One of them. Its place may be evicted at any moment."""

    listener: int
    sock: socket.socket
    port: Port
    arrival: Arrival
    sessions: trio.Nursery
    since: float
    deadline: TimedCall | None = None
    stop: Callable[[], None] | None = None
    """Ends what it waits for."""
    given_up: Outcome | None = None
    """Why it ends, unless its peer has the last word."""

    def take_socket(self, fd: int) -> None:
        """The socket is here again: C has had it."""
        self.sock = socket.socket(self.sock.family, socket.SOCK_STREAM, 0, fileno=fd)
        self.sock.setblocking(False)

    def cancel(self) -> None:
        """Its place is evicted."""
        self.give_up(Outcome.OVER_LIMIT)

    def give_up(self, outcome: Outcome) -> None:
        """End it. The first reason counts."""
        if self.given_up is None:
            self.given_up = outcome
            if self.stop is not None:
                self.stop()


@dataclasses.dataclass(frozen=True, slots=True)
class LaneStart:
    """Where the clients of a port go that C may bring to their satellites."""

    joiner: Joiner
    rules: Pointer
    """See `Opener.admit`."""


class Openings:
    """All of them. `arrived` takes those whose first bytes are there, with their socket, place and record."""

    def __init__(
        self,
        opener: Opener,
        greetings: Deadlines,
        counters: ConnectionCounters,
        arrived: Callable[[Opening, Opened], None],
        gather: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        lanes: Callable[[Port], LaneStart | None] = lambda port: None,
    ) -> None:
        """`gather` makes a block in which many arrive. `lanes`: whether C may bring a port's clients to their satellites."""
        self._opener = opener
        self._greetings = greetings
        self._counters = counters
        self._arrived = arrived
        self._gather = gather
        self._lanes = lanes
        self._open: dict[OpeningId, Opening] = {}
        self._refusing = 0
        """Those that are told why they end."""

    def __len__(self) -> int:
        return len(self._open) + self._refusing

    def beginning(self, listener: int) -> Begin:
        """What begins the connections of one listener."""

        def begin(sock: socket.socket, port: Port, arrival: Arrival, sessions: trio.Nursery) -> None:
            opening = Opening(listener, sock, port, arrival, sessions, trio.current_time())
            arrival.place.scope = opening
            opening.deadline = self._greetings.call(functools.partial(opening.give_up, Outcome.DEADLINE))
            if arrival.by_proxy:
                sessions.start_soon(run_owned, session_owner(arrival), self._read_proxy, opening)
            else:
                self._start(opening)

        return begin

    async def _read_proxy(self, opening: Opening) -> None:
        try:
            transport = Transport(opening.sock)
            outcome = await self._read_origin(opening, transport)
            opening.sock = transport.take_socket()
        except BaseException:
            self._drop(opening)
            raise
        opening.stop = None
        if outcome is None:
            self._start(opening)
        else:
            self._end(opening, outcome)

    @staticmethod
    async def _read_origin(opening: Opening, transport: Transport) -> Outcome | None:
        """Returns how the connection ends, if it does."""
        try:
            with trio.CancelScope() as scope:
                opening.stop = scope.cancel
                if opening.given_up is None:
                    await read_origin(transport, opening.arrival)
        except ConnectionOver as exc:
            return exc.outcome
        except PeerLeft:
            return Outcome.PROBE
        except TransportError as exc:
            opening.arrival.record.error = str(exc)
            return Outcome.BROKEN
        return opening.given_up

    def _start(self, opening: Opening) -> None:
        """Give the socket to the opener."""
        if opening.port.tls is not None:
            opening.arrival.place.cost(TLS_BYTES)  # from now on, since its handshake may begin at any moment
        if opening.given_up is not None:
            self._end(opening, opening.given_up)
            return
        try:
            about = self._give(opening)
        except OSError as exc:
            opening.arrival.record.error = str(exc)
            self._end(opening, Outcome.BROKEN)
            return
        self._open[about] = opening
        opening.stop = functools.partial(self._opener.abort, about)

    def _give(self, opening: Opening) -> OpeningId:
        """Raises OSError, and the socket is here."""
        lane, fd, tls = self._lanes(opening.port), opening.sock.fileno(), opening.port.tls
        if lane is None:
            return self._opener.start(fd, tls)
        about = self._opener.admit(fd, tls, lane.joiner, lane.rules)
        opening.sock.detach()
        return about

    def come_by_lane(self, about: OpeningId) -> Opening:
        """An opening has come as news of a stream. Returns it without its socket."""
        opening = self._open.pop(about)
        self._opener.forget(about)
        opening.stop = None
        self._forget_deadline(opening)
        return opening

    async def run_openings(self) -> None:
        """Take those that are over, for ever. When this is cancelled, all others end."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._opener.event_fd)
                while some := self._opener.take(OPENED_A_TURN):
                    with self._gather():
                        for opened in some:
                            with contained(Owner("opening")):
                                self._take(opened)
                    await trio.lowlevel.checkpoint()
        finally:
            trio.lowlevel.notify_closing(self._opener.event_fd)
            self._opener.close()
            for opening in self._open.values():
                self._drop(opening)
            self._open.clear()

    def _take(self, opened: Opened) -> None:
        opening = self._open.pop(opened.id)
        opening.stop = None
        if opened.fd >= 0:
            opening.take_socket(opened.fd)
        try:
            if opened.step is OpeningStep.DONE and opening.given_up is None:
                self._forget_deadline(opening)
                self._arrived(opening, opened)
                return
        except BaseException:
            self._drop(opening)
            raise
        outcome = opening.given_up or self._outcome_of(opening, opened)
        if outcome is Outcome.MALFORMED and opened.tls is not None and isinstance(opened.error, TlsFlood):
            self._refusing += 1
            why = over(opened.error.limit)
            opening.sessions.start_soon(
                run_owned, session_owner(opening.arrival), self._refuse, opening, opened.tls, why
            )
            return
        if opened.tls is not None:
            opened.tls.close()
        if outcome is Outcome.TLS_FAILED:
            self._refusing += 1
            opening.sessions.start_soon(run_owned, session_owner(opening.arrival), self._leave_alert, opening)
            return
        self._end(opening, outcome)

    async def _leave_alert(self, opening: Opening) -> None:
        """Close a connection to which OpenSSL has sent an alert. In TLS 1.3 the client may have spoken already: if that is
        unread, the kernel sends RST, and the client may lose the alert (RFC 1122, section 4.2.2.13)."""
        try:
            self._forget_deadline(opening)
            with trio.CancelScope() as scope:
                opening.stop = scope.cancel
                await Transport.tuned(opening.sock, None, sent_bytes=1).close_gracefully()
        finally:
            self._refusing -= 1
            self._end(opening, Outcome.TLS_FAILED)

    async def _refuse(self, opening: Opening, tls: TlsConnection, why: GreetingError) -> None:
        """Tell a client that has flooded why it ends, as the control plane tells those that it has."""
        try:
            self._forget_deadline(opening)
            with trio.CancelScope() as scope:
                opening.stop = scope.cancel
                words = last_words(why.error_code, why.message)
                await close_in_order(Transport.tuned(opening.sock, tls, 0), words)
        finally:
            self._refusing -= 1
            self._end(opening, Outcome.MALFORMED)

    def _outcome_of(self, opening: Opening, opened: Opened) -> Outcome:
        error = opened.error
        if error is None or isinstance(error, TlsTruncated | ConnectionError):
            return Outcome.PROBE
        opening.arrival.record.error = str(error)
        if isinstance(error, TlsFlood):
            self._counters.malformed[error.limit] += 1
        if opened.step is OpeningStep.HANDSHAKE:
            return Outcome.TLS_FAILED
        return Outcome.MALFORMED if isinstance(error, TlsFlood) else Outcome.BROKEN

    @staticmethod
    def _forget_deadline(opening: Opening) -> None:
        if opening.deadline is not None:
            opening.deadline.forget()

    def _end(self, opening: Opening, outcome: Outcome) -> None:
        opening.arrival.record.finish(OUTCOME_ENDS[outcome])
        self._counters.ended[outcome] += 1
        self._drop(opening)

    def _drop(self, opening: Opening) -> None:
        self._forget_deadline(opening)
        opening.sock.close()
        opening.arrival.drop()
