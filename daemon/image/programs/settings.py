"""What a satellite's programs are told by /etc/bentpipe/satellite.json, and the limits that follow from it on a machine.

The renderer writes the file, the programs read it. It must never have a secret: builds can read it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

SETTINGS = Path("/etc/bentpipe/satellite.json")
PROGRAM_SUMS = Path("/etc/bentpipe/programs.sha256")
"""The digests of the programs that fit the settings: a machine image may have those of another version."""
TEMPLATE = Path("/etc/bentpipe/buildkitd.toml")
"""BuildKit's configuration, with marks for what depends on the size of the cache."""
CONFIGURATION = Path("/run/bentpipe/buildkitd.toml")
CACHE = Path("/var/lib/bentpipe/cache")
"""Where the cache's file system is mounted."""
ROOT = Path("/var/lib/buildkit")
CACHE_LABEL = "bentpipe"
"""Of the cache's file system. XFS allows 12 characters. A file system with another label is never touched."""
SLICE = "builds.slice"
BUILDKIT_UNIT = "buildkitd.service"
RESPONDER_SLICE = "responder.slice"
RESPONDER_UNIT = "bentpipe-responder.service"
RESPONDER_SETTINGS = "/etc/bentpipe/responder.json"
RUNTIME = "/usr/local/lib/bentpipe/runtime"
"""What BuildKit runs as runc."""
DEBUGGER = Path("/usr/bin/earth_debugger")
"""Where Earthly's CLI tells BuildKit to find it."""
BUILDS_CGROUP = f"{SLICE}/{BUILDKIT_UNIT}/steps"
"""Below /sys/fs/cgroup: every step of every build, and nothing else."""
DAEMON_CGROUP = f"{SLICE}/{BUILDKIT_UNIT}/daemon"
SOCKET = Path("/run/buildkit/buildkitd.sock")
MEMORY_LEAST = 256 << 20
"""Builds that have less than this cannot run. Such a machine is refused, and not given a limit that kills every build."""


class SetupError(Exception):
    """The satellite cannot be set up: the message says what is wrong, where, and what to do."""


@dataclasses.dataclass(frozen=True)
class SatelliteSettings:
    """The settings; sizes in bytes."""

    flavour: str
    """moby or earthly."""
    programs: str
    """The folder of buildkitd."""
    image: str
    """Where the programs are fetched from: an image by its digest; "" if the folder has them."""
    runc: str
    """runc, if the folder of the programs has no buildkit-runc."""
    cpu_percent: int
    memory_reserve_bytes: int
    memory_buildkit_bytes: int
    pids_max: int
    io_max_bytes_per_s: int
    cache_device: str
    """"" if the cache is in a file."""
    cache_file_bytes: int
    cache_filesystem: str
    keep_percent: int
    sources_percent: int
    hibernates: bool


def load_settings(path: Path = SETTINGS) -> SatelliteSettings:
    """Read the file. Raises SetupError.

    Keys that are not known are a newer daemon's. The machine works without them, and the doctor says that it is old.
    """
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise SetupError(f"{path}: {exc}: render the satellite's image again") from exc
    fields = {each.name: each.type for each in dataclasses.fields(SatelliteSettings)}
    if not isinstance(raw, dict):
        raise SetupError(f"{path}: not an object: render the image again")
    missing = sorted(set(fields) - set(raw))
    if missing:
        raise SetupError(
            f"{path}: {', '.join(missing)} missing: these programs are newer than the daemon that launched this"
        )
    for name, kind in fields.items():
        if type(raw[name]).__name__ != kind:
            raise SetupError(f"{path}: {name} is not of type {kind}: {raw[name]!r}")
    return SatelliteSettings(**{name: raw[name] for name in fields})


@dataclasses.dataclass(frozen=True)
class Limits:
    """What this machine's builds may use. Bytes; `cpu_quota_percent` is of one CPU, as systemd counts."""

    cpu_quota_percent: int
    slice_bytes: int
    """For builds and BuildKit together."""
    steps_bytes: int
    """For the builds alone."""


def limits_of(settings: SatelliteSettings, cores: int, memory_bytes: int) -> Limits:
    """Compute the limits for a machine with so many CPUs and so much memory. Raises SetupError if builds have no room."""
    slice_bytes = memory_bytes - settings.memory_reserve_bytes
    steps_bytes = slice_bytes - settings.memory_buildkit_bytes
    if steps_bytes < MEMORY_LEAST:
        raise SetupError(
            f"this machine has {memory_bytes >> 20} MiB of memory; memory_reserve "
            f"({settings.memory_reserve_bytes >> 20} MiB) and memory_buildkit "
            f"({settings.memory_buildkit_bytes >> 20} MiB) leave builds less than {MEMORY_LEAST >> 20} MiB: "
            "take a larger machine, or lower them in the section image"
        )
    return Limits(cores * settings.cpu_percent, slice_bytes, steps_bytes)


def limits_here(settings: SatelliteSettings, proc: Path = Path("/proc")) -> Limits:
    """Compute the limits for this machine. Raises SetupError."""
    match = re.search(r"^MemTotal:\s+(\d+) kB$", (proc / "meminfo").read_text(), re.MULTILINE)
    if match is None:
        raise SetupError(f"{proc}/meminfo does not say MemTotal")
    return limits_of(settings, os.sysconf("SC_NPROCESSORS_ONLN"), int(match[1]) << 10)
