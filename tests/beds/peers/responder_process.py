"""The responder as a process: the one file that a satellite has, with the oldest Python that satellites have."""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import grpc

from beds.ports import free_port
from bentpipe.daemon.responder.bundle import OLDEST_PYTHON, bundle
from bentpipe.proto.responder_pb2 import GetStatusRequest, Status

START_DEADLINE_S = 30.0
CALL_DEADLINE_S = 20.0
WAIT_DEADLINE_S = 60.0
POLL_S = 0.1
STATUS = "/bentpipe.responder.v1.Responder/GetStatus"
HEALTH = "/grpc.health.v1.Health/"


@functools.cache
def oldest_python() -> str | None:
    """The interpreter of the oldest Python that the responder must run with, from PATH or pyenv; None if there is none."""
    wanted = ".".join(map(str, OLDEST_PYTHON))
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = shutil.which(f"python{wanted}")
    for each in [*([found] if found else []), *map(str, pyenv.glob(f"versions/{wanted}.*/bin/python3"))]:
        version = subprocess.run(
            [each, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True
        )
        if version.stdout.strip() == str(OLDEST_PYTHON):
            return each
    return None


class ResponderProcess:
    """A responder with these settings. `python` is its interpreter, by default the oldest one that there is here."""

    def __init__(
        self, settings: Mapping[str, str | int], *, python: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        self._stack = contextlib.ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bentpipe-responder-")))
        self.port = free_port()
        quiet: dict[str, str | int] = {
            "listen": f"127.0.0.1:{self.port}",
            "cache": str(self.folder),
            "prune_below_percent": 0,
            "ballast_bytes": 0,
            "ballast_inodes": 0,
            # A flood that a test sends must not take the host's cores from everything else.
            "real_time_priority": 0,
            "buildkit_socket": str(self.folder / "none.sock"),
        }
        (self.folder / "responder.json").write_text(json.dumps(quiet | dict(settings)))
        (self.folder / "responder.py").write_text(bundle())
        self._python = python or oldest_python() or sys.executable
        self._environment = dict(environment or {})
        self.log_path = self.folder / "log"

    def __enter__(self) -> Self:
        # As its unit starts it: without the site's packages. Warnings of Python are errors.
        command = [self._python, "-I", "-S", "-W", "error"]
        command += [str(self.folder / "responder.py"), str(self.folder / "responder.json")]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, env={**os.environ, **self._environment})
        deadline = time.monotonic() + START_DEADLINE_S
        while "serving on port" not in self.log:
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = self.log
                self.close()
                raise AssertionError(f"the responder does not start: {said}")
            time.sleep(POLL_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and forget its files."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(START_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
                raise
        self._stack.close()

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self.log_path.read_text()

    def wait_said(self, words: str) -> None:
        """Wait until the log has these words: what caused them may be known before."""
        deadline = time.monotonic() + WAIT_DEADLINE_S
        while words not in self.log:
            assert time.monotonic() < deadline, self.log
            time.sleep(POLL_S)

    @contextlib.contextmanager
    def channel(self, credentials: grpc.ChannelCredentials | None = None, name: str = "") -> Iterator[grpc.Channel]:
        """grpcio's own channel; `name` is the server's in TLS."""
        target = f"127.0.0.1:{self.port}"
        options = [("grpc.ssl_target_name_override", name)] if name else []
        secure = credentials is not None
        with grpc.secure_channel(target, credentials, options) if secure else grpc.insecure_channel(target) as channel:
            yield channel

    def status(self, channel: grpc.Channel | None = None) -> Status:
        """Ask it. Raises grpc.RpcError."""
        if channel is None:
            with self.channel() as own:
                return self.status(own)
        ask = channel.unary_unary(
            STATUS, request_serializer=GetStatusRequest.SerializeToString, response_deserializer=Status.FromString
        )
        answer: Status = ask(GetStatusRequest(), timeout=CALL_DEADLINE_S)
        return answer

    def wait_status(self, *names: str) -> Status:
        """Ask until all these sections have been looked at once, and return that answer."""
        deadline = time.monotonic() + WAIT_DEADLINE_S
        with self.channel() as channel:
            while True:
                status = self.status(channel)
                if all(getattr(status, name).look.HasField("age_ms") for name in names):
                    return status
                assert time.monotonic() < deadline, status
                time.sleep(POLL_S)


def locked_bytes(process: int) -> int:
    """Memory of a process that is locked, by /proc."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmLck:"))


def run_briefly(arguments: Sequence[str], python: str = "") -> subprocess.CompletedProcess[str]:
    """Run the program with these arguments, for those that it refuses."""
    with tempfile.TemporaryDirectory(prefix="bentpipe-responder-") as name:
        path = Path(name) / "responder.py"
        path.write_text(bundle())
        command = [python or oldest_python() or sys.executable, "-I", "-S", str(path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=START_DEADLINE_S, check=False)
