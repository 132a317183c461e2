"""The control API on a Unix socket beside the control socket, for root and the daemon's own user on this host."""

import socket
from pathlib import Path

import trio

from bentpipe.daemon.api.server import ControlApi
from bentpipe.daemon.connections.arrival import Arrival, Proxies
from bentpipe.daemon.connections.outcomes import ConnectionOver, Outcome
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.connections.transport import Transport, TransportError
from bentpipe.daemon.edge.announcements import Announcements
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.opening import FirstRequest, Opening, read_opening
from bentpipe.daemon.errors import BentpipeError
from bentpipe.daemon.private_socket import PrivateListener
from bentpipe.daemon.records.book import Book
from bentpipe.daemon.service.control import OWNER, ControlError, check_peer
from bentpipe.daemon.tasks import Decision, Owner, contained, run_owned
from bentpipe.proto.errors import GreetingError

SOCKET_NAME = "api.sock"
CONNECTIONS = 64
"""At once. A newcomer puts out the oldest that has not asked anything."""
LIMITS = QuotaLimits(
    strangers=CONNECTIONS,
    strangers_bytes=CONNECTIONS << 17,
    per_prefix=CONNECTIONS,
    admitted=CONNECTIONS,
    said_bytes=64 << 20,
)
BROKEN = (TransportError, GreetingError, BentpipeError)
"""How a connection of a caller that does not speak the API ends, without a word."""
PORT = Port(serves_api=True)
OPENING_S = 10.0
"""From accept to the first request."""


def local_api_path(control: Path) -> Path:
    """Where the socket is, beside the control socket."""
    return control.with_name(SOCKET_NAME)


class LocalApi:
    """Serves the API there. It takes the socket, and removes its file at the end."""

    def __init__(self, sock: PrivateListener, api: ControlApi, book: Book) -> None:
        self._sock = sock
        self._book = book
        self._quotas = Quotas(LIMITS, trio.current_time)
        self.api = api

    async def run_local_api(self) -> None:
        """Serve for ever."""
        # A copy, since this may be started again.
        with trio.socket.from_stdlib_socket(self._sock.dup()) as listener:
            async with trio.open_nursery() as nursery:
                while True:
                    accepted, _ = await listener.accept()
                    sock = socket.socket(fileno=accepted.detach())
                    owner = Owner("local api", decision=Decision.GIVE_UP)
                    nursery.start_soon(run_owned, owner, self._serve, sock)

    def close(self) -> None:
        """Close the socket and remove its file, unless the file belongs to another daemon by now."""
        with contained(Owner("local api")):
            self._sock.remove(OWNER)

    async def _serve(self, sock: socket.socket) -> None:
        transport = Transport(sock)
        try:
            check_peer(sock)
            caller = Caller(transport, Arrival(self._quotas, None, Proxies(), self._book))
            with caller.record as record, caller.place as place:
                outcome = Outcome.OVER_LIMIT
                with trio.CancelScope() as place.scope:
                    try:
                        outcome = await self._answer(caller)
                    except ConnectionOver as exc:
                        outcome = exc.outcome
                    except BROKEN as exc:
                        outcome, record.error = Outcome.BROKEN, str(exc)
                    await transport.close_gracefully()
                caller.note_end(outcome)
        except ControlError:
            pass  # another user's; the file's mode keeps them out already
        finally:
            transport.close()

    async def _answer(self, caller: Caller) -> Outcome:
        opening: Opening | None = None
        with trio.move_on_after(OPENING_S):
            opening = await read_opening(caller, PORT, Announcements())
        if isinstance(opening, FirstRequest):
            connection = self.api.open(caller, opening.identity, None)
        elif opening is None and caller.greeting.asks_nothing:
            connection = self.api.open_waiting(caller, None)
        else:
            return Outcome.NOT_HTTP2
        try:
            return await connection.run()
        finally:
            connection.dispose()
