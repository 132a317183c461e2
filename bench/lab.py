"""The place where everything is measured: built tools, one certificate, free ports, the upstream, a temporary folder.

Two cores are enough. Unless a question has another placement, the load generator and the upstream share LOAD_CPU. The peer
has PROXY_CPU for itself and runs one worker, so that its CPU seconds and its knee are those of one core.
"""

import atexit
import contextlib
import dataclasses
import os
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

from bentpipe.daemon.ports import reserve_port

BENCH = Path(__file__).resolve().parent
BUILD = BENCH.parent / "build" / "bench"
CPUS = sorted(os.sched_getaffinity(0))
LOAD_CPU = CPUS[0]
PROXY_CPU = CPUS[-1]
FIRST_NICE = "-10"
ORG = "acme"
SATELLITE = "bench"
START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 10.0
C_FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow"]
PROGRAMS = {
    "upstream": ["wire.c", "link.c", "upstream.c", "upstream_stream.c"],
    "load": [
        "wire.c",
        "link.c",
        "client.c",
        "client_open.c",
        "client_message.c",
        "histogram.c",
        "options.c",
        "load.c",
    ],
}


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """Which core each side has for itself; None: all of them, as the scheduler likes."""

    load_cpu: int | None = LOAD_CPU
    """Of the load generator and the upstream."""
    proxy_cpu: int | None = PROXY_CPU
    threads: int = 1
    """The peer's workers."""
    load_priority: int = 0
    """SCHED_RR (sched(7)) of the load generator and the upstream, so that no delay of theirs is measured; 0: none."""

    def options(self) -> list[str]:
        """For the load generator and the upstream."""
        cpu = -1 if self.load_cpu is None else self.load_cpu
        return ["--cpu", str(cpu), "--realtime", str(self.load_priority)]


PINNED = Placement()
SAME_CORE = Placement(proxy_cpu=LOAD_CPU)
"""The figures show what a proxy costs without another core to wake up."""
UNPINNED = Placement(load_cpu=None, proxy_cpu=None)
TWO_CORES = Placement(proxy_cpu=None, threads=2)
REALTIME = Placement(load_priority=2)


def realtime_missing() -> str | None:
    """Why there is no SCHED_RR here, or None."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return "SCHED_RR is refused: run as root, or with RLIMIT_RTPRIO"
    os.sched_setscheduler(0, *before)
    return None


class LabError(Exception):
    """Something that a measurement needs is missing; `str()` says what."""


def build_programs() -> None:
    """Compile the load generator and the upstream if they are older than their sources. Raises LabError."""
    BUILD.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in (BENCH / "native").iterdir())
    for name, sources in PROGRAMS.items():
        program = BUILD / name
        if program.exists() and program.stat().st_mtime > newest:
            continue
        files = [str(BENCH / "native" / source) for source in sources]
        result = subprocess.run(
            ["gcc", *C_FLAGS, "-o", f"{program}.new", *files, "-lssl", "-lcrypto", "-lm"],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise LabError(f"{name} does not compile:\n{result.stderr}")
        Path(f"{program}.new").rename(program)


def free_port() -> int:
    """Return a port on which nobody listens, and which no other lab on this machine gets. Raises OSError if none is left."""
    reservation = reserve_port("127.0.0.1")
    atexit.register(reservation.close)  # only then: a peer may be started anew on its port
    return reservation.port


class Lab:
    """Owns the folder, the certificate and the upstreams. Starts and ends every process of a measurement."""

    def __init__(self, placement: Placement = PINNED) -> None:
        self.placement = placement

    def __enter__(self) -> Self:
        build_programs()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.directory = Path(tempfile.mkdtemp(prefix="bentpipe-bench-"))
        # Workers that give up root (nginx) still read their files.
        self.directory.chmod(0o755)
        authority = trustme.CA()
        identity = authority.issue_cert("localhost", "127.0.0.1")
        self.ca = self.directory / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        self.certificate = self.directory / "cert.pem"
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in identity.cert_chain_pems))
        self.key = self.directory / "key.pem"
        identity.private_key_pem.write_to_path(str(self.key))
        self.identity = self.directory / "identity.pem"
        self.identity.write_bytes(self.certificate.read_bytes() + self.key.read_bytes())
        self._processes: list[subprocess.Popen[bytes]] = []
        self.upstream_port = free_port()
        self.upstream = self.start("upstream", self.upstream_command(self.upstream_port), self.upstream_port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            self.stop(process)
        shutil.rmtree(self.directory)

    def upstream_command(self, port: int | str, *arguments: str) -> list[str]:
        """The upstream's argv; `port` may be a placeholder."""
        return [str(BUILD / "upstream"), str(port), *self.placement.options(), *arguments]

    def start(
        self, name: str, command: Sequence[str], port: int | None, *, pass_fd: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process and wait until it listens on `port`. Raises LabError with its last words."""
        log_path = self.directory / f"{name}-{len(self._processes)}.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                pass_fds=() if pass_fd is None else (pass_fd,),
                env={**os.environ, "HOME": str(self.directory)},
                # The scheduler first divides a core between sessions (sched(7), autogroup). bentpipe's satellites have a
                # session of their own, so every process gets one.
                start_new_session=True,
            )
        self._processes.append(process)
        put_first(process.pid)
        deadline = time.monotonic() + START_DEADLINE_S
        while port is not None and not _accepts(port):
            if process.poll() is not None or time.monotonic() > deadline:
                self.stop(process)
                raise LabError(f"{name} did not start: {log_path.read_text(errors='replace')[-600:]}")
            time.sleep(0.02)
        return process

    def pinned(self, command: Sequence[str]) -> list[str]:
        """`command`, bound to the peer's core if it has one."""
        cpu = self.placement.proxy_cpu
        return [*command] if cpu is None else ["taskset", "--cpu-list", str(cpu), *command]

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End a process that `start` made."""
        if process in self._processes:
            self._processes.remove(process)
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def put_first(pid: int) -> None:
    """As root, give a session of the bench a higher priority than others have. Without root, it has the same as they."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(FIRST_NICE)


def _accepts(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
