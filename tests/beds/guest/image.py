"""Makes the guest's disk, kernel and first RAM disk, once.

`mmdebstrap` installs Debian's packages into a folder, which becomes an ext4 image. The kernel finds its disk by a RAM disk
of busybox and a few modules, since Debian's own one unpacks slowly in an emulator. All of it is in build/peers, and is made
anew if a file of this recipe changes.
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from beds.peers.builds import OUT, Missing, buildkit, program

HERE = Path(__file__).parent
SUITE = "trixie"
"""Debian 13: systemd 257 and Linux 6.12."""
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "udev",
    "kmod",
    "python3",
    "runc",
    "openssl",
    "cloud-init",
    "e2fsprogs",
    "xfsprogs",
    "busybox-static",
    "iproute2",
    "procps",
    "linux-image-cloud-amd64",
)
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
MODULES = ("failover", "net_failover", "virtio_net", "virtio_blk", "overlay", "loop")
"""In the order of their needs. virtio_pci and ext4 are in the kernel."""
UNITS_LEFT_OUT = (
    "ldconfig.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-binfmt.service",
    "systemd-networkd.service",
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-timesyncd.service",
    "systemd-update-done.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "getty-static.service",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "e2scrub_reap.service",
    "e2scrub_all.timer",
    "fstrim.timer",
    "xfs_scrub_all.timer",
    "dpkg-db-backup.timer",
)
"""Costs seconds each in an emulator, and no test needs them."""
DISK_BYTES = 3 << 30
CACHE_BYTES = 1 << 30
"""Of the second disk, /dev/vdb, which is empty. All disks are sparse files."""
SWAP_DEVICE = "/dev/vdc"
"""The third disk: empty, until a guest makes its swap of it, to hibernate."""
MAKE_DEADLINE_S = 1800.0
"""Of each command. Installing Debian takes two minutes on an idle host, and more than ten on one with a load of 24."""
INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t sysfs sys /sys
for module in {modules}; do /bin/busybox insmod /$module.ko; done
# If the guest hibernated there, it goes on here (Documentation/power/swsusp.rst of Linux); else this has no effect.
/bin/busybox cat /sys/class/block/{swap}/dev > /sys/power/resume
/bin/busybox umount /sys
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""
AGENT_UNIT = """[Unit]
Description=The tests' way into the guest
DefaultDependencies=no
After=local-fs.target
[Service]
Type=notify
Slice=agent.slice
ExecStart=/usr/bin/python3 -I -S /usr/local/lib/agent.py
OOMScoreAdjust=-1000
"""
AGENT_SLICE = "[Slice]\nCPUWeight=10000\nMemoryMin=64M\n"
CLOUD_INIT_OFF = "/etc/cloud/cloud-init.disabled"
"""cloud-init's own switch: its generator looks at each boot whether this file is there."""
MACHINE_ID = "0123456789abcdef0123456789abcdef"


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """The files of a guest. Each guest gets copies of the disks."""

    qemu: str
    kernel: Path
    ram_disk: Path
    disk: Path
    storm: Path
    """The static program of storm.c."""


def _run(command: list[str | Path], **environment: str) -> None:
    """Raises Missing, with the command's last words."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MAKE_DEADLINE_S,
            check=False,
            env={**os.environ, **environment},
        )
    except (subprocess.TimeoutExpired, OSError) as exc:
        raise Missing(f"the guest's image cannot be made: {exc}") from exc
    if done.returncode != 0:
        raise Missing(f"the guest's image cannot be made: {command[0]}: {done.stderr.strip()[-300:]}")


def _install(root: Path) -> None:
    """Install Debian into a new folder. Raises Missing."""
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    # INITRD=No: no RAM disk of Debian's is made.
    command = ["mmdebstrap", "--quiet", "--variant=essential", "--mode=root", f"--include={','.join(PACKAGES)}"]
    _run([*command, *options, SUITE, root], INITRD="No")


def _equip(root: Path) -> None:
    """Add BuildKit and the agent, and leave out what only costs time."""
    programs = buildkit()
    shutil.copy(programs.buildkitd, root / "usr/local/bin/buildkitd")
    shutil.copy(programs.buildctl, root / "usr/local/bin/buildctl")
    shutil.copy(HERE / "agent.py", root / "usr/local/lib/agent.py")
    (root / "etc/machine-id").write_text(f"{MACHINE_ID}\n")
    (root / "etc/hostname").write_text("guest\n")
    # Only the tests of cloud-init enable it. The agent brings the network up.
    (root / CLOUD_INIT_OFF.lstrip("/")).touch()
    (root / "etc/cloud/cloud.cfg.d/99-network.cfg").write_text("network: {config: disabled}\n")
    units = root / "etc/systemd/system"
    (units / "agent.service").write_text(AGENT_UNIT)
    (units / "agent.slice").write_text(AGENT_SLICE)
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "agent.service").symlink_to("../agent.service")
    (units / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    for name in UNITS_LEFT_OUT:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")


def _archive(files: dict[str, bytes], folders: tuple[str, ...]) -> bytes:
    """A RAM disk's archive (Documentation/driver-api/early-userspace/buffer-format.rst of Linux: cpio, "newc")."""

    def entry(name: str, mode: int, data: bytes) -> bytes:
        encoded = name.encode() + b"\0"
        # ino, mode, uid, gid, nlink, mtime, filesize, dev's and rdev's two numbers, namesize, check
        fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)

    parts = [entry(name, 0o040755, b"") for name in folders]
    parts += [entry(name, 0o100755, data) for name, data in files.items()]
    return b"".join([*parts, entry("TRAILER!!!", 0, b"")])


def _ram_disk(root: Path) -> bytes:
    files = {
        "bin/busybox": (root / "usr/bin/busybox").read_bytes(),
        "init": INIT.format(modules=" ".join(MODULES), swap=Path(SWAP_DEVICE).name).encode(),
    }
    for name in MODULES:
        found = [*(root / "usr/lib/modules").rglob(f"{name}.ko.xz")]
        if len(found) != 1:
            raise Missing(f"the guest's kernel has not one module {name}, but {len(found)}")
        files[f"{name}.ko"] = lzma.decompress(found[0].read_bytes())
    return gzip.compress(_archive(files, ("bin", "dev", "root", "sys")), compresslevel=1)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that gets its name only when it is complete."""
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if not folder.exists():
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _digest() -> str:
    digest = hashlib.sha256(buildkit().buildkitd.encode())
    for name in ("image.py", "agent.py"):
        digest.update((HERE / name).read_bytes())
    return digest.hexdigest()[:16]


def _storm() -> Path:
    """The static program of storm.c, which no disk has: builds bring it. Raises Missing."""
    source = HERE / "storm.c"
    folder = OUT / f"storm-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    if not folder.exists():
        with new_folder(folder) as unfinished:
            _run(["gcc", "-std=c11", "-O2", "-static", "-s", source, "-o", unfinished / "storm"])
    return folder / "storm"


@functools.cache
def guest_image() -> Image:
    """Make the guest's files, or find them. Raises Missing."""
    if os.uname().machine != "x86_64" or os.geteuid() != 0:
        raise Missing("the guest's image is made as root, on x86-64")
    qemu = program("qemu-system-x86_64")
    for name in ("mmdebstrap", "mkfs.ext4", "gcc"):
        program(name)
    folder = OUT / f"guest-{_digest()}"
    if not folder.exists():
        with new_folder(folder) as unfinished:
            root = unfinished / "root"
            _install(root)
            _equip(root)
            [kernel] = (root / "boot").glob("vmlinuz-*")
            shutil.copy(kernel, unfinished / "vmlinuz")
            (unfinished / "ram_disk").write_bytes(_ram_disk(root))
            disk = unfinished / "disk"
            with disk.open("wb") as file:
                file.truncate(DISK_BYTES)
            _run(["mkfs.ext4", "-q", "-F", "-d", root, disk])
            shutil.rmtree(root)
    return Image(qemu, folder / "vmlinuz", folder / "ram_disk", folder / "disk", _storm())
