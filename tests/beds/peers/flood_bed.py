"""What the tests of TLS floods share: socket pairs, a raw client, our side of a handshake."""

import contextlib
import select
import socket
import ssl

import trustme

from beds.peers.raw_tls import RawTls
from bentpipe.native.tls import TlsConnection, WantRead

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
DEADLINE_S = 60.0


def pair() -> tuple[socket.socket, socket.socket]:
    """A blocking end for the peer, and ours, which does not block."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    near.settimeout(DEADLINE_S)
    far.setblocking(False)
    return near, far


def shake(tls: TlsConnection, sock: socket.socket) -> None:
    """Complete our side of a handshake."""
    while True:
        try:
            tls.do_handshake()
        except WantRead:
            assert select.select([sock], [], [], DEADLINE_S)[0]
        else:
            return


def raw_client(authority: trustme.CA, sock: socket.socket, version: ssl.TLSVersion) -> RawTls:
    """A client of exactly this version of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    context.minimum_version = context.maximum_version = version
    return RawTls(sock, context)


def say(raw: RawTls, said: bytes) -> None:
    """Send it all, or as much as the other side takes before it ends."""
    with contextlib.suppress(OSError):
        raw.sock.sendall(said)
