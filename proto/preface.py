"""Tells an HTTP/2 client's first bytes from those of other clients that came to the wrong port."""

from bentpipe.proto.events import PeerKind
from bentpipe.proto.frames import PREFACE
from bentpipe.proto.proxy_protocol import PREFIXES

HTTP1_METHODS = (b"GET ", b"POST ", b"PUT ", b"HEAD ", b"OPTIONS ", b"DELETE ", b"PATCH ", b"CONNECT ", b"TRACE ")
TLS_HANDSHAKE = b"\x16\x03"
"""A record of type handshake, of any version of TLS (RFC 8446 §5.1)."""


def recognise(start: bytes) -> PeerKind | None:
    """Return which kind of client begins with `start`, which is not the whole preface; None if it is not clear yet."""
    if PREFACE.startswith(start):
        return None
    # A method's name may still be incomplete: wait for it, unless no method begins like this.
    if any(name.startswith(start) and len(start) < len(name) for name in (*HTTP1_METHODS, *PREFIXES)):
        return None
    if len(start) < len(TLS_HANDSHAKE) and TLS_HANDSHAKE.startswith(start):
        return None
    if start.startswith(HTTP1_METHODS):
        return PeerKind.HTTP1
    if start.startswith(PREFIXES):
        return PeerKind.PROXY
    return PeerKind.TLS if start.startswith(TLS_HANDSHAKE) else PeerKind.OTHER
