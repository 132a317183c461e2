"""Starts buildkitd beside its steps, and not above them: one cgroup for it, one for all steps, both within its unit.

A client of BuildKit chooses the cgroup of its steps (`--cgroup-parent`), and BuildKit asks for no entitlement for that. So
the path of the steps' cgroup must be the whole world of BuildKit:

    builds.slice/buildkitd.service/         the root of a private cgroup namespace
        daemon/                             buildkitd, runc, git: protected memory, no limit of its own
        steps/                              memory.max, pids.max; mounted as /sys/fs/cgroup for buildkitd
            buildkit/ID, system.slice/buildkit/ID, …

With nsdelegate (systemd's mount option) the kernel lets a process move others only within its cgroup namespace, so the
namespace's root must be above both. systemd has a setting for this only since 257 (ProtectControlGroups=private).
It must never start buildkitd without its limits: each step that fails ends the program, and the journal says why.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

from bentpipe.daemon.image.programs.settings import CONFIGURATION, SetupError, limits_here, load_settings

CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "memory", "pids", "io")
CLONE_NEWNS, CLONE_NEWCGROUP = 0x00020000, 0x02000000
MS_BIND, MS_REC, MS_SLAVE = 4096, 16384, 1 << 19
STEPS_WEIGHT, DAEMON_WEIGHT = 50, 1000
"""cpu.weight: BuildKit answers its clients' health checks while its steps burn all that they may."""


def _check(code: int, words: str) -> None:
    if code != 0:
        raise SetupError(f"{words}: {os.strerror(ctypes.get_errno())}")


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except OSError as exc:
        raise SetupError(f"cannot write {value!r} to {path}: {exc.strerror}") from exc


def own_cgroup(proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> Path:
    """Find our own cgroup in the file system. Raises SetupError if this is not cgroup v2."""
    match = re.search(r"^0::(/.+)$", (proc / "self/cgroup").read_text(), re.MULTILINE)
    if match is None or not (cgroups / "cgroup.controllers").exists():
        raise SetupError(
            "this machine has cgroup v1, or mounts v2 elsewhere: boot with systemd.unified_cgroup_hierarchy=1"
        )
    return cgroups / match[1].lstrip("/")


def divide(unit: Path, steps_bytes: int, buildkit_bytes: int, pids_max: int) -> None:
    """Make the two cgroups within the unit's, move ourselves into `daemon`, and set the limits. Raises SetupError."""
    daemon, steps = unit / "daemon", unit / "steps"
    daemon.mkdir(exist_ok=True)
    steps.mkdir(exist_ok=True)
    _write(daemon / "cgroup.procs", str(os.getpid()))
    for controller in CONTROLLERS:
        _write(unit / "cgroup.subtree_control", f"+{controller}")
    _write(steps / "memory.max", str(steps_bytes))
    # memory.high is left alone: beyond it the kernel slows tasks down for ever and kills none of them.
    _write(steps / "memory.swap.max", "0")
    _write(steps / "pids.max", str(pids_max))
    _write(steps / "cpu.weight", str(STEPS_WEIGHT))
    _write(daemon / "cpu.weight", str(DAEMON_WEIGHT))
    _write(daemon / "memory.min", str(buildkit_bytes))


def enclose(unit: Path, steps_bytes: int, buildkit_bytes: int, pids_max: int) -> None:
    """Give this process its own view: `unit` is the root of its cgroup namespace, its `steps` is /sys/fs/cgroup.

    Raises SetupError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(CLONE_NEWCGROUP | CLONE_NEWNS), "cannot make a cgroup and a mount namespace")
    # What the machine mounts later is seen here; what BuildKit mounts is not seen outside.
    _check(libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None), "cannot make / a slave of the machine's mounts")
    divide(unit, steps_bytes, buildkit_bytes, pids_max)
    source = os.fsencode(unit / "steps")
    _check(libc.mount(source, os.fsencode(CGROUPS), None, MS_BIND, None), f"cannot mount {unit}/steps at {CGROUPS}")


def main() -> int:
    """Become buildkitd. Returns an exit code if that fails."""
    try:
        settings = load_settings()
        limits = limits_here(settings)
        enclose(own_cgroup(), limits.steps_bytes, settings.memory_buildkit_bytes, settings.pids_max)
        program = f"{settings.programs}/buildkitd"
        # BuildKit looks for git, runc and others in PATH: first among the programs of its own image.
        os.environ["PATH"] = f"{settings.programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        os.environ.pop("PYTHONPATH", None)
        os.execv(program, [program, "--config", str(CONFIGURATION)])
    except (SetupError, OSError) as exc:
        sys.stderr.write(f"<3>BuildKit is not started: {exc}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
