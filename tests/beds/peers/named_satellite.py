"""A satellite that says whose it is: Echo answers with the name it was given, and the tokens it was sent go to a file.

usage: python -P named_satellite.py HOST PORT NAME FILE [KEYS]

With a file KEYS/NAME.pem (key and certificate) it speaks TLS.
"""

import concurrent.futures
import signal
import sys
import threading
from pathlib import Path

import grpc


def main() -> None:
    host, port, name, seen, *keys = sys.argv[1:]

    def echo(_request: bytes, context: grpc.ServicerContext) -> bytes:
        token = dict(context.invocation_metadata()).get("satellite_token", "")
        with Path(seen).open("a") as file:
            file.write(f"{name} {token}\n")
        return name.encode()

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bentpipe.demo.Satellite", handlers),))
    pem = Path(*keys, f"{name}.pem")
    if keys and pem.exists():
        both = pem.read_bytes()
        server.add_secure_port(f"{host}:{port}", grpc.ssl_server_credentials([(both, both)]))
    else:
        server.add_insecure_port(f"{host}:{port}")
    server.start()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()


if __name__ == "__main__":
    main()
