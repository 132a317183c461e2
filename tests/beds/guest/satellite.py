"""A satellite in a guest: the files that bentpipe renders for a machine, real BuildKit, and the responder.

buildctl is the client, and runs on the host; the responder is asked over gRPC by grpcio.
"""

import contextlib
import dataclasses
import io
import json
import secrets
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc

from beds.guest.enrolled import DaemonTls
from beds.guest.image import Image, guest_image
from beds.guest.machine import Guest, GuestError
from beds.peers.buildkit_host import Built
from beds.peers.builds import buildkit
from bentpipe.config.load import load_config
from bentpipe.daemon.image.files import MachineImage
from bentpipe.daemon.image.programs.settings import BUILDKIT_UNIT, BUILDS_CGROUP, RESPONDER_UNIT
from bentpipe.daemon.image.render import render_image
from bentpipe.proto.responder_pb2 import GetStatusRequest, Status

BUILDKIT_PORT, RESPONDER_PORT = 8372, 9571
PIDS_MAX = 400
PRUNE_BELOW_PERCENT = 15
CONFIGURATION = f"""
[[listener]]
address = "127.0.0.1:0"
[[satellite]]
org = "acme"
name = "guest"
provider = "ec2"
sleep_mode = "{{sleep_mode}}"
[satellite.ec2]
launch_template = "unused"
port = {BUILDKIT_PORT}
[satellite.image]
flavour = "{{flavour}}"
buildkit = "{{programs}}"
runc = "/usr/sbin/runc"
memory_reserve = "384MiB"
memory_buildkit = "256MiB"
pids_max = {PIDS_MAX}
security_insecure = true
responder_port = {RESPONDER_PORT}
[satellite.image.cache]
ballast = "32MiB"
prune_below_percent = {PRUNE_BELOW_PERCENT}
prune_until_percent = 30
"""
"""For a machine of 1.5 GiB and two cores, with a cache of 1 GiB. What follows is the rest of its last section."""
VOLUME = 'device = "/dev/vdb"\n'
LOOP_FILE = 'file = "1GiB"\nfilesystem = "ext4"\n'
"""A file on the machine's disk. ext4 has all its inodes from the beginning: one for every 8 KiB."""
START_DEADLINE_S = 400.0
"""Emulated, on a host with a load of 15, this takes one and a half minutes."""
BUILD_DEADLINE_S = 420.0
ANSWER_DEADLINE_S = 30.0
"""For one answer of the responder: a missing one fails a test, a slow one is only reported."""
PROBE_PERIOD_S = 0.5
"""The daemon asks every 15 s. An answer costs an emulated machine 20 to 40 ms, so ten questions a second were a load too."""
TMPFS_BYTES = 4 << 30
"""By default a tmpfs takes half of the machine's memory at most, which is less than the builds' limit."""
POLL_S = 0.25


@dataclasses.dataclass(frozen=True, slots=True)
class Programs:
    """Which BuildKit the guest runs, and where its programs are."""

    flavour: str = "moby"
    folder: str = "/usr/local/bin"


MOBY = Programs()


def rendered_image(more: str = VOLUME, programs: Programs = MOBY, sleep_mode: str = "stop") -> MachineImage:
    """What bentpipe renders for the guest. `more` begins with where its cache is."""
    with tempfile.TemporaryDirectory(prefix="bentpipe-guest-") as name:
        path = Path(name) / "bentpipe.toml"
        filled = CONFIGURATION.format(flavour=programs.flavour, programs=programs.folder, sleep_mode=sleep_mode)
        path.write_text(filled + more)
        [section] = load_config(path, check_files=False).satellite
    if section.image is None:
        raise AssertionError("the configuration has no section image")
    return render_image(section, section.image)


def _archive(image: MachineImage) -> bytes:
    """The image's files and links, as a tar archive."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for file in (*image.common, *image.own):
            entry = tarfile.TarInfo(file.path.lstrip("/"))
            entry.size, entry.mode = len(file.content.encode()), file.mode
            archive.addfile(entry, io.BytesIO(file.content.encode()))
        for link in image.links:
            entry = tarfile.TarInfo(link.path.lstrip("/"))
            entry.type, entry.linkname = tarfile.SYMTYPE, link.target
            archive.addfile(entry)
    return data.getvalue()


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """How long the responder took to answer, in seconds from when each question was due."""

    latencies_s: tuple[float, ...]
    failed: tuple[str, ...]
    """What went wrong with the questions that were not answered."""
    starved: float
    """The share of the time, 0 to 1, for which the guest waited for a core of its host: not the satellite's doing."""

    def percentile_s(self, percent: int) -> float:
        """From at least two answers."""
        return statistics.quantiles(self.latencies_s, n=100, method="inclusive")[percent - 1]


@dataclasses.dataclass(frozen=True, slots=True)
class Life:
    """Which processes BuildKit and the responder are. A restart changes it."""

    buildkit: str
    responder: str


class GuestSatellite:
    """The satellite of a guest that runs already."""

    def __init__(self, guest: Guest, image: Image, tls: DaemonTls | None = None) -> None:
        self.guest = guest
        self._tls = tls
        self._storm = image.storm
        self._buildctl = buildkit().buildctl

    def install(self, image: MachineImage | None = None) -> None:
        """Write the rendered files, and start what they enable. Raises GuestError."""
        self.guest.run("tar -xf - -C /", stdin=_archive(image or rendered_image()))
        # The generator writes the limits at daemon-reload too.
        self.guest.run(
            "systemctl daemon-reload; systemctl start bentpipe-satellite.target", deadline_s=START_DEADLINE_S
        )
        self.await_ready()

    def await_ready(self) -> None:
        """Return when both programs are ready. Raises GuestError, with the journal."""
        deadline = time.monotonic() + START_DEADLINE_S
        ask = f"systemctl is-active {BUILDKIT_UNIT} {RESPONDER_UNIT} || true"
        while (states := self.guest.run(ask).split()) != ["active", "active"]:
            if "failed" in states or time.monotonic() > deadline:
                raise GuestError(f"the satellite is {states}:\n{self.journal()}")
            time.sleep(POLL_S)

    def journal(self) -> str:
        """The last lines of our units."""
        return self.guest.run("journalctl --no-pager -n 60 -o cat")

    def life(self) -> Life:
        """Which processes run."""
        ask = "systemctl show -P MainPID -P InvocationID $1"
        return Life(self.guest.run(ask, BUILDKIT_UNIT), self.guest.run(ask, RESPONDER_UNIT))

    def status(self) -> Status:
        """Ask the responder for all that it knows. Raises grpc.RpcError."""
        with self._channel() as channel:
            ask = channel.unary_unary(
                "/bentpipe.responder.v1.Responder/GetStatus",
                request_serializer=GetStatusRequest.SerializeToString,
                response_deserializer=Status.FromString,
            )
            answer = ask(GetStatusRequest(), timeout=ANSWER_DEADLINE_S, wait_for_ready=True)
        if not isinstance(answer, Status):
            raise TypeError(type(answer))
        return answer

    def steps_file(self, name: str) -> str:
        """A file of the cgroup that all steps are in, such as memory.events."""
        return self.guest.run(f"cat /sys/fs/cgroup/{BUILDS_CGROUP}/$1", name)

    def build(
        self,
        *arguments: str,
        parent: str | None = None,
        tmpfs: str | None = None,
        insecure: bool = False,
        deadline_s: float = BUILD_DEADLINE_S,
    ) -> Built:
        """Build an image whose one RUN is `storm` with these arguments. Raises subprocess.TimeoutExpired.

        `parent` is the client's --cgroup-parent; `tmpfs` a folder that is a tmpfs in the step.
        """
        with tempfile.TemporaryDirectory(prefix="bentpipe-storm-") as name:
            context = Path(name)
            shutil.copy(self._storm, context / "storm")
            run = ["RUN", *(["--security=insecure"] if insecure else [])]
            run += [f"--mount=type=tmpfs,target={tmpfs},size={TMPFS_BYTES}"] if tmpfs else []
            # The label is another one in each build, so that no step is taken from the cache.
            lines = ["FROM scratch", "COPY storm /storm", f"ENV BUILD={secrets.token_hex(8)}"]
            (context / "Dockerfile").write_text(
                "\n".join([*lines, f"{' '.join(run)} {json.dumps(['/storm', *arguments])}"])
            )
            command = [*self._client(), "build", "--frontend", "dockerfile.v0", "--progress", "plain"]
            command += ["--local", f"context={context}", "--local", f"dockerfile={context}"]
            command += ["--opt", f"cgroup-parent={parent}"] if parent else []
            command += ["--allow", "security.insecure"] if insecure else []
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=deadline_s,
                check=False,
            )
        return Built(done.returncode, done.stdout)

    def _client(self) -> Sequence[str]:
        address = f"tcp://127.0.0.1:{self.guest.port(BUILDKIT_PORT)}"
        return (self._buildctl, "--addr", address, *(self._tls.arguments() if self._tls else ()))

    def _channel(self) -> grpc.Channel:
        target = f"127.0.0.1:{self.guest.port(RESPONDER_PORT)}"
        return self._tls.channel(target) if self._tls else grpc.insecure_channel(target)

    def small_build(self) -> Built:
        """A build that every satellite must manage."""
        return self.build("files", "60", "/", "1", "0")

    @contextlib.contextmanager
    def asked(self) -> Iterator[list[Answers]]:
        """Ask the responder for its health twice a second, meanwhile. The list has one item afterwards.

        The times of the questions are fixed beforehand: a late answer delays no question's due time, so that it counts.
        """
        stopped = threading.Event()
        found: list[Answers] = []
        thread = threading.Thread(target=lambda: found.append(self._ask_until(stopped)))
        thread.start()
        try:
            yield found
        finally:
            stopped.set()
            thread.join()

    def _ask_until(self, stopped: threading.Event) -> Answers:
        latencies, failed = [], []
        before = self.guest.host_share()
        with self._channel() as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            due = time.monotonic()
            while not stopped.is_set():
                try:
                    check(b"", timeout=ANSWER_DEADLINE_S, wait_for_ready=True)
                    latencies.append(time.monotonic() - due)
                except grpc.RpcError as exc:
                    failed.append(str(exc))
                due += PROBE_PERIOD_S
                stopped.wait(max(0.0, due - time.monotonic()))
        starved = self.guest.host_share().waited_since(before)
        return Answers(tuple(latencies), tuple(failed), starved)


@contextlib.contextmanager
def running_satellite(rendered: MachineImage, tls: DaemonTls | None = None) -> Iterator[GuestSatellite]:
    """A satellite in a guest of its own, with these files. Raises Missing, GuestError."""
    image = guest_image()
    with Guest(image, [BUILDKIT_PORT, RESPONDER_PORT]) as guest:
        satellite = GuestSatellite(guest, image, tls)
        satellite.install(rendered)
        yield satellite
