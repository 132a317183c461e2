"""moto's DynamoDB on a port of its own, with one request at a time: the service's writes are atomic, moto's are not."""

import io
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self
from wsgiref.types import StartResponse, WSGIEnvironment

import urllib3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

LIST_TABLES = {
    "Content-Type": "application/x-amz-json-1.0",
    "X-Amz-Target": "DynamoDB_20120810.ListTables",
    # moto takes the service from it, and checks no signature.
    "Authorization": "AWS4-HMAC-SHA256 Credential=K/20260101/eu-central-1/dynamodb/aws4_request, SignedHeaders=, Signature=",
}
LOAD_DEADLINE_S = 60.0


class _Quiet(WSGIRequestHandler):
    """HTTP/1.1, so that connections are kept as the service keeps them; logs nothing."""

    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: object) -> None:
        pass


class DynamoDbServer:
    """`after(body)`, if set, is called with each request once it was carried out and before it is answered."""

    def __init__(self) -> None:
        application = DomainDispatcherApplication(create_backend_app)
        one_at_a_time = self._one_at_a_time = threading.Lock()
        self.after: Callable[[bytes], None] | None = None

        def serialised(environment: WSGIEnvironment, respond: StartResponse) -> Iterable[bytes]:
            body = environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            environment["wsgi.input"] = io.BytesIO(body)
            with one_at_a_time:
                answer = list(application(environment, respond))
                if self.after is not None:
                    self.after(body)
                return answer

        self._server = ThreadedWSGIServer("127.0.0.1", 0, serialised, handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="dynamodb")

    def delete_tables(self, beginning: str) -> None:
        """Delete all tables whose names begin so."""
        from moto.dynamodb.models import dynamodb_backends

        with self._one_at_a_time:
            for regions in dynamodb_backends.values():
                for backend in regions.values():
                    for name in [each for each in backend.tables if each.startswith(beginning)]:
                        del backend.tables[name]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        # moto loads itself for its first request, which takes longer on a busy machine than the daemon waits for an answer.
        urllib3.request("POST", self.url, body="{}", headers=LIST_TABLES, timeout=LOAD_DEADLINE_S, retries=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
