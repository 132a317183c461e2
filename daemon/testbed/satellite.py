"""A satellite for the demo and the tests: a real gRPC server (grpcio) in a process of its own.

`python -P -m bentpipe.daemon.testbed.satellite PORT [--host H] [--boot SECONDS] [--fail]`. Methods of
/bentpipe.demo.Satellite/, all with raw bytes as messages:
Echo (unary), Upload (client streaming, answers the SHA-256 of all bytes), Download (server streaming, the request says
how many bytes, the trailer `sha256` has their hash), Chat (bidirectional echo), Sleep (unary, the request says how many
seconds), Fail (unary, ends with the status code of the request and details). It answers grpc.health.v1's Check too, and
offers the boot id and uptime that a satellite may (`daemon/edge/questions.py`): its process is its machine.
"""

import argparse
import concurrent.futures
import hashlib
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence

import grpc

SERVICE = "bentpipe.demo.Satellite"
CHUNK_BYTES = 1 << 20
"""One message of Download: large enough that Python's cost for each byte is small."""
MAX_MESSAGE_BYTES = 64 << 20
MAX_METADATA_BYTES = 64 << 10
BOOT_ID = str(uuid.uuid4())
STARTED_S = time.monotonic()
HEALTHY = b"\x08\x01"
"""HealthCheckResponse in protobuf: SERVING."""
MAX_PENDING = 1 << 20
"""Calls that wait for a worker. If 1,000 wait, gRPC's core cancels some of them by chance; if 3,000 wait, all."""
WORKERS = 256
"""Concurrent calls: each waits in a thread of grpcio's pool."""


def _echo(request: bytes, _context: grpc.ServicerContext) -> bytes:
    return request


def _upload(requests: Iterator[bytes], _context: grpc.ServicerContext) -> bytes:
    digest = hashlib.sha256()
    for chunk in requests:
        digest.update(chunk)
    return digest.hexdigest().encode()


def _download(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    left = int(request)
    digest = hashlib.sha256()
    block = os.urandom(CHUNK_BYTES)
    while left:
        chunk = block[: min(left, CHUNK_BYTES)]
        digest.update(chunk)
        left -= len(chunk)
        yield chunk
    context.set_trailing_metadata((("sha256", digest.hexdigest()),))


def _chat(requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
    yield from requests


def _sleep(request: bytes, context: grpc.ServicerContext) -> bytes:
    ended = threading.Event()
    context.add_callback(ended.set)
    ended.wait(float(request))
    return b"awake"


def _fail(request: bytes, context: grpc.ServicerContext) -> bytes:
    codes = {code.value[0]: code for code in grpc.StatusCode}
    context.abort(codes[int(request)], "as asked for")
    raise AssertionError("abort raises")


def _check(_request: bytes, context: grpc.ServicerContext) -> bytes:
    uptime_s = time.monotonic() - STARTED_S
    context.send_initial_metadata((("bentpipe-boot-id", BOOT_ID), ("bentpipe-uptime-s", f"{uptime_s:.3f}")))
    return HEALTHY


def make_server(
    address: str,
    options: Sequence[tuple[str, int]] = (),
    credentials: grpc.ServerCredentials | None = None,
) -> grpc.Server:
    """Build the server, bound to `address` ("host:port") but not started. Raises RuntimeError if the port is taken.

    `options` are further channel arguments of grpcio. Without credentials it speaks plaintext.
    """
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(WORKERS),
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.server.max_pending_requests", MAX_PENDING),
            ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING),
            *options,
        ],
    )
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "Upload": grpc.stream_unary_rpc_method_handler(_upload),
        "Download": grpc.unary_stream_rpc_method_handler(_download),
        "Chat": grpc.stream_stream_rpc_method_handler(_chat),
        "Sleep": grpc.unary_unary_rpc_method_handler(_sleep),
        "Fail": grpc.unary_unary_rpc_method_handler(_fail),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    health = {"Check": grpc.unary_unary_rpc_method_handler(_check)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),))
    if credentials is None:
        server.add_insecure_port(address)
    else:
        server.add_secure_port(address, credentials)
    return server


def serve_until_sigterm(server: grpc.Server) -> None:
    """Start a server, and let its calls end in good order then."""
    server.start()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopped.set())
    stopped.wait()
    server.stop(grace=1).wait()


def main() -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--boot", type=float, default=0.0, help="seconds that booting takes")
    parser.add_argument("--fail", action="store_true", help="die while booting")
    arguments = parser.parse_args()
    time.sleep(arguments.boot)
    if arguments.fail:
        sys.stderr.write("no space left on the cache volume\n")
        return 3
    serve_until_sigterm(make_server(f"{arguments.host}:{arguments.port}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
