"""An edge host whose satellites are real buildkitd, and buildctl and docker buildx as their clients: SNI for the satellite,
a certificate for the client."""

import contextlib
import dataclasses
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import trustme

from beds.peers.builds import BuildKit
from bentpipe.daemon.testbed.edge_host import ORG, EdgeHost

SATELLITE_DOMAIN = "sat.example"
CLIENT = "builder@example.com"
START_DEADLINE_S = 10.0
BUILD_DEADLINE_S = 90.0
POLL_S = 0.02

CONTAINED = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""buildkitd's containers leave the satellite's cgroup, since their cgroups are absolute paths. In a PID namespace of the
satellite's they still die with it, and their mounts go with its mount namespace."""

BUILDKITD = ("--oci-worker-net", "host", "--containerd-worker", "false", "--oci-worker-snapshotter", "native")
"""Needs neither a network, CNI plug-ins, containerd nor overlayfs."""

Client = Literal["buildctl", "buildx"]

STEP = re.compile(r"^#\d+ [\d.]+ (\d+) x+$", re.MULTILINE)
"""A line of `step talk` in buildctl's plain progress."""


@dataclasses.dataclass(frozen=True, slots=True)
class BuildSatellite:
    """A buildkitd behind the edge host."""

    name: str
    sleep_after_s: float = 600.0


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    """What came of a build."""

    code: int
    progress: str

    @property
    def talked(self) -> list[int]:
        """The numbers of the lines that `step talk` printed."""
        return [int(number) for number in STEP.findall(self.progress)]


def buildkitd_command(programs: BuildKit, root: Path) -> list[str]:
    """The command line of a satellite that is BuildKit, with a folder for its state. The daemon fills in {port}."""
    command = [*CONTAINED, programs.buildkitd, "--addr", "tcp://127.0.0.1:{port}", "--root", str(root)]
    return [*command, "--oci-worker-binary", programs.runc, *BUILDKITD]


def _pids(program: bytes, argument: bytes) -> list[int]:
    """Everybody on this machine who runs the program with this argument."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            if argv[0] == program and argument in argv:
                found.append(int(entry.name))
    return found


class Build:
    """A build under way: a buildctl of its own, with a context of its own that no other build shares a cache with."""

    def __init__(self, command: Sequence[str], mark: str, log: Path, environment: Mapping[str, str]) -> None:
        self.mark = mark
        """In the command line of every RUN of the build, and in no other's."""
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **environment}
            )

    def step_pids(self) -> list[int]:
        """The processes of its RUN steps, anywhere on this machine."""
        return _pids(b"/step", self.mark.encode())

    def wait_running(self) -> None:
        """Return when a RUN step runs. Raises TimeoutError, and RuntimeError if the build has ended."""
        deadline = time.monotonic() + BUILD_DEADLINE_S
        while not self.step_pids():
            if self._process.poll() is not None:
                raise RuntimeError(self.wait().progress)
            if time.monotonic() > deadline:
                raise TimeoutError("no RUN step has begun")
            time.sleep(POLL_S)

    def wait_gone(self, deadline_s: float) -> None:
        """Return when no RUN step runs any more. Raises TimeoutError."""
        deadline = time.monotonic() + deadline_s
        while pids := self.step_pids():
            if time.monotonic() > deadline:
                raise TimeoutError(f"RUN steps {pids} still run after {deadline_s:g} s")
            time.sleep(POLL_S)

    def signal(self, number: signal.Signals) -> None:
        """Signal the client."""
        self._process.send_signal(number)

    def wait(self, deadline_s: float = BUILD_DEADLINE_S) -> Built:
        """Wait for the client's end. Raises subprocess.TimeoutExpired."""
        return Built(self._process.wait(deadline_s), self._log.read_text())

    def close(self) -> None:
        """Kill the client if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class BuildKitHost:
    """`with BuildKitHost(...) as host:` is a daemon with sleeping satellites; all that it began goes with it."""

    def __init__(self, programs: BuildKit, satellites: Sequence[BuildSatellite], buildx: str | None = None) -> None:
        self._programs = programs
        self._buildx = buildx
        self._stack = contextlib.ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bentpipe-buildkit-")))
        authority, clients = trustme.CA(), trustme.CA()
        server = authority.issue_cert(f"*.{ORG}.{SATELLITE_DOMAIN}")
        client = clients.issue_cert(CLIENT)
        stranger = clients.issue_cert("stranger@example.com")
        for name, blobs in (
            ("ca", [authority.cert_pem]),
            ("clients", [clients.cert_pem]),
            ("cert", server.cert_chain_pems),
            ("key", [server.private_key_pem]),
            ("client-cert", client.cert_chain_pems),
            ("client-key", [client.private_key_pem]),
            ("stranger-cert", stranger.cert_chain_pems),
            ("stranger-key", [stranger.private_key_pem]),
        ):
            self._pem(name).touch(mode=0o600)
            self._pem(name).write_bytes(b"".join(blob.bytes() for blob in blobs))
        self.edge = EdgeHost([], sleep_after_s=600, settings=self._config(satellites))

    def _pem(self, name: str) -> Path:
        return self._folder / f"{name}.pem"

    def root(self, satellite: str) -> Path:
        """The satellite's own state, in the command line of its buildkitd."""
        return self._folder / f"root-{satellite}"

    def _config(self, satellites: Sequence[BuildSatellite]) -> str:
        lines = [
            '[[listener]]\naddress = "127.0.0.1:0"\n[listener.tls]',
            f'certificate = "{self._pem("cert")}"\nkey = "{self._pem("key")}"\nclient_ca = "{self._pem("clients")}"',
            f'satellite_domain = "{SATELLITE_DOMAIN}"',
            f'[[certificate]]\nname = "builder"\nsan = "EMAIL:{CLIENT}"\ngrants = ["{ORG}/*"]',
        ]
        for satellite in satellites:
            command = buildkitd_command(self._programs, self.root(satellite.name))
            lines += [
                f'[[satellite]]\norg = "{ORG}"\nname = "{satellite.name}"\nsleep_after = "{satellite.sleep_after_s}s"',
                f'min_awake = "0s"\n[satellite.process]\ncommand = {json.dumps(command)}',
                # By default a step's output is cut after 2 MiB, and slowed down.
                'environment = { BUILDKIT_STEP_LOG_MAX_SIZE = "-1", BUILDKIT_STEP_LOG_MAX_SPEED = "-1" }',
            ]
        return "\n".join(lines) + "\n"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.edge)
            deadline = time.monotonic() + START_DEADLINE_S
            while len(self.edge.ports) < 2:
                if time.monotonic() > deadline:
                    raise TimeoutError("the port for certificates does not open")
                time.sleep(POLL_S)
            self._stack.push(stack.pop_all())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def daemon_pids(self, satellite: str) -> list[int]:
        """The satellite's buildkitd, frozen or not."""
        return _pids(self._programs.buildkitd.encode(), os.fsencode(self.root(satellite)))

    @contextlib.contextmanager
    def build(
        self,
        satellite: str,
        *steps: tuple[str, ...],
        data: bytes = b"",
        out: Path | None = None,
        client: Client = "buildctl",
    ) -> Iterator[Build]:
        """Begin a build FROM scratch that copies `data` to /data and runs `step` with each of `steps`' arguments.

        `out`, if given, is a folder that takes the result's files. buildx must have been told of the satellite.
        """
        mark = secrets.token_hex(8)
        context = self._folder / mark
        context.mkdir()
        shutil.copy(self._programs.step, context / "step")
        (context / "data").write_bytes(data)
        runs = [f"RUN {json.dumps(['/step', *step, mark])}" for step in steps]
        (context / "Dockerfile").write_text("\n".join(["FROM scratch", "COPY step /step", "COPY data /data", *runs]))
        command = self._buildctl(satellite, context) if client == "buildctl" else self._buildx_build(satellite, context)
        if out is not None:
            command += ["--output", f"type=local,dest={out}"]
        build = Build(command, mark, self._folder / f"{mark}.log", self._environment)
        try:
            yield build
        finally:
            build.close()
            shutil.rmtree(context)

    def _buildctl(self, satellite: str, context: Path) -> list[str]:
        command = [self._programs.buildctl, "--addr", f"tcp://127.0.0.1:{self.edge.ports[1]}"]
        command += ["--tlsservername", f"{satellite}.{ORG}.{SATELLITE_DOMAIN}", "--tlscacert", str(self._pem("ca"))]
        command += ["--tlscert", str(self._pem("client-cert")), "--tlskey", str(self._pem("client-key"))]
        command += ["build", "--frontend", "dockerfile.v0", "--progress", "plain"]
        return [*command, "--local", f"context={context}", "--local", f"dockerfile={context}"]

    def _buildx_build(self, satellite: str, context: Path) -> list[str]:
        return [*self._buildx_command, "build", "--builder", satellite, "--progress", "plain", str(context)]

    @property
    def _buildx_command(self) -> list[str]:
        if self._buildx is None:
            raise RuntimeError("this host has no buildx")
        return [self._buildx]

    @property
    def _environment(self) -> dict[str, str]:
        """buildx keeps its builders in a folder of its own; of Docker it reads the configuration alone."""
        return {"BUILDX_CONFIG": str(self._folder / "buildx"), "DOCKER_CONFIG": str(self._folder / "docker")}

    def buildx(self, *arguments: str, deadline_s: float = BUILD_DEADLINE_S) -> subprocess.CompletedProcess[str]:
        """Run a command of docker buildx to its end. Raises subprocess.TimeoutExpired."""
        return subprocess.run(
            [*self._buildx_command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=deadline_s,
            check=False,
            env={**os.environ, **self._environment},
        )

    def create_builder(self, name: str, satellite: str, *, known: bool = True) -> subprocess.CompletedProcess[str]:
        """Tell buildx of a satellite, as docs/clients.md does; a client that is not `known` shows no certificate of ours."""
        certificate = "client" if known else "stranger"
        options = {
            "cacert": self._pem("ca"),
            "cert": self._pem(f"{certificate}-cert"),
            "key": self._pem(f"{certificate}-key"),
            "servername": f"{satellite}.{ORG}.{SATELLITE_DOMAIN}",
        }
        given = ",".join(f"{key}={value}" for key, value in options.items())
        where = f"tcp://127.0.0.1:{self.edge.ports[1]}"
        return self.buildx("create", "--name", name, "--driver", "remote", "--driver-opt", given, where)
