"""Makes the folder from which a Debian boots, once for each suite, in build/peers. If this file changes, it is made anew."""

import functools
import hashlib
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from beds.guest.image import new_folder
from beds.peers.builds import OUT, Missing, program

SUITES = ("bookworm", "trixie")
"""Debian 12 with systemd 252 and Python 3.11, Debian 13 with systemd 257 and Python 3.13."""
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "ca-certificates",
    "iproute2",
    "procps",
    "openssl",
    "libnghttp2-14",
    "needrestart",
    "certbot",
)
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty.target",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-networkd.service",
    "systemd-timesyncd.service",
    "console-getty.service",
)
"""Units that mount what is the host's, or that only cost time."""
SILENT_S = 300.0
"""An installation that prints nothing for so long hangs: apt itself gives up a download that stands still after some 30 s
(apt.conf(5), Acquire::http::Timeout), and dpkg prints a line for each package. The whole takes as long as it takes."""
STOP_S = 30.0
LAST_BYTES = 2000
MACHINE_ID = "0123456789abcdef0123456789abcdef"


def install_debian(suite: str, packages: Sequence[str], root: Path) -> None:
    """Install a minimal Debian and these packages into a new folder. Raises Missing, with apt's last words."""
    command = ["mmdebstrap", "--verbose", "--variant=minbase", "--mode=root", f"--include={','.join(packages)}"]
    with subprocess.Popen(
        [*command, suite, str(root)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        said, has_ended = _last_words(process)
        if not has_ended:
            _stop(process)
            raise Missing(f"Debian {suite}: its installation hangs: {said}")
    if process.returncode != 0:
        raise Missing(f"Debian {suite} cannot be installed: {said}")


def _last_words(process: subprocess.Popen[bytes]) -> tuple[str, bool]:
    """Read until its output ends, or until it is silent for SILENT_S. Returns its last words, and whether it has ended."""
    assert process.stdout is not None
    said = b""
    while select.select([process.stdout], [], [], SILENT_S)[0]:
        data = os.read(process.stdout.fileno(), 65536)
        if not data:
            return said.decode(errors="replace").strip(), True
        said = (said + data)[-LAST_BYTES:]
    return said.decode(errors="replace").strip(), False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """At SIGTERM mmdebstrap unmounts what it has mounted."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


def require_namespaces() -> None:
    """Raises Missing if this machine cannot boot a root."""
    if os.geteuid() != 0:
        raise Missing("a root with systemd needs root")
    for name in ("mmdebstrap", "unshare", "nsenter"):
        program(name)
    cgroup_root()
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        raise Missing("the kernel has no overlayfs")


@functools.cache
def cgroup_root() -> Path:
    """Where cgroup v2 is mounted. Raises Missing."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 ") and os.access(path := before.split()[4], os.W_OK):
            return Path(path)
    raise Missing("a root with systemd needs cgroup v2")


@functools.cache
def booted_root(suite: str) -> Path:
    """Make the folder of a suite, or find it. A boot writes into a layer of its own above it. Raises Missing."""
    require_namespaces()
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    folder = OUT / f"booted-{suite}-{digest}"
    if not folder.exists():
        with new_folder(folder) as unfinished:
            install_debian(suite, PACKAGES, unfinished / "root")
            _equip(unfinished / "root")
    return folder / "root"


def _equip(root: Path) -> None:
    (root / "etc/machine-id").write_text(f"{MACHINE_ID}\n")
    (root / "etc/hostname").write_text("booted\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost booted\n::1 localhost\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    units = root / "etc/systemd/system"
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")


def main() -> int:
    """Make the folders that the slow tests boot from, and say whether they are there."""
    for suite in SUITES:
        try:
            booted_root(suite)
        except Missing as exc:
            sys.stdout.write(f"peer Debian {suite}: its tests are skipped: {exc}\n")
        else:
            sys.stdout.write(f"peer Debian {suite}: ready\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
