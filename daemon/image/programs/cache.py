"""Puts BuildKit's cache on a file system of its own, and writes BuildKit's configuration for the size of it.

Only `snapshots` and `content` are on that file system. The databases beside them stay on the machine's own disk, so that
BuildKit can still record what it prunes when the cache is full. BuildKit counts percentages of the disk that has the
databases, so it is given bytes, which are known here. It must never format anything that is not blank.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from bentpipe.daemon.image.programs.settings import (
    CACHE,
    CACHE_LABEL,
    CONFIGURATION,
    ROOT,
    TEMPLATE,
    SatelliteSettings,
    SetupError,
    load_settings,
)

CACHE_FILE = Path("/var/lib/bentpipe/cache.img")
STATE = ROOT / "runc-overlayfs"
PARTS = ("snapshots", "content")
IDENTITY = "bentpipe-cache-id"
"""In the cache and beside the databases: if they differ, one of the two was replaced, and they do not fit together."""
KEEP_MARK, SOURCES_MARK = "@KEEP_BYTES@", "@SOURCES_BYTES@"
NOTHING_FOUND = 2
"""blkid(8): exit code if the device has no file system, no partition table, nothing."""


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError as exc:
        raise SetupError(f"{command[0]} is not installed on this machine image") from exc
    except subprocess.CalledProcessError as exc:
        raise SetupError(f"{' '.join(command)}: {exc.stderr.strip()}") from exc


def _probe(device: str, tag: str) -> str | None:
    """What blkid says; None if the device is blank."""
    command = ("blkid", "-p", "-o", "value", "-s", tag, device)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == NOTHING_FOUND:
        return None
    if done.returncode != 0:
        raise SetupError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def device_of(settings: SatelliteSettings) -> str:
    """Find the cache's block device; a file is made if it is missing, and attached. Raises SetupError."""
    if settings.cache_device:
        return settings.cache_device
    if not CACHE_FILE.exists():
        CACHE_FILE.parent.mkdir(parents=True, exist_ok=True)
        unfinished = CACHE_FILE.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        # Not a sparse file: the machine's disk could fill up under it, which the cache would see as I/O errors.
        _run("fallocate", "--length", str(settings.cache_file_bytes), str(unfinished))
        unfinished.rename(CACHE_FILE)
    attached = _run("losetup", "--noheadings", "--output", "NAME", "--associated", str(CACHE_FILE)).split()
    return attached[0] if attached else _run("losetup", "--find", "--show", str(CACHE_FILE))


def make_file_system(device: str, kind: str) -> bool:
    """Format the device if it is blank; returns whether it was. Raises SetupError if it has anything that is not ours."""
    if _probe(device, "TYPE") is None:
        if kind == "xfs":
            _run("mkfs.xfs", "-q", "-L", CACHE_LABEL, "-i", "maxpct=50", device)
        else:
            # No blocks for root alone (steps are root), and an inode for every 8 KiB: caches have many small files.
            _run("mkfs.ext4", "-q", "-L", CACHE_LABEL, "-m", "0", "-i", "8192", device)
        return True
    if _probe(device, "LABEL") != CACHE_LABEL:
        raise SetupError(
            f"{device} has content that bentpipe has not made, so it is left alone: give another device, or clear it "
            f"with `wipefs --all {device}`"
        )
    return False


def mount_cache(device: str) -> None:
    """Mount the cache, and its parts where BuildKit looks for them. What is mounted already stays."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(CACHE):
        _run("mount", "-o", "noatime", device, str(CACHE))
    _join()
    for part in PARTS:
        (CACHE / part).mkdir(exist_ok=True)
        (STATE / part).mkdir(parents=True, exist_ok=True)
        if not os.path.ismount(STATE / part):
            _run("mount", "--bind", str(CACHE / part), str(STATE / part))


def _join() -> None:
    """Empty both the cache and the databases unless they belong together: without its snapshots a database fails builds."""
    ours, theirs = CACHE / IDENTITY, ROOT / IDENTITY
    if ours.exists() and theirs.exists() and ours.read_text() == theirs.read_text():
        return
    for part in PARTS:
        if not os.path.ismount(STATE / part):
            shutil.rmtree(CACHE / part, ignore_errors=True)
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir(mode=0o711, parents=True, exist_ok=True)
    identity = secrets.token_hex(16)
    theirs.write_text(identity)
    ours.write_text(identity)


def configuration(template: str, settings: SatelliteSettings, total_bytes: int) -> str:
    """BuildKit's configuration for a cache of this size."""
    keep = total_bytes * settings.keep_percent // 100
    sources = total_bytes * settings.sources_percent // 100
    return template.replace(KEEP_MARK, str(keep)).replace(SOURCES_MARK, str(sources))


def write_configuration(settings: SatelliteSettings) -> None:
    """Write BuildKit's configuration for the cache that is mounted."""
    seen = os.statvfs(CACHE)
    CONFIGURATION.parent.mkdir(parents=True, exist_ok=True)
    unfinished = CONFIGURATION.with_suffix(".new")
    unfinished.write_text(configuration(TEMPLATE.read_text(), settings, seen.f_blocks * seen.f_frsize))
    unfinished.rename(CONFIGURATION)


def main() -> int:
    """Do it all; whatever is done already stays. Returns an exit code."""
    try:
        settings = load_settings()
        device = device_of(settings)
        if make_file_system(device, settings.cache_filesystem):
            sys.stderr.write(f"<5>{device} was blank, and has a new {settings.cache_filesystem} for the cache\n")
        mount_cache(device)
        write_configuration(settings)
    except (SetupError, OSError) as exc:
        sys.stderr.write(f"<3>no cache, so BuildKit is not started: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
