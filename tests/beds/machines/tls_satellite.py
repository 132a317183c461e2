"""A satellite that serves TLS: `python -P -m beds.machines.tls_satellite PORT HOST FOLDER`.

Its certificate and key are FOLDER/HOST.pem, so that each machine has its own.
"""

import sys
from pathlib import Path

import grpc

from bentpipe.daemon.testbed.satellite import make_server, serve_until_sigterm


def main() -> int:
    """Serve until SIGTERM."""
    port, host, folder = sys.argv[1:4]
    pem = (Path(folder) / f"{host}.pem").read_bytes()
    serve_until_sigterm(make_server(f"{host}:{port}", credentials=grpc.ssl_server_credentials([(pem, pem)])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
