"""Serves the site on its sockets: a loopback address, a Unix socket, or both. Connections are few and bounded."""

import contextlib
import socket
from http import HTTPStatus

import trio

from bentpipe.daemon.admin.counters import Turned
from bentpipe.daemon.admin.guard import ANSWER_FIELDS
from bentpipe.daemon.admin.http1 import BadRequest, BrowserConnection, BrowserRequest, HttpReply
from bentpipe.daemon.admin.site import Site
from bentpipe.daemon.connections.listening_sockets import ListeningSockets
from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.errors import LimitReached
from bentpipe.daemon.private_socket import peer_of
from bentpipe.daemon.tasks import Decision, Owner, run_owned

STRANGERS, ADMITTED = 64, 256
"""Connections at once: without a sign-in, and with one. A browser opens six at most."""
LIMITS = QuotaLimits(
    strangers=STRANGERS, strangers_bytes=STRANGERS * (64 << 10), per_prefix=STRANGERS, admitted=ADMITTED
)
UNIX = "unix"
"""Stands for the address of a peer that has none."""


class AdminServer:
    """Serves sockets that listen already. It does not close them."""

    def __init__(self, sockets: ListeningSockets, site: Site) -> None:
        self._sockets = sockets
        self._site = site
        self._quotas = Quotas(LIMITS, trio.current_time)

    async def run_admin(self) -> None:
        """Serve for ever."""
        async with trio.open_nursery() as browsers:
            self._site.actions.start(browsers)
            browsers.start_soon(run_owned, Owner("admin feed"), self._site.feed.run_feed)
            owner = Owner("admin connection", decision=Decision.GIVE_UP)

            def begin(stream: trio.SocketStream) -> None:
                browsers.start_soon(run_owned, owner, self._serve, stream)

            await self._sockets.run_accepting(Owner("admin"), begin)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            is_unix = stream.socket.family == socket.AF_UNIX
            if is_unix and not peer_of(stream.socket).is_trusted:
                return  # the file's mode keeps others out already
            try:
                peer = UNIX if is_unix else str(stream.socket.getpeername()[0])
            except OSError:
                return  # it has left already
            with self._quotas.open(peer) as place, trio.CancelScope() as scope:
                place.scope = scope

                async def handle(request: BrowserRequest) -> HttpReply:
                    answer = await self._site.answer(request, local=is_unix)
                    if name := self._site.principal_of(request, local=is_unix):
                        try:
                            place.promote(name, None)
                        except LimitReached as exc:
                            busy = BadRequest(exc.peer_hint, HTTPStatus.SERVICE_UNAVAILABLE)
                            return self._site.refuse(busy, Turned.CONNECTIONS)
                    return answer

                # Either says that the browser has left.
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await BrowserConnection(stream, ANSWER_FIELDS).run(handle, self._site.refuse)
