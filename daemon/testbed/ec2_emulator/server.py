"""The emulator as a server: HTTP/1.1, one thread for each connection. POST / is EC2, POST /control/NAME are the controls,
/metadata/INSTANCE is the metadata service of an instance.

In the same process it is a context manager: `with Emulator(...) as emulator` serves `emulator.url`, and
`emulator.control` has the same controls without HTTP.
"""

import contextlib
import dataclasses
import datetime
import enum
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl

from bentpipe.daemon.testbed.ec2_emulator.clock import Clock, ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.cloud import Cloud
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.instance import Timings
from bentpipe.daemon.testbed.ec2_emulator.machines import EmulatedMachines
from bentpipe.daemon.testbed.ec2_emulator.service import ConnectionReset, handle
from bentpipe.daemon.testbed.ec2_emulator.wire import ApiError, error_answer

MACHINE_PORT = 8372
METADATA_PATH = "/metadata"
"""Followed by an instance's id: a process on this host has no link-local address of its own."""
METADATA_TOKEN = "metadata-token"
TOKEN_HEADER, TOKEN_LIFE_HEADER = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"
SIGNED_AGE_S = 300.0
"""AWS takes no signature whose time differs by more from its own clock."""
IDLE_LOOK_S = 0.5
"""Time between looks at the clock while no transition is under way. Needed only with processes: no call moves them on."""


class Emulator:
    """Serves one cloud over HTTP, as a context manager."""

    def __init__(
        self,
        clock: Clock | None = None,
        timings: Timings | None = None,
        *,
        limited: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        machine_command: Sequence[str] = (),
        machine_port: int = MACHINE_PORT,
    ) -> None:
        machines = EmulatedMachines(machine_command, machine_port) if machine_command else None
        self.cloud = Cloud(clock or ScaledClock(), timings or Timings(), limited=limited, machines=machines)
        self.control = Control(self.cloud)
        self._server = _Server((host, port), self.cloud, self.control)
        self._threads = [threading.Thread(target=self._server.serve_forever, args=(0.05,), name="ec2 emulator")]
        self._closing = threading.Event()
        if machines is not None:
            machines.metadata_url = f"{self.url}{METADATA_PATH}"
            self._threads.append(threading.Thread(target=self._run_clock, name="ec2 clock"))

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        self.cloud.faults.clear()
        self._server.shutdown()
        self._server.close_connections()
        self._server.server_close()
        for thread in self._threads:
            thread.join()
        if self.cloud.machines is not None:
            self.cloud.machines.close()

    def _run_clock(self) -> None:
        """Make transitions when they are due, so that processes start and end without a call."""
        while not self._closing.is_set():
            self.cloud.settle()
            due = self.cloud.next_due()
            wait_s = None if due is None else self.cloud.clock.real_s(due - self.cloud.clock.now())
            self._closing.wait(IDLE_LOOK_S if wait_s is None else min(wait_s + 0.001, IDLE_LOOK_S))


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], cloud: Cloud, control: Control) -> None:
        self.cloud = cloud
        self.control = control
        self._open: set[socket.socket] = set()
        self.broken: set[socket.socket] = set()
        """Connections to be reset instead of closed."""
        super().__init__(address, _Handler)

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self._open.discard(request)
        if request in self.broken:
            self.broken.discard(request)
            request.close()  # with SO_LINGER 0 and no FIN before: a reset
        else:
            super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client may leave at any time. Any other error is a bug of the emulator, and its thread reports it."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def close_connections(self) -> None:
        """End the connections that are kept open: their threads wait for them."""
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.path.startswith("/control/"):
            self._answer(*self._control(self.path.removeprefix("/control/"), body), "application/json")
            return
        params = dict(parse_qsl(body.decode(), keep_blank_values=True))
        if self._is_out_of_time():
            words = "AWS was not able to validate the provided access credentials"
            self._answer(401, error_answer(ApiError("AuthFailure", words, 401)), "text/xml;charset=UTF-8")
            return
        try:
            status, answer = handle(self.server.cloud, params, self._principal())
        except ConnectionReset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.server.broken.add(self.connection)
            self.close_connection = True
            return
        self._answer(status, answer, "text/xml;charset=UTF-8")

    def do_PUT(self) -> None:
        """The metadata service, version 2: a token for the session."""
        if self.path.startswith(METADATA_PATH) and self.headers.get(TOKEN_LIFE_HEADER, "").isdigit():
            self._answer(200, METADATA_TOKEN.encode(), "text/plain")
        else:
            self._answer(400, b"", "text/plain")

    def do_GET(self) -> None:
        """The metadata service, version 2: the user data of the moment."""
        instance_id, _, wanted = self.path.removeprefix(METADATA_PATH).strip("/").partition("/")
        instance = self.server.cloud.instances.get(instance_id)
        if self.headers.get(TOKEN_HEADER) != METADATA_TOKEN:
            self._answer(401, b"", "text/plain")
        elif instance is None or wanted != "latest/user-data" or not instance.user_data:
            self._answer(404, b"", "text/plain")
        else:
            self._answer(200, instance.user_data.encode(), "application/octet-stream")

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing: the calls are in the log that the controls read."""

    def _control(self, name: str, body: bytes) -> tuple[int, bytes]:
        if name not in self.server.control.methods():
            return 404, json.dumps({"error": f"no such control: {name}"}).encode()
        try:
            result = getattr(self.server.control, name)(**json.loads(body or b"{}"))
        except (TypeError, ValueError, KeyError) as error:
            return 400, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
        return 200, json.dumps({"result": result}, default=_plain).encode()

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The field Date of answers, by the cloud's clock."""
        now_s = time.time() if timestamp is None else timestamp
        return super().date_time_string(now_s + self.server.cloud.ahead_s)

    def _is_out_of_time(self) -> bool:
        """Whether the request was signed at a time that the cloud does not accept."""
        try:
            signed = datetime.datetime.strptime(self.headers.get("X-Amz-Date", ""), "%Y%m%dT%H%M%SZ")
        except ValueError:
            return False
        signed_s = signed.replace(tzinfo=datetime.UTC).timestamp()
        return abs(time.time() + self.server.cloud.ahead_s - signed_s) > SIGNED_AGE_S

    def _principal(self) -> str:
        found = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        return found.group(1) if found else ""

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"no JSON for {type(value).__name__}")
