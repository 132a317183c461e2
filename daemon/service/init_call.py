"""Runs the daemon of a new installation, makes one call through it as a client would, and stops it.

The client trusts only the authority that was just made. It logs in by HTTP, and calls the satellite by gRPC with the session
that it got. So a fault in the certificates, the token, the configuration or the satellite's program shows here.
"""

import collections
import contextlib
import json
import logging
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import trio
import urllib3

from bentpipe.config.model import Config
from bentpipe.daemon.api.client import ControlApiError, Server, exchange
from bentpipe.daemon.errors import BentpipeError, Source
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.init_satellite import Program
from bentpipe.daemon.service.log_formatters import TextFormatter
from bentpipe.daemon.service.parts import Daemon
from bentpipe.daemon.service.serve import serve
from bentpipe.daemon.service.signals import run_with_signals
from bentpipe.native.tls import TlsError
from bentpipe.proto.grpc_status import GrpcStatus

LOGIN_PATH = "/api/v0/account/login"
LOGIN_TIMEOUT_S = 20.0
ANSWER_BYTES = 64 << 10
OK = 200

WAKE_MARGIN_S = 30.0
"""Beyond the satellite's wake_deadline, in which the daemon says why a wake has failed."""
LOG_LINES = 20
"""The daemon's last warnings and errors, which are shown if the call fails."""

Say = Callable[[str], None]


class FirstCallFailed(BentpipeError):
    """The files are written, but the daemon did not start or the call through it failed."""

    source = Source.OPERATOR


def make_first_call(config: Config, ca: Path, token: str, program: Program, say: Say) -> None:
    """Start the daemon, make the call, stop the daemon; each step is told by `say`. Raises FirstCallFailed."""
    ended = "interrupted"

    async def run(started: trio.TaskStatus[Daemon]) -> int:
        nonlocal ended
        async with trio.open_nursery() as nursery:
            try:
                daemon = await nursery.start(serve, config)
            except (OSError, TlsError) as exc:
                ended = f"the daemon did not start: {exc}"
                return 0
            started.started(daemon)
            try:
                port = daemon.addresses[0][1]
                say(f"started the daemon on port {port}")
                server = Server(f"https://localhost:{port}", token, ca)
                await trio.to_thread.run_sync(_call, server, config, program, say, abandon_on_cancel=True)
                ended = ""
            except FirstCallFailed as exc:
                ended = str(exc)
            finally:
                daemon.drain.set()
        return 0

    with _kept_log() as lines:
        trio.run(run_with_signals, run)
    if ended:
        raise FirstCallFailed("\n".join((ended, *(f"  log: {line}" for line in lines))))
    say("stopped the daemon, and the satellite with it")


def _call(server: Server, config: Config, program: Program, say: Say) -> None:
    """Log in and call the first satellite. Raises FirstCallFailed."""
    session = _log_in(server)
    say("logged in with the token, and verified the certificate")
    satellite = config.satellite[0]
    key = SatelliteKey(satellite.org, satellite.name)
    metadata = (
        ("satellite_name", satellite.name),
        ("satellite_org", satellite.org),
        ("satellite_token", session),
    )
    silence_s = satellite.wake_deadline_s + WAKE_MARGIN_S
    began = time.monotonic()
    try:
        for _ in exchange(server, program.method, b"", metadata, silence_s=silence_s):
            pass
    except ControlApiError as exc:
        # A program with another service answers UNIMPLEMENTED. The daemon never does so at a satellite's method.
        if program.known or exc.status is not GrpcStatus.UNIMPLEMENTED:
            raise FirstCallFailed(f"the call to {key} failed: {exc.status.name}: {exc}") from exc
    say(f"called {key}: it woke and answered within {time.monotonic() - began:.1f} s")


def _log_in(server: Server) -> str:
    """Exchange the token for a session. Raises FirstCallFailed."""
    url = server.url + LOGIN_PATH
    try:
        context = ssl.create_default_context(cafile=str(server.ca))
        with (
            urllib3.PoolManager(ssl_context=context, timeout=urllib3.Timeout(total=LOGIN_TIMEOUT_S)) as pool,
            pool.request(
                "POST",
                url,
                headers={"Authorization": f"token {server.token}"},
                body=b"",
                redirect=False,
                retries=False,
                preload_content=False,
            ) as answer,
        ):
            status, body = answer.status, answer.read(ANSWER_BYTES)
        found: object = json.loads(body)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as exc:
        raise FirstCallFailed(f"the login failed: {url}: {exc}") from exc
    session = found.get("token") if isinstance(found, dict) else None
    if status != OK or not isinstance(session, str):
        raise FirstCallFailed(f"the login failed: {url}: HTTP status {status}: {body.decode(errors='replace')}")
    return session


@contextlib.contextmanager
def _kept_log() -> Iterator[collections.deque[str]]:
    """Keep the daemon's last warnings and errors in memory, and print nothing meanwhile."""
    ours = logging.getLogger("bentpipe")
    handler = _KeptLines()
    before = ours.handlers[:], ours.level, ours.propagate
    ours.handlers[:], ours.propagate = [handler], False
    ours.setLevel(logging.WARNING)
    try:
        yield handler.lines
    finally:
        ours.handlers[:], ours.propagate = before[0], before[2]
        ours.setLevel(before[1])


class _KeptLines(logging.Handler):
    """The last lines of a log."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(TextFormatter())
        self.lines: collections.deque[str] = collections.deque(maxlen=LOG_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self.lines.append(self.format(record))
