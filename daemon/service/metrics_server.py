"""Serves the metrics to Prometheus, and `/healthz` and `/readyz`: HTTP/1.1, one answer a connection, a socket of its own.

Owns: that socket, and a handful of short connections. Anybody who can connect may read the metrics. So the address should be
a loopback address, unless the network is trusted.
"""

import trio

from bentpipe.daemon.connections.listening_sockets import ListeningSockets
from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.service.exposition import Exposition
from bentpipe.daemon.service.parts import Daemon
from bentpipe.daemon.service.probes import PAGES, examine
from bentpipe.daemon.tasks import Decision, Owner, contained, run_owned

CONNECTIONS = 8
"""Connections at once; a scraper needs one. If there are more, the oldest of the most crowded address is closed: a client
that connects before the scraper cannot keep it out."""
HEAD_BYTES = 8 << 10
"""Of a request's head: Prometheus sends some 300 bytes."""
DEADLINE_S = 5.0
"""From accept to the end of the answer; Prometheus gives up after ten."""
LIMITS = QuotaLimits(
    strangers=CONNECTIONS, strangers_bytes=CONNECTIONS * (64 << 10), per_prefix=CONNECTIONS, admitted=0
)
HEAD_END = b"\r\n\r\n"


class MetricsServer:
    """Answers scrapes."""

    def __init__(self, sockets: ListeningSockets, daemon: Daemon) -> None:
        self._sockets = sockets
        self._daemon = daemon
        self._exposition = Exposition(daemon)
        self._quotas = Quotas(LIMITS, trio.current_time)

    async def run_metrics(self) -> None:
        """Serve for ever, whatever sockets there are."""
        owner = Owner("metrics scrape", decision=Decision.GIVE_UP)
        async with trio.open_nursery() as scrapes:

            def begin(stream: trio.SocketStream) -> None:
                scrapes.start_soon(run_owned, owner, self._serve, stream)

            await self._sockets.run_accepting(Owner("metrics"), begin)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            place = self._quotas.open(str(stream.socket.getpeername()[0]))
            try:
                with trio.move_on_after(DEADLINE_S) as place.scope:
                    head = await _read_head(stream)
                    if head:
                        await stream.send_all(await self._answer(head))
                        await stream.send_eof()
                        # Until the scraper has read it all and closed.
                        await stream.receive_some()
            except trio.BrokenResourceError:
                pass  # the scraper has left, and will come again
            finally:
                place.release()

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        line, _, fields = rest.partition(b"\r\n")
        target, _, version = line.partition(b" ")
        path, _, query = target.partition(b"?")
        if not version.startswith(b"HTTP/1.") or HEAD_END not in head:
            return _response(b"400 Bad Request", b"This is HTTP/1.1.\n")
        if method != b"GET":
            return _response(b"405 Method Not Allowed", b"GET only.\n", b"Allow: GET\r\n")
        if path in PAGES:
            well, page = examine(self._daemon, PAGES[path], query.decode("latin-1"))
            return _response(b"200 OK" if well else b"503 Service Unavailable", page.encode())
        if path != b"/metrics":
            return _response(b"404 Not Found", b"There are /metrics, /healthz and /readyz.\n")
        with contained(Owner("metrics scrape")):
            if self._daemon.planes is not None:
                await self._daemon.planes.read_counters()
            text, kind = await self._exposition.make(_accepted(fields))
            return _response(b"200 OK", text, kind=kind.encode())
        return _response(b"500 Internal Server Error", b"The metrics could not be read; the log says why.\n")


def _accepted(fields: bytes) -> str:
    """The values of the request's field Accept (RFC 9110 §12.5.1)."""
    named = (line.partition(b":") for line in fields.split(b"\r\n"))
    return ",".join(value.decode("latin-1") for name, _, value in named if name.strip().lower() == b"accept")


async def _read_head(stream: trio.SocketStream) -> bytes:
    """Read a request's head, or its beginning if the client ends it or it is longer than HEAD_BYTES."""
    head = b""
    while HEAD_END not in head and len(head) < HEAD_BYTES:
        data = await stream.receive_some(HEAD_BYTES - len(head))
        if not data:
            break
        head += data
    return head


def _response(status: bytes, body: bytes, more: bytes = b"", kind: bytes = b"text/plain; charset=utf-8") -> bytes:
    fields = b"Content-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n" % (kind, len(body))
    return b"HTTP/1.1 " + status + b"\r\n" + fields + more + b"\r\n" + body
