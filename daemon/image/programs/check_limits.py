"""Checks that the limits of a satellite are in force: what the kernel says, against what its settings ask for.

Each check yields findings and changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from bentpipe.daemon.image.programs.findings import Finding, fail, fine, warn
from bentpipe.daemon.image.programs.looks import SatelliteLook
from bentpipe.daemon.image.programs.settings import (
    BUILDKIT_UNIT,
    BUILDS_CGROUP,
    DAEMON_CGROUP,
    RESPONDER_SLICE,
    RESPONDER_UNIT,
    SLICE,
    SetupError,
    limits_here,
)

PAGE = 4096
"""The kernel rounds limits down to pages; 64 KiB are the largest pages of arm64."""
LARGEST_PAGE = 16 * PAGE
POLICIES = {"0": "SCHED_OTHER", "1": "SCHED_FIFO", "2": "SCHED_RR"}
PRIORITY_FIELD, POLICY_FIELD = 37, 38
"""Of /proc/PID/stat, counted from 0 after the process's name (proc_pid_stat(5): 40 and 41)."""
RENDER_AGAIN = "systemctl daemon-reload, then systemctl restart builds.slice buildkitd.service"


def check_cgroups(look: SatelliteLook) -> Iterator[Finding]:
    """Cgroup v2, at its usual place, with namespaces as borders."""
    mount = look.mount_of("/sys/fs/cgroup")
    if mount is None or mount["kind"] != "cgroup2":
        yield fail("cgroups", "v1, or not mounted", "boot with systemd.unified_cgroup_hierarchy=1")
    elif "nsdelegate" not in mount["super"].split(","):
        remedy = "mount -o remount,nsdelegate /sys/fs/cgroup: a step could move processes out of its limits"
        yield warn("cgroups", "v2 without nsdelegate", remedy)
    else:
        yield fine("cgroups", "v2, nsdelegate")
    if look.text("/proc/pressure/memory") is None:
        yield fail("pressure (PSI)", "not measured by this kernel", "boot with psi=1")
    else:
        yield fine("pressure (PSI)", "measured")


def _is_about(seen: str | None, wanted: int) -> bool:
    return seen is not None and seen.isdigit() and 0 <= wanted - int(seen) < LARGEST_PAGE


def check_slice(look: SatelliteLook) -> Iterator[Finding]:
    """CPU and memory of the builds and BuildKit together."""
    try:
        limits = limits_here(look.settings, look.path("/proc"))
    except (SetupError, OSError) as exc:
        yield fail("limits", str(exc), "")
        return
    cpu = look.value(SLICE, "cpu.max")
    quota, period = (cpu or "max 1").split()
    if quota == "max" or round(int(quota) * 100 / int(period)) != limits.cpu_quota_percent:
        yield fail("CPU limit", f"{cpu} in {SLICE}, not {limits.cpu_quota_percent} % of one CPU", RENDER_AGAIN)
    else:
        cores = os.sysconf("SC_NPROCESSORS_ONLN")
        yield fine("CPU limit", f"{limits.cpu_quota_percent} % of one CPU, on {cores}")
    memory = look.value(SLICE, "memory.max")
    if _is_about(memory, limits.slice_bytes):
        yield fine("memory limit", f"{limits.slice_bytes >> 20} MiB for builds and BuildKit")
    else:
        yield fail("memory limit", f"{memory} in {SLICE}, not {limits.slice_bytes}", RENDER_AGAIN)
    high = look.value(SLICE, "memory.high")
    if high not in (None, "max"):
        yield fail("memory.high", f"{high} in {SLICE}", "set it to max: builds would hang instead of failing")
    if look.value(SLICE, "pids.max") not in (None, "max"):
        yield fail("pids over BuildKit", "limited", "remove TasksMax= of the slice: a fork bomb would end BuildKit")
    yield from _check_steps(look, limits.steps_bytes)


def _check_steps(look: SatelliteLook, steps_bytes: int) -> Iterator[Finding]:
    """What holds for the builds alone."""
    restart = f"systemctl restart {BUILDKIT_UNIT}"
    memory = look.value(BUILDS_CGROUP, "memory.max")
    if memory is None:
        yield fail("builds' cgroup", f"{BUILDS_CGROUP} has no memory limit, or is not there", restart)
        return
    if _is_about(memory, steps_bytes):
        yield fine("builds' memory", f"{steps_bytes >> 20} MiB")
    else:
        yield fail("builds' memory", f"{memory}, not {steps_bytes}", restart)
    pids = look.value(BUILDS_CGROUP, "pids.max")
    if pids == str(look.settings.pids_max):
        yield fine("builds' processes", f"{pids} at most")
    else:
        yield fail("builds' processes", f"limit {pids}, not {look.settings.pids_max}", restart)
    if look.value(BUILDS_CGROUP, "memory.swap.max") not in (None, "0"):
        yield warn("builds' swap", "allowed", f"{restart}: hibernation needs the swap")


def check_buildkit(look: SatelliteLook) -> Iterator[Finding]:
    """buildkitd runs, beside its steps and not above them, and sees nothing else of the cgroups."""
    unit = look.unit(BUILDKIT_UNIT)
    pid = unit.get("MainPID", "0")
    if unit.get("ActiveState") != "active" or pid == "0":
        state = unit.get("ActiveState", "not known to systemd")
        yield fail("BuildKit", state, f"journalctl -u {BUILDKIT_UNIT}")
        return
    yield fine("BuildKit", f"runs as process {pid}")
    inside = (look.value(DAEMON_CGROUP, "cgroup.procs") or "").split()
    if pid in inside:
        yield fine("BuildKit's cgroup", "daemon, beside the steps'")
    else:
        yield fail(
            "BuildKit's cgroup", f"process {pid} is not in {DAEMON_CGROUP}", f"systemctl restart {BUILDKIT_UNIT}"
        )
    seen = look.mount_of("/sys/fs/cgroup", pid)
    if seen is None or not seen["root"].endswith("/steps"):
        remedy = f"systemctl restart {BUILDKIT_UNIT}: a client's --cgroup-parent could leave the limits"
        yield fail("steps' world", "BuildKit sees more cgroups than its steps'", remedy)
    else:
        yield fine("steps' world", "their own cgroup, whatever parent a client asks for")
    score = look.text(f"/proc/{pid}/oom_score_adj")
    if score is not None and int(score) >= 0:
        yield fail("BuildKit's protection", f"oom_score_adj {score}", "the unit must have OOMScoreAdjust=-500")
    denied = look.unit(SLICE).get("IPAddressDeny", "")
    if "169.254.169.254" in denied:
        yield fine("metadata service", "closed to builds")
    else:
        yield fail("metadata service", "open to builds", f"{SLICE} must have IPAddressDeny=169.254.169.254")


def check_responder(look: SatelliteLook) -> Iterator[Finding]:
    """The responder runs, in a slice of its own with memory of its own."""
    unit = look.unit(RESPONDER_UNIT)
    if unit.get("ActiveState") != "active":
        state = unit.get("ActiveState", "not known to systemd")
        yield fail("responder", state, f"journalctl -u {RESPONDER_UNIT}")
    else:
        yield fine("responder", f"runs as process {unit.get('MainPID')}")
        yield from _check_policy(look, unit.get("MainPID", "0"))
    for name in (RESPONDER_SLICE, f"{RESPONDER_SLICE}/{RESPONDER_UNIT}"):
        kept = look.value(name, "memory.min")
        if kept in (None, "0"):
            yield fail("responder's memory", f"{name} has no memory.min", "every cgroup above it needs it, too")
            return
    yield fine("responder's memory", "kept for it (memory.min)")


def _check_policy(look: SatelliteLook, pid: str) -> Iterator[Finding]:
    """The responder's scheduling policy: with a real-time one, builds with a lower one do not delay it."""
    # The name of a process may have blanks and brackets; the last bracket ends it.
    fields = (look.text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    if len(fields) <= POLICY_FIELD:
        yield warn("responder's priority", "not known", f"/proc/{pid}/stat does not tell it")
        return
    policy = POLICIES.get(fields[POLICY_FIELD], f"policy {fields[POLICY_FIELD]}")
    if fields[PRIORITY_FIELD] == "0":
        yield warn("responder's priority", policy, f"journalctl -u {RESPONDER_UNIT} says why it is not a real-time one")
    else:
        yield fine("responder's priority", f"{policy} {fields[PRIORITY_FIELD]}")


CHECKS = (check_cgroups, check_slice, check_buildkit, check_responder)
