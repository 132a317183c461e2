"""A TLS satellite that floods each client with KeyUpdates: `flooding_satellite.py PORT CERTIFICATE KEY WHEN`.

WHEN is `at-once`, behind the handshake and without a word of HTTP/2, or `answering`, once it has read something and sent
its SETTINGS.
"""

import contextlib
import socket
import ssl
import sys
import threading

from beds.http2 import EMPTY_SETTINGS
from beds.peers.raw_tls import RawTls

UPDATES = 20_000


def serve(sock: socket.socket, certificate: str, key: str, when: str) -> None:
    """Flood one connection. Its context is its own: a key log is a context's, and the daemon makes several connections."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.num_tickets = 0
    with contextlib.suppress(OSError, ssl.SSLError), sock:
        raw = RawTls(sock, context, server_side=True)
        if when == "answering":
            if not raw.read():
                return
            sock.sendall(raw.record(EMPTY_SETTINGS))
        for _ in range(UPDATES // 100):
            sock.sendall(b"".join(raw.key_update() for _ in range(100)))
        raw.read_all()


def main() -> None:
    """Serve for ever."""
    port, certificate, key, when = sys.argv[1:]
    with socket.create_server(("127.0.0.1", int(port))) as listener:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock, certificate, key, when), daemon=True).start()


if __name__ == "__main__":
    main()
