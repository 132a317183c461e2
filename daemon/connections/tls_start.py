"""How a client begins: whether by TLS, and the handshake."""

from bentpipe.daemon.connections.arrival import Arrival
from bentpipe.daemon.connections.held_bytes import TLS_BYTES
from bentpipe.daemon.connections.outcomes import ConnectionOver, Outcome
from bentpipe.daemon.connections.transport import OverLimit, PeerLeft, Transport, TransportError
from bentpipe.native.tls import TlsConnection, TlsServerContext

TLS_RECORD_HANDSHAKE = b"\x16"
"""First byte of every TLS connection (RFC 8446 §5.1, ContentType handshake)."""


async def begins_tls(client: Transport) -> bool:
    """Wait for the first byte and say whether it is TLS's. Raises ConnectionOver, TransportError."""
    first = await client.peek(1)
    if not first:
        raise ConnectionOver(Outcome.PROBE)
    return first == TLS_RECORD_HANDSHAKE


async def start_tls(client: Transport, arrival: Arrival, context: TlsServerContext) -> TlsConnection:
    """Complete the handshake. Raises ConnectionOver, PeerLeft."""
    tls = TlsConnection(context, client.fileno)
    arrival.place.cost(TLS_BYTES)
    try:
        await client.start_tls(tls)
    except PeerLeft:
        raise
    except TransportError as exc:
        arrival.record.error = str(exc)
        raise ConnectionOver(Outcome.TLS_FAILED, exc.limit if isinstance(exc, OverLimit) else None) from exc
    return tls
