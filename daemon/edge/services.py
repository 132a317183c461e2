"""Who answers a connection. Its first request decides that once, for as long as the connection lives.

HTTP/2, and a service `takes` the path of the first request    that service (`Edge.services`)
HTTP/2, and any other path                                     the satellite that the request asks for (`splicing.py`)
HTTP/1.1, on a port with the control API                       the control API (`Edge.api`)
HTTP/2 without a request for long, on such a port              the control API, until the first request
any other protocol                                             it is refused: see `OTHER_PROTOCOLS`
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.identity import TlsIdentity
from bentpipe.proto.events import PeerKind, RequestHeaders
from bentpipe.proto.refusal import HTTP1_ANSWER, HTTP1_TLS_WANTED, TLS_ALERT


class ServedConnection(Protocol):
    """A connection that a service of the daemon's own answers."""

    @property
    def last_stream(self) -> int:
        """The highest stream that the client opened; 0 if none."""
        ...

    async def run(self) -> Outcome:
        """Answer what the caller has said already and goes on to say, until either side ends it.

        Raises TransportError, ConnectionOver.
        """
        ...

    def dispose(self) -> None:
        """Free its memory now, instead of at some garbage collection."""
        ...


class Service(Protocol):
    """A service of the daemon's own."""

    def takes(self, path: bytes, *, names_satellite: bool) -> bool:
        """Whether the service answers a connection whose first request has this `:path`, and perhaps names a satellite."""
        ...

    def open(self, caller: Caller, identity: TlsIdentity, domain: str | None) -> ServedConnection:
        """Take such a connection. `domain` is the port's: a server name below it is a satellite's."""
        ...


class HttpService(Service, Protocol):
    """A service that speaks HTTP/1.1 too, and whose clients may wait with their first request, on the ports that are
    configured for it."""

    def open_waiting(self, caller: Caller, domain: str | None) -> ServedConnection:
        """Take a connection that has said that it speaks HTTP/2, and has made no request before `greeting_deadline`.

        `domain` is the port's, as for `open`.
        """
        ...

    def open_http1(self, caller: Caller, identity: TlsIdentity) -> ServedConnection:
        """Take a connection that speaks HTTP/1.1."""
        ...


def service_of(services: Iterable[Service], request: RequestHeaders, *, names_satellite: bool) -> Service | None:
    """Find the service that a connection's first request is for; None if it is for a satellite."""
    path = dict(request.headers).get(b":path", b"")
    return next((each for each in services if each.takes(path, names_satellite=names_satellite)), None)


OTHER_PROTOCOLS: Mapping[PeerKind, tuple[Outcome, bytes]] = {
    PeerKind.HTTP1: (Outcome.HTTP1, HTTP1_ANSWER),
    PeerKind.TLS: (Outcome.TLS_ON_PLAIN_PORT, TLS_ALERT),
    PeerKind.PROXY: (Outcome.UNTRUSTED_PROXY_HEADER, b""),
    PeerKind.OTHER: (Outcome.NOT_HTTP2, b""),
}
"""How the connection of a client that does not speak HTTP/2 is counted, and what the client is told."""


def answer_to(kind: PeerKind, connection_id: str, *, wants_tls: bool) -> tuple[Outcome, bytes]:
    """Look the two up. `wants_tls`: the client speaks in the clear to a port with TLS. HTTP/1.1 gets the id as a field."""
    outcome, answer = OTHER_PROTOCOLS[kind]
    if kind is PeerKind.HTTP1:
        line, _, rest = (HTTP1_TLS_WANTED if wants_tls else answer).partition(b"\r\n")
        return outcome, b"%s\r\nBentpipe-Connection: %s\r\n%s" % (line, connection_id.encode(), rest)
    return outcome, answer
