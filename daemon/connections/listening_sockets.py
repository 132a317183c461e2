"""The listening sockets of a service beside the clients' (the metrics, the page for operators). A reload may exchange them.

The new sockets are opened while the old ones are served. So an exchange that fails leaves everything as it was. Connections
that were accepted before an exchange go on.
"""

import contextlib
import errno
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import trio

from bentpipe.daemon.connections.listener import bind
from bentpipe.daemon.tasks import Owner, run_owned

Place = tuple[str, int] | Path
"""Where to listen: a host (an IP address, or "" for all) and a port, or the path of a Unix socket."""

Open = Callable[[Place], Sequence[socket.socket]]
"""Opens the sockets of one place. Raises OSError."""


class ListeningSockets:
    """Sockets by their places; it takes them over. `close` closes one, and what belongs to it."""

    def __init__(
        self,
        opened: Mapping[Place, Sequence[socket.socket]],
        close: Callable[[socket.socket], None] = socket.socket.close,
    ) -> None:
        self._of = {place: tuple(sockets) for place, sockets in opened.items()}
        self._close = close
        self._exchanged = trio.Event()
        self._going: list[socket.socket] = []
        """Not served any more, and still open."""
        self._is_served = False

    @property
    def all(self) -> tuple[socket.socket, ...]:
        """Those that listen now."""
        return tuple(sock for sockets in self._of.values() for sock in sockets)

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """(IP address, port) of each that has one, as bound."""
        return tuple(sock.getsockname()[:2] for sock in self.all if sock.family != socket.AF_UNIX)

    def close(self) -> None:
        """Close all."""
        self.exchange({}, ())

    def prepare(self, wanted: Collection[Place], open_at: Open) -> "SocketExchange":
        """Open what is wanted and is not open yet. Nothing else changes. Raises OSError, with nothing left open."""
        opened: dict[Place, tuple[socket.socket, ...]] = {}
        exchange = SocketExchange(self, opened, frozenset(wanted))
        with contextlib.ExitStack() as undo:
            undo.callback(exchange.let_go)
            for place in wanted:
                if place not in self._of:
                    opened[place] = tuple(self._open(place, open_at, wanted))
            undo.pop_all()
        return exchange

    def _open(self, place: Place, open_at: Open, wanted: Collection[Place]) -> Sequence[socket.socket]:
        try:
            return open_at(place)
        except OSError as exc:
            going = [sock for other, sockets in self._of.items() if other not in wanted for sock in sockets]
            if exc.errno != errno.EADDRINUSE or isinstance(place, Path) or not _has_port(going, place[1]):
                raise
        # It is our own port, at another address: for a moment both sockets have it (socket(7), SO_REUSEPORT).
        with _shared_port(going):
            return bind(*place, shared=True)

    def exchange(self, opened: Mapping[Place, tuple[socket.socket, ...]], wanted: Collection[Place]) -> None:
        """Listen on what was opened too, and no more at places that are not wanted."""
        going = {place: sockets for place, sockets in self._of.items() if place not in wanted}
        self._of = {place: sockets for place, sockets in self._of.items() if place in wanted} | dict(opened)
        self._going += [sock for sockets in going.values() for sock in sockets]
        if going or opened:
            self._exchanged.set()
            self._exchanged = trio.Event()
        if not self._is_served:
            self._close_going()

    def _close_going(self) -> None:
        going, self._going = self._going, []
        for sock in going:
            self._close(sock)

    def discard(self, sockets: Iterable[socket.socket]) -> None:
        """Close sockets that were opened and are not used."""
        for sock in sockets:
            self._close(sock)

    async def run_accepting(self, accepting_owner: Owner, begin: Callable[[trio.SocketStream], None]) -> None:
        """Accept on all sockets for ever. `begin` starts a task that serves a connection; it never raises."""
        self._is_served = True
        try:
            while True:
                exchanged = self._exchanged
                async with trio.open_nursery() as accepting:
                    for sock in self.all:
                        accepting.start_soon(run_owned, accepting_owner, self._accept_all, sock, begin)
                    await exchanged.wait()
                    accepting.cancel_scope.cancel()
                for sock in self._going:
                    _accept_waiting(sock, begin)
                self._close_going()
        finally:
            self._is_served = False
            self._close_going()

    @staticmethod
    async def _accept_all(sock: socket.socket, begin: Callable[[trio.SocketStream], None]) -> None:
        # A copy, since this may be started again.
        async with trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup())) as listener:
            while True:
                begin(await listener.accept())


class SocketExchange:
    """Sockets that are open, to be served in place of others: `take` serves them, or `let_go` closes them."""

    def __init__(
        self,
        sockets: ListeningSockets,
        opened: Mapping[Place, tuple[socket.socket, ...]],
        wanted: Collection[Place],
    ) -> None:
        self._sockets = sockets
        self._opened = opened
        self._wanted = wanted

    def take(self) -> None:
        """Serve what was opened, and close what is not wanted any more."""
        self._sockets.exchange(self._opened, self._wanted)

    def let_go(self) -> None:
        """Close what was opened."""
        self._sockets.discard(sock for sockets in self._opened.values() for sock in sockets)


def _accept_waiting(sock: socket.socket, begin: Callable[[trio.SocketStream], None]) -> None:
    """Accept what the kernel has accepted already, and would reset with the close of the socket."""
    sock.setblocking(False)
    with contextlib.suppress(OSError):
        while True:
            begin(trio.SocketStream(trio.socket.from_stdlib_socket(sock.accept()[0])))


def _has_port(sockets: Iterable[socket.socket], port: int) -> bool:
    return any(each.family != socket.AF_UNIX and each.getsockname()[1] == port for each in sockets)


@contextlib.contextmanager
def _shared_port(sockets: Sequence[socket.socket]) -> Iterator[None]:
    internet = [each for each in sockets if each.family != socket.AF_UNIX]
    for each in internet:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        yield
    finally:
        for each in internet:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
