"""moto's DynamoDB on a port of its own, with one request at a time: the service's writes are atomic, moto's are not.

As a program it prints its address and serves until its standard input ends.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class _Quiet(WSGIRequestHandler):
    """HTTP/1.1, so that connections are kept as the service keeps them; logs nothing."""

    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class DynamoDbServer:
    def __init__(self) -> None:
        application = DomainDispatcherApplication(create_backend_app)
        one_at_a_time = threading.Lock()

        def serialised(environment: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
            with one_at_a_time:
                return list(application(environment, respond))

        self._server = make_server("127.0.0.1", 0, serialised, threaded=True, request_handler=_Quiet)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="dynamodb")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


if __name__ == "__main__":
    with DynamoDbServer() as server:
        print(server.url, flush=True)
        sys.stdin.read()
