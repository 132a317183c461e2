"""From accept to the first complete request: what the port speaks, TLS, greeting. Whoever is no gRPC client leaves here.

A peer that goes away before its request is complete is a probe, however it goes: load balancers connect and close,
reset, break off the TLS handshake, or send an HTTP/2 preface and nothing else. That is counted and no error.
"""

import dataclasses
import logging
from typing import NoReturn

import trio

from bentpipe.daemon.edge.announcements import Announcements
from bentpipe.daemon.edge.arrival import Proxies, read_origin
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.held_bytes import TLS_BYTES
from bentpipe.daemon.edge.identity import TlsIdentity, parse_server_name
from bentpipe.daemon.edge.outcomes import Gone, Outcome
from bentpipe.daemon.edge.transport import OverLimit, PeerLeft, TransportError
from bentpipe.daemon.errors import TlsWanted
from bentpipe.native.tls import TlsConnection, TlsServerContext
from bentpipe.proto.errors import over
from bentpipe.proto.events import NotHttp2, PeerKind, RequestHeaders
from bentpipe.proto.proxy_protocol import PREFIXES
from bentpipe.proto.refusal import HTTP1_ANSWER, HTTP1_TLS_WANTED, TLS_ALERT

log = logging.getLogger("bentpipe.edge")

TLS_WANTED = "this port speaks TLS, and the client does not: let it connect with TLS"

TLS_RECORD_HANDSHAKE = b"\x16"
"""First byte of every TLS connection (RFC 8446 §5.1, ContentType handshake)."""

LONGEST_PREFIX_BYTES = max(map(len, PREFIXES))


@dataclasses.dataclass(frozen=True, slots=True)
class Port:
    """What a listener speaks: TLS or not, below which domain its server names are satellites, behind which proxies."""

    tls: TlsServerContext | None = None
    satellite_domain: str | None = None
    proxies: Proxies = dataclasses.field(default_factory=Proxies)
    one_request: bool = False
    """Whether its clients are frontends that would send several tenants' requests on one connection."""


async def read_request(caller: Caller, port: Port, announcements: Announcements) -> tuple[RequestHeaders, TlsIdentity]:
    """Take the client to the end of its first header block.

    Raises GreetingError, LimitReached, TlsWanted, TransportError, Gone.
    """
    try:
        await read_origin(caller.transport, caller.arrival)
        identity = await _start_tls(caller, port.tls)
        asked = parse_server_name(identity.server_name, port.satellite_domain)
        announced = announcements.announce(asked)
        if port.one_request:
            caller.allow_one_request()
            # Whoever reads it in time opens another connection at once for what it would be refused here.
            announced = dataclasses.replace(announced, streams=1)
        caller.greeting.announce(announced)
        headers = await _greet(caller, HTTP1_ANSWER)
        await _wait_last(caller)
        return headers, identity
    except PeerLeft as exc:
        raise Gone(Outcome.PROBE) from exc


async def _start_tls(caller: Caller, context: TlsServerContext | None) -> TlsIdentity:
    if context is None:
        return TlsIdentity()
    client = caller.transport
    first = await client.peek(1)
    if not first:
        raise Gone(Outcome.PROBE)
    if first != TLS_RECORD_HANDSHAKE:
        if (await client.peek(LONGEST_PREFIX_BYTES)).startswith(PREFIXES):
            await _not_http2(caller, PeerKind.PROXY, b"")
        await _refuse_plain(caller)
    tls = TlsConnection(context, client.fileno)
    caller.place.cost(TLS_BYTES)
    try:
        await client.start_tls(tls)
    except PeerLeft:
        raise
    except TransportError as exc:
        log.info("TLS handshake failed", extra={"fields": {"peer": caller.peer, "error": str(exc)}})
        raise Gone(Outcome.TLS_FAILED, exc.limit if isinstance(exc, OverLimit) else None) from exc
    return TlsIdentity(tls.server_name, tls.peer_certificate_der)


async def _refuse_plain(caller: Caller) -> NoReturn:
    """Hear a client out that speaks in the clear to a port with TLS. Raises TlsWanted behind its request, Gone.

    By a call's own answer: gRPC libraries show it, and wait with the next connection until somebody calls again. A GOAWAY
    instead has them reconnect at once, 20 times a second.
    """
    caller.wants_tls = True
    await _greet(caller, HTTP1_TLS_WANTED)
    raise TlsWanted(TLS_WANTED)


async def _greet(caller: Caller, http1_answer: bytes) -> RequestHeaders:
    received = False
    while True:
        data = caller.transport.receive_nowait()
        if data is None:
            if received:
                caller.greeting.end_of_first_flight()
                await caller.flush()
            await caller.transport.wait_readable()
            continue
        if not data:
            raise Gone(Outcome.PROBE)
        received = True
        for event in caller.receive(data):
            match event:
                case RequestHeaders():
                    return event
                case NotHttp2(kind=kind):
                    await _not_http2(caller, kind, http1_answer)
                case _:
                    pass
        if caller.greeting.leaving:
            raise Gone(Outcome.PROBE)
        await caller.flush()


async def _wait_last(caller: Caller) -> None:
    """Wait until a client that may send one request has heard so. Until then what else it asks is refused."""
    while not caller.knows_it_is_the_last:
        await caller.flush()
        data = await caller.transport.receive_some()
        if not data:
            raise Gone(Outcome.CLIENT_GONE)
        caller.receive(data)
        if caller.greeting.leaving:
            raise Gone(Outcome.CLIENT_GONE)
        if caller.greeting.transcript_full:
            # Reading no more, as while it is held, would never show the ACK; one request's window is a quarter of this.
            raise over("TRANSCRIPT_BYTES")
        await trio.lowlevel.checkpoint()
    if caller.refused_requests:
        fields = {"peer": caller.peer, "requests": caller.refused_requests}
        log.info("further requests refused: one a connection here", extra={"fields": fields})


async def _not_http2(caller: Caller, kind: PeerKind, http1_answer: bytes) -> NoReturn:
    if kind is PeerKind.PROXY:
        log.info(
            "PROXY header of a peer that proxy_protocol.from does not name", extra={"fields": {"peer": caller.peer}}
        )
    answer = {PeerKind.HTTP1: http1_answer, PeerKind.TLS: TLS_ALERT, PeerKind.PROXY: b"", PeerKind.OTHER: b""}[kind]
    outcome = {
        PeerKind.HTTP1: Outcome.HTTP1,
        PeerKind.TLS: Outcome.TLS_ON_PLAIN_PORT,
        PeerKind.PROXY: Outcome.UNTRUSTED_PROXY_HEADER,
        PeerKind.OTHER: Outcome.NOT_HTTP2,
    }[kind]
    await caller.transport.send_all(answer)
    await caller.transport.close_gracefully()
    raise Gone(outcome)
