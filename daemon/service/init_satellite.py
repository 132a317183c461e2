"""Chooses the program of a new installation's satellite, and the call that shows that it answers. It starts nothing."""

import dataclasses
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from bentpipe.daemon.errors import BentpipeError, Source

DEMO_MODULE = "bentpipe.daemon.testbed.satellite"
DEMO_ECHO = "/bentpipe.demo.Satellite/Echo"
LIST_WORKERS = "/moby.buildkit.v1.Control/ListWorkers"
"""BuildKit answers an empty request with its workers; every client of BuildKit begins with this call."""
ANY_METHOD = "/bentpipe.Init/Ping"
"""No program has this method. A gRPC server answers UNIMPLEMENTED, which shows that the call has reached it."""

CONTAINED = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Puts buildkitd into a PID namespace of its own, so that no build outlives it."""

RUNTIMES = ("buildkit-runc", "runc")
"""What buildkitd runs containers with, in the order in which it looks for them."""
CONTAINERD = Path("/run/containerd/containerd.sock")
"""If containerd is there, buildkitd lets it run them."""

INSTALL = "install buildkitd, or name another gRPC server with --command"


class InitError(BentpipeError):
    """Nothing was written: the message says why and what to do."""

    source = Source.OPERATOR


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """What a satellite runs."""

    command: tuple[str, ...]
    words: str
    """What it is, for the user."""
    method: str
    """The path of the gRPC method that the first call goes to, with a request of no bytes."""
    known: bool
    """Whether the program has that method, so that it must answer OK."""

    @property
    def is_buildkit(self) -> bool:
        """Whether buildctl is a client of it."""
        return self.method == LIST_WORKERS


def choose_program(
    command: str | None,
    folder: Path,
    *,
    demo: bool,
    environment: Mapping[str, str] = os.environ,
    root: bool | None = None,
) -> Program:
    """Choose: `command` if given, else the demo's server if `demo`, else BuildKit if it is there, else the demo's server.

    `folder` is where BuildKit keeps its state; `root` is whether it will run as root, by default whether we do. Raises
    InitError.
    """
    path = environment.get("PATH", os.defpath)
    if command is not None:
        return _given(command, path)
    buildkitd = None if demo else shutil.which("buildkitd", path=path)
    if buildkitd is not None:
        return _buildkit(buildkitd, folder, path, root=os.geteuid() == 0 if root is None else root)
    return _demo(asked=demo)


def _given(command: str, path: str) -> Program:
    try:
        words = shlex.split(command)
    except ValueError as exc:
        raise InitError(f"--command: {exc}: {command!r}") from exc
    if not words:
        raise InitError("--command is empty: give the program and its arguments, with {port} where its port goes")
    if not any("{port}" in word for word in words):
        raise InitError(f"--command: no argument has {{port}}, where the satellite's port goes: {command!r}")
    found = shutil.which(words[0], path=path)
    if found is None:
        raise InitError(f"--command: {words[0]!r} is not a program that can be run here")
    return Program((os.path.abspath(found), *words[1:]), f"the program {words[0]}", ANY_METHOD, known=False)


def _buildkit(buildkitd: str, folder: Path, path: str, *, root: bool) -> Program:
    if not root:
        raise InitError(
            f"{buildkitd} needs root: run this command as root, give --command for a rootless BuildKit, "
            "or --demo for the demo's gRPC server"
        )
    unshare = shutil.which(CONTAINED[0], path=path)
    if unshare is None:
        raise InitError(
            "unshare is not installed (package util-linux): without it builds could outlive their satellite"
        )
    if not CONTAINERD.exists() and not any(shutil.which(runtime, path=path) for runtime in RUNTIMES):
        raise InitError(f"{buildkitd} needs {RUNTIMES[-1]}, which is not on PATH: install it (package runc)")
    state = ("--root", str(folder / "buildkit"), "--addr", "tcp://127.0.0.1:{port}")
    command = (unshare, *CONTAINED[1:], buildkitd, *state)
    return Program(command, f"BuildKit, {buildkitd}", LIST_WORKERS, known=True)


def _demo(*, asked: bool) -> Program:
    if importlib.util.find_spec("grpc") is None:
        missing = "the demo's gRPC server needs grpcio" if asked else "no satellite program: buildkitd is not on PATH"
        raise InitError(f"{missing}: {INSTALL}, or run pip install 'bentpipe[demo]' for the demo's gRPC server")
    because = "as asked" if asked else "since buildkitd is not on PATH"
    words = f"the demo's gRPC server, {because}"
    return Program((sys.executable, "-P", "-m", DEMO_MODULE, "{port}"), words, DEMO_ECHO, known=True)
