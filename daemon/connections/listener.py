"""The listening sockets: accepts connections within their limits, and begins each one, with a place on a quota."""

import dataclasses
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping

import trio

from bentpipe.config.model import ListenerSection
from bentpipe.daemon.connections.arrival import Arrival
from bentpipe.daemon.connections.ends import OUTCOME_ENDS
from bentpipe.daemon.connections.outcomes import ConnectionCounters, Outcome
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.connections.transport import Transport, tune_socket
from bentpipe.daemon.model import Address
from bentpipe.daemon.records.book import Book
from bentpipe.daemon.tasks import Decision, Owner, run_owned

log = logging.getLogger("bentpipe.edge")

BACKLOG = 4096
"""If many held builds reconnect at once, the kernel must not drop their SYNs. The kernel caps the value at somaxconn."""

DEFER_ACCEPT_S = 1
"""For so long the kernel waits for a client's first byte before it gives the connection to `accept` (tcp(7),
TCP_DEFER_ACCEPT). Then it does so at the next packet: it sends its SYN+ACK again, which the client answers. 1 s is the first
retransmission, so a silent client becomes a stranger after a second, and its time begins then. A FIN counts as a byte."""

ACCEPT_BACKOFF_S = 0.1
"""Pause after accept has failed because no descriptor or memory is left, or for another reason that lasts: else it would
fail in a busy loop (accept(2), EMFILE)."""

ACCEPT_BATCH = 16
"""Connections accepted in one turn: if many come at once there is one wait a batch, and other sessions still get turns."""

NETWORK_ERRNOS = frozenset(
    {
        *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ETIMEDOUT),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET),
    }
)
"""Errors of accept that concern one connection, which is then gone (accept(2)). Any other error would come again at once."""

EXHAUSTED_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""The process or the host has run out of what a connection needs: old strangers are evicted (`Quotas.make_room`)."""

NO_DESCRIPTORS = "only the descriptors that are kept in reserve are left"

PAUSE_S = 0.005
"""Between two looks whether a stranger has left, while none may be evicted for a newcomer: see `Quotas.pause_s`."""


def bind(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Open listening sockets: one for an address; for an empty host one for both families, or IPv4 alone.

    `shared`: other sockets of this process that have the option SO_REUSEPORT may have the port too. Raises OSError.
    """
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return [_listen(family, host, port, v6only=True, shared=shared)]
    if socket.has_dualstack_ipv6():
        return [_listen(socket.AF_INET6, "::", port, v6only=False, shared=shared)]
    return [_listen(socket.AF_INET, "0.0.0.0", port, v6only=True, shared=shared)]


def listen_for(section: ListenerSection, passed: Mapping[str, list[socket.socket]]) -> list[socket.socket]:
    """Open the sockets of one listener, or take those that systemd has passed for it. Raises OSError."""
    if section.address is not None:
        return [defer_accept(sock, section) for sock in bind(*section.address)]
    if section.systemd is not None and section.systemd in passed:
        return [defer_accept(sock, section) for sock in passed[section.systemd]]
    raise OSError(f"listener: systemd passed no socket named {section.systemd!r}, only {sorted(passed)}")


def defer_accept(sock: socket.socket, section: ListenerSection) -> socket.socket:
    """Let the kernel keep silent clients for DEFER_ACCEPT_S, or not, as the listener says. Returns the socket.

    What a systemd unit has set (DeferAcceptSec=) stays, if the listener defers at all.
    """
    if sock.family != socket.AF_UNIX:
        seconds = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) or DEFER_ACCEPT_S
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, seconds if section.defer_accept else 0)
    return sock


def _listen(family: socket.AddressFamily, host: str, port: int, *, v6only: bool, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        sock.bind((host, port))
        sock.listen(BACKLOG)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    except OSError as exc:
        sock.close()
        raise OSError(exc.errno, f"cannot listen on {Address(host, port)}: {exc.strerror}") from exc
    return sock


class Door:
    """Whether connections are accepted at all: those that are not wait in the kernel's queue."""

    def __init__(self) -> None:
        self._opened = trio.Event()
        self._opened.set()

    @property
    def is_open(self) -> bool:
        """Whether connections are accepted."""
        return self._opened.is_set()

    def open(self) -> None:
        """Accept connections."""
        self._opened.set()

    def shut(self) -> None:
        """Accept none until the door is opened."""
        if self.is_open:
            self._opened = trio.Event()

    async def wait_open(self) -> None:
        """Return once connections are accepted."""
        await self._opened.wait()


@dataclasses.dataclass(slots=True)
class Gate:
    """How many connections all listeners together let in."""

    quotas: Quotas
    counters: ConnectionCounters
    book: Book
    admit_below_fd: int = 1 << 30
    """Connections whose descriptor is this or higher are closed: the rest is for everything else. It changes with the
    number of satellites."""
    door: Door = dataclasses.field(default_factory=Door)


Serve = Callable[[Transport, Port, Arrival], Awaitable[None]]
"""Takes a connection to its end. It owns the transport and the arrival's place from its first step on."""

Begin = Callable[[socket.socket, Port, Arrival, trio.Nursery], None]
"""Takes a socket that was accepted, and the arrival with its place and its record. Whatever task it needs is in the nursery.
It never raises."""


def session_owner(arrival: Arrival) -> Owner:
    """What a task of one connection is called, and what its failure means: the end of that connection."""
    return Owner("session", arrival.peer, Decision.GIVE_UP)


def in_tasks(serve: Serve) -> Begin:
    """Begin each connection with a task of its own."""

    def begin(sock: socket.socket, port: Port, arrival: Arrival, sessions: trio.Nursery) -> None:
        sessions.start_soon(run_owned, session_owner(arrival), run, sock, port, arrival)

    async def run(sock: socket.socket, port: Port, arrival: Arrival) -> None:
        with arrival.record:
            try:
                sock.setblocking(False)
                transport = Transport(sock, tuned=True)  # by its listening socket
            except BaseException:
                sock.close()
                arrival.place.release()
                raise
            await serve(transport, port, arrival)

    return begin


class Listener:
    """Accepts on one listening socket, which it takes over."""

    def __init__(self, sock: socket.socket, port: Port, gate: Gate, begin: Begin) -> None:
        tune_socket(sock)
        self._sock = sock
        self.port = port
        """For new connections; open connections keep the port that they came by."""
        self._gate = gate
        self._begin = begin
        self._failing = ""

    @property
    def failing(self) -> str:
        """Why it cannot accept now; "" if it can."""
        return self._failing

    @property
    def address(self) -> tuple[str, int]:
        """(IP address, port) as bound."""
        name = self._sock.getsockname()
        return name[0], name[1]

    async def run_listener(self, sessions: trio.Nursery) -> None:
        """Accept for ever, tasks of connections in `sessions`; closes the socket when cancelled."""
        try:
            await run_owned(Owner("listener", str(self.address)), self._accept_all, sessions)
        finally:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    async def _accept_all(self, sessions: trio.Nursery) -> None:
        while True:
            if not self._gate.door.is_open:
                await self._gate.door.wait_open()
            await trio.lowlevel.wait_readable(self._sock)
            for _ in range(ACCEPT_BATCH):
                if not await self._accept(sessions):
                    break

    async def _accept(self, sessions: trio.Nursery) -> bool:
        """Accept one connection. Returns whether there was one."""
        quotas = self._gate.quotas
        while (pause_s := quotas.pause_s()) > 0:
            await trio.sleep(min(pause_s, PAUSE_S))
        try:
            sock, name = self._sock.accept()
        except BlockingIOError:
            return False
        except OSError as exc:
            self._gate.counters.accept_errors += 1
            if exc.errno not in NETWORK_ERRNOS:
                self._tell_failing(str(exc))
                if exc.errno in EXHAUSTED_ERRNOS:
                    quotas.make_room()
                await trio.sleep(ACCEPT_BACKOFF_S)
            return False
        self._gate.counters.accepted += 1
        if sock.fileno() >= self._gate.admit_below_fd and not quotas.make_room():
            sock.close()
            self._gate.counters.ended[Outcome.OVER_LIMIT] += 1
            with self._gate.book.open(f"{name[0]}:{name[1]}" if name else "unix") as record:
                record.finish(OUTCOME_ENDS[Outcome.OVER_LIMIT], NO_DESCRIPTORS)
            self._tell_failing(NO_DESCRIPTORS)
            await trio.sleep(ACCEPT_BACKOFF_S)
            return False
        self._tell_failing("")
        arrival = Arrival(quotas, (str(name[0]), name[1]) if name else None, self.port.proxies, self._gate.book)
        self._begin(sock, self.port, arrival, sessions)
        return True

    def _tell_failing(self, failing: str) -> None:
        """Log the first failure of a series, and the end of the series."""
        if failing and failing != self._failing:
            log.warning("cannot accept", extra={"fields": {"error": failing}})
        elif self._failing and not failing:
            log.info("can accept again")
        self._failing = failing
