"""A guest that runs: its commands, its ports, and its sleep.

Its network is QEMU's user-mode one: the host's loopback has a port for each of the guest's ports that a test names.
"""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from beds.guest import agent
from beds.guest.image import CACHE_BYTES, HERE, SWAP_DEVICE, Image, guest_image, new_folder
from beds.guest.qmp import Qmp, QmpError
from beds.peers.builds import Missing
from beds.ports import free_port

MEMORY_MIB = 1536
SWAP_BYTES = MEMORY_MIB << 20
CORES = 2
BOOT_DEADLINE_S = 240.0
"""An emulated machine boots in 10 s on an idle host, and in a minute on one with a load of 15."""
COMMAND_DEADLINE_S = 60.0
SLEEP_DEADLINE_S = 120.0
POLL_S = 0.05
NO_MODULES = "ahci,kvm,kvm_amd,kvm_intel,powernow_k8,acpi_cpufreq,iTCO_wdt,i2c_i801,lpc_ich"
"""Drivers of what QEMU emulates beside the guest's disks and network; each takes seconds to load."""
COMMAND_LINE = (
    f"console=ttyS0 root=/dev/vda rw quiet audit=0 panic=-1 mitigations=off net.ifnames=0 tsc=unstable "
    f"module_blacklist={NO_MODULES} resume={SWAP_DEVICE}"
)
"""A guest that has panicked reboots, and `-no-reboot` makes that its end."""
SETTLE = "modprobe -a xfs loop; udevadm settle; systemctl is-system-running --wait || true"
"""What a guest does once before it is put to sleep for the tests. xfs alone takes ten seconds to unpack."""


KEPT = ("disk", "cache", "swap", "state")
"""The files of a guest that sleeps."""


class GuestError(Exception):
    """The guest, or a command in it, failed; `str()` has the last words."""


@dataclasses.dataclass(frozen=True, slots=True)
class Slept:
    """What a sleep cost."""

    state_bytes: int
    took_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class HostShare:
    """What QEMU's threads got of the host's cores so far, in seconds."""

    ran_s: float
    waited_s: float
    """They could have run, and other programs had the cores."""

    def waited_since(self, before: "HostShare") -> float:
        """The share of the time since then, 0 to 1, for which a thread that could have run waited for a core."""
        waited_s, ran_s = self.waited_s - before.waited_s, self.ran_s - before.ran_s
        return waited_s / (waited_s + ran_s) if waited_s + ran_s > 0 else 0.0


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file that is mostly holes. Raises CalledProcessError."""
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", source, target], check=True)


class Guest:
    """`with Guest(image, [PORT, ...]) as guest:` is a booted guest, woken from one that has been booted before.

    Only `run` is thread-safe.
    """

    def __init__(self, image: Image, ports: Sequence[int] = ()) -> None:
        self._image = image
        self._folder = Path(tempfile.mkdtemp(prefix="bentpipe-guest-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = {port: free_port() for port in (agent.PORT, *ports)}

    @property
    def _disk(self) -> Path:
        return self._folder / "disk"

    @property
    def _cache(self) -> Path:
        return self._folder / "cache"

    @property
    def _swap(self) -> Path:
        return self._folder / "swap"

    @property
    def _state(self) -> Path:
        return self._folder / "state"

    @property
    def _console(self) -> Path:
        return self._folder / "console"

    def __enter__(self) -> Self:
        booted = booted_folder(self._image)
        try:
            for name in KEPT:
                copy_sparse(booted / name, self._folder / name)
            self.wake()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Switch it off, and remove its disks."""
        self.power_off()
        shutil.rmtree(self._folder, ignore_errors=True)

    def port(self, guest_port: int) -> int:
        """The port of the host's loopback that leads to this port of the guest."""
        return self._ports[guest_port]

    def _start(self, *options: str) -> None:
        forwards = ",".join(f"hostfwd=tcp:127.0.0.1:{port}-:{inside}" for inside, port in self._ports.items())
        command = ["nice", "-n", "5", self._image.qemu, "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]
        command += ["-smp", str(CORES), "-m", str(MEMORY_MIB), "-nodefaults", "-no-user-config", "-no-reboot"]
        command += ["-display", "none", "-serial", f"file:{self._console}"]
        command += ["-qmp", f"unix:{self._folder / 'qmp'},server=on,wait=off"]
        command += ["-kernel", str(self._image.kernel), "-initrd", str(self._image.ram_disk), "-append", COMMAND_LINE]
        for name, path in (("disk", self._disk), ("cache", self._cache), ("swap", self._swap)):
            # cache=unsafe: what the guest has flushed is in the host's page cache, which outlives QEMU.
            command += ["-drive", f"id={name},file={path},format=raw,if=none,cache=unsafe"]
            command += ["-device", f"virtio-blk-pci,drive={name}"]
        command += ["-netdev", f"user,id=net,restrict=on,{forwards}", "-device", "virtio-net-pci,netdev=net"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def make_booted(self, folder: Path) -> None:
        """Boot from the image's own disk, sleep, and leave the files of that in `folder`. Raises GuestError."""
        copy_sparse(self._image.disk, self._disk)
        for path, size_bytes in ((self._cache, CACHE_BYTES), (self._swap, SWAP_BYTES)):
            with path.open("wb") as file:
                file.truncate(size_bytes)
        self.boot()
        self.run(SETTLE, deadline_s=BOOT_DEADLINE_S)
        self.sleep()
        for name in KEPT:
            copy_sparse(self._folder / name, folder / name)

    def boot(self) -> float:
        """Switch it on. Returns the seconds until its agent answered; raises GuestError."""
        begun = time.monotonic()
        self._start()
        self._await_agent(begun + BOOT_DEADLINE_S)
        return time.monotonic() - begun

    def _await_agent(self, deadline: float) -> None:
        while True:
            with contextlib.suppress(GuestError, OSError):
                self.run("true", deadline_s=5)
                return
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                raise GuestError(f"the guest does not answer: {self.last_words()}")
            time.sleep(POLL_S)

    def last_words(self) -> str:
        """The ends of its console and of QEMU's output."""
        texts = [path.read_text(errors="replace") for path in (self._console, self._folder / "log") if path.exists()]
        return "\n".join(text[-2000:] for text in texts)

    def run(self, script: str, *arguments: str, stdin: bytes = b"", deadline_s: float = COMMAND_DEADLINE_S) -> str:
        """Run a shell script in it, with $1 and so on. Returns its output; raises GuestError if it fails."""
        request = {
            "argv": ["/bin/sh", "-euc", script, "sh", *arguments],
            "input": base64.b64encode(stdin).decode(),
            "deadline_s": deadline_s,
        }
        with socket.create_connection(("127.0.0.1", self.port(agent.PORT)), timeout=deadline_s) as connection:
            # The agent's own deadline comes first.
            connection.settimeout(2 * deadline_s)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
        if not line:
            raise GuestError("the agent closed the connection")
        answer = json.loads(line)
        output = base64.b64decode(answer["output"]).decode(errors="replace")
        if answer["code"] != 0:
            said = "did not end" if answer["code"] is None else f"ended with {answer['code']}"
            raise GuestError(f"{script[:80]!r} {said}: {output[-3000:]}")
        return output

    def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file in it, and its folders. Raises GuestError."""
        quoted = shlex.quote(path)
        self.run(f'mkdir -p "$(dirname {quoted})"; cat > {quoted}; chmod {mode:o} {quoted}', stdin=data)

    def sleep(self) -> Slept:
        """Write its memory into a file, and end QEMU, as a cloud hibernates a machine. Raises GuestError."""
        begun = time.monotonic()
        qmp = self._qmp()
        try:
            qmp.execute("stop")
            qmp.execute("migrate", uri=f"exec:cat > {shlex.quote(str(self._state))}")
            while (status := qmp.execute("query-migrate").get("status")) != "completed":
                if status == "failed" or time.monotonic() > begun + SLEEP_DEADLINE_S:
                    raise GuestError(f"the guest's memory could not be written: {status}")
                time.sleep(POLL_S)
            qmp.execute("quit")
        finally:
            qmp.close()
        self.power_off()
        return Slept(self._state.stat().st_blocks * 512, time.monotonic() - begun)

    def wake(self) -> float:
        """Go on after `sleep`. Returns the seconds until its agent answered; raises GuestError."""
        begun = time.monotonic()
        self._start("-incoming", f"exec:cat {shlex.quote(str(self._state))}")
        qmp = self._qmp()
        try:
            while (status := qmp.execute("query-status").get("status")) == "inmigrate":
                if time.monotonic() > begun + SLEEP_DEADLINE_S:
                    raise GuestError("the guest's memory could not be read in time")
                time.sleep(POLL_S)
            if status != "paused":
                raise GuestError(f"the guest did not wake, it is {status}: {self.last_words()}")
            qmp.execute("cont")
        finally:
            qmp.close()
        self._await_agent(begun + BOOT_DEADLINE_S)
        # Its clock has stood still; a cloud's machine reads its own at a resume.
        self.run("date -s @$1 >/dev/null", str(int(time.time())))
        return time.monotonic() - begun

    def host_share(self) -> HostShare:
        """Ask the host's scheduler (Documentation/scheduler/sched-stats.rst of Linux: /proc/PID/schedstat)."""
        if self._process is None:
            raise GuestError("the guest does not run")
        stats = [path.read_text().split() for path in Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")]
        return HostShare(*(sum(int(each[at]) for each in stats) / 1e9 for at in (0, 1)))

    def _qmp(self) -> Qmp:
        try:
            return Qmp(self._folder / "qmp", BOOT_DEADLINE_S)
        except QmpError as exc:
            raise GuestError(f"{exc}: {self.last_words()}") from exc

    def await_end(self, deadline_s: float = BOOT_DEADLINE_S) -> float:
        """Return the seconds until the guest has switched itself off, as a machine that hibernates. Raises GuestError."""
        begun = time.monotonic()
        if self._process is not None:
            try:
                self._process.wait(deadline_s)
            except subprocess.TimeoutExpired as exc:
                raise GuestError(f"the guest does not end: {self.last_words()}") from exc
        self.power_off()
        return time.monotonic() - begun

    def power_off(self) -> None:
        """Take its power away, if it still runs."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            self._process.wait()
            self._process = None
        (self._folder / "qmp").unlink(missing_ok=True)

    def boot_id(self) -> str:
        """The kernel's boot id: another one after each boot, the same after a resume."""
        return self.run("cat /proc/sys/kernel/random/boot_id").strip()


@functools.cache
def booted_folder(image: Image) -> Path:
    """The files of a guest that has booted and sleeps: made once for an image and this recipe. Raises Missing."""
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in ("machine.py", "qmp.py"))).hexdigest()[:16]
    folder = image.disk.parent / f"booted-{digest}"
    if not folder.exists():
        with new_folder(folder) as unfinished:
            guest = Guest(image)
            try:
                guest.make_booted(unfinished)
            except (GuestError, QmpError) as exc:
                raise Missing(f"no guest can be booted: {exc}") from exc
            finally:
                guest.close()
    return folder


def main() -> int:
    """Make the guest that the tests wake, and say whether there is one."""
    try:
        booted_folder(guest_image())
    except Missing as exc:
        sys.stdout.write(f"peer guest: its tests are skipped: {exc}\n")
    else:
        sys.stdout.write("peer guest: ready\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
