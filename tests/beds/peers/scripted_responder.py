"""A real gRPC server in the place of a responder, which says what the test says."""

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator

import grpc

from bentpipe.proto import responder_pb2 as pb


@contextlib.contextmanager
def scripted_responder(answer: Callable[[], pb.Status]) -> Iterator[int]:
    """Serve inside the block, on the port that is given."""

    def respond(request: bytes, context: grpc.ServicerContext) -> bytes:
        return answer().SerializeToString()

    handler = grpc.method_handlers_generic_handler(
        "bentpipe.responder.v1.Responder", {"GetStatus": grpc.unary_unary_rpc_method_handler(respond)}
    )
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(grace=None).wait()
