"""From accept to the first complete request: the PROXY header, TLS, the greeting, and what else a client may speak.

A peer that goes away before its request is complete counts as a probe, and not as an error. Load balancers check health by
connecting and closing, by a reset, by breaking off the TLS handshake, or by an HTTP/2 preface and nothing else.
"""

import dataclasses
import logging

import trio

from bentpipe.daemon.connections.arrival import read_origin
from bentpipe.daemon.connections.outcomes import ConnectionOver, Outcome
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.connections.server_name import parse_server_name
from bentpipe.daemon.connections.tls_start import begins_tls, start_tls
from bentpipe.daemon.connections.transport import PeerLeft, Transport
from bentpipe.daemon.edge.announcements import Announcements
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.identity import TlsIdentity
from bentpipe.daemon.errors import TlsWanted
from bentpipe.proto.errors import over
from bentpipe.proto.events import NotHttp2, PeerKind, RequestHeaders
from bentpipe.proto.proxy_protocol import PREFIXES

log = logging.getLogger("bentpipe.edge")

TLS_WANTED = "this port speaks TLS, and the client does not: let it connect with TLS"

LONGEST_PREFIX_BYTES = max(map(len, PREFIXES))


@dataclasses.dataclass(frozen=True, slots=True)
class FirstRequest:
    """The client speaks HTTP/2, and its first header block is complete."""

    headers: RequestHeaders
    identity: TlsIdentity


@dataclasses.dataclass(frozen=True, slots=True)
class OtherProtocol:
    """The client speaks something else. The caller's greeting still has its bytes."""

    kind: PeerKind
    identity: TlsIdentity = dataclasses.field(default_factory=TlsIdentity)


Opening = FirstRequest | OtherProtocol


async def read_opening(caller: Caller, port: Port, announcements: Announcements) -> Opening:
    """Read until it is known who has to answer: to the end of the first header block, or to the first byte of another
    protocol.

    Raises GreetingError, LimitReached, TlsWanted, TransportError, ConnectionOver.
    """
    try:
        identity = await _secured(caller, port)
        if identity is None:
            return await _hear_out(caller)
        caller.identity = identity
        asked = parse_server_name(identity.server_name, port.satellite_domain)
        announced = announcements.announce(asked)
        if port.one_request:
            caller.allow_one_request()
            # A client that reads this in time opens another connection at once for a request that would be refused here.
            announced = dataclasses.replace(announced, streams=1)
        if caller.offer is not None and caller.offer.mark is not None:
            caller.greeting.resume(caller.offer.mark)
        if not caller.greeting.spoke:
            caller.greeting.announce(announced)
        first = await _greet(caller)
        if isinstance(first, OtherProtocol):
            return dataclasses.replace(first, identity=identity)
        await _wait_last(caller)
        return FirstRequest(first, identity)
    except PeerLeft as exc:
        raise ConnectionOver(Outcome.PROBE) from exc


async def _secured(caller: Caller, port: Port) -> TlsIdentity | None:
    """Read a PROXY header and complete the TLS handshake, unless the data plane has. None: it should be TLS, and is not."""
    if caller.offer is not None:
        return None if caller.offer.plaintext else caller.offer.identity
    client = caller.transport
    assert isinstance(client, Transport), "only the data plane's clients are not ours"
    await read_origin(client, caller.arrival)
    client.received_bytes = 0  # a PROXY header is not the client's
    if port.tls is None:
        return TlsIdentity()
    if not await begins_tls(client):
        return None
    tls = await start_tls(client, caller.arrival, port.tls)
    return TlsIdentity(tls.server_name, tls.peer_certificate_der)


async def _hear_out(caller: Caller) -> OtherProtocol:
    """Read the first request of a client that speaks in the clear to a port with TLS. Raises TlsWanted if it is HTTP/2.

    The client is refused by a call's own answer: gRPC libraries show it, and wait with the next connection until somebody
    calls again. A GOAWAY instead has them reconnect at once, 20 times a second.
    """
    if (await caller.transport.peek(LONGEST_PREFIX_BYTES)).startswith(PREFIXES):
        return OtherProtocol(PeerKind.PROXY)
    caller.wants_tls = True
    first = await _greet(caller)
    if isinstance(first, OtherProtocol):
        return first
    raise TlsWanted(TLS_WANTED)


async def _greet(caller: Caller) -> RequestHeaders | OtherProtocol:
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
            raise ConnectionOver(Outcome.PROBE)
        received = True
        for event in caller.receive(data):
            match event:
                case RequestHeaders():
                    return event
                case NotHttp2(kind=kind):
                    return OtherProtocol(kind)
                case _:
                    pass
        if caller.greeting.leaving:
            raise ConnectionOver(Outcome.PROBE)
        await caller.flush()


async def _wait_last(caller: Caller) -> None:
    """Wait until the client has read that it may send one request. Any other request of it is refused until then."""
    while not caller.knows_it_is_the_last:
        await caller.flush()
        data = await caller.transport.receive_some()
        if not data:
            raise ConnectionOver(Outcome.CLIENT_GONE)
        caller.receive(data)
        if caller.greeting.leaving:
            raise ConnectionOver(Outcome.CLIENT_GONE)
        if caller.greeting.transcript_full:
            # If we stopped reading, as for a held client, its ACK would never come; one request's window is a quarter of
            # this.
            raise over("TRANSCRIPT_BYTES")
        await trio.lowlevel.checkpoint()
    if caller.refused_requests:
        fields = {"id": caller.record.id, "peer": caller.peer, "requests": caller.refused_requests}
        log.info("further requests refused: one a connection here", extra={"fields": fields})
