"""Checks a satellite's disks: the cache's place and room, which limit of I/O holds, swap and hibernation, BuildKit's
configuration. Each check yields findings and changes nothing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from bentpipe.daemon.image.programs.cache import PARTS, STATE
from bentpipe.daemon.image.programs.findings import Finding, fail, fine, warn
from bentpipe.daemon.image.programs.looks import SatelliteLook
from bentpipe.daemon.image.programs.settings import (
    CACHE,
    CONFIGURATION,
    DEBUGGER,
    RESPONDER_SLICE,
    ROOT,
    RUNTIME,
    SLICE,
    SOCKET,
)

CNI_PLUGINS = ("bridge", "host-local", "loopback")
SPARE_PERCENT = 5
ROUNDING = 1 << 20
HIBERNATION_AGENTS = ("hibinit-agent.service", "ec2-hibinit-agent.service")


def check_cache(look: SatelliteLook) -> Iterator[Finding]:
    """The cache is on a file system of its own, and the databases are not."""
    mount = look.mount_of(str(CACHE))
    if mount is None:
        yield fail("cache", f"nothing is mounted at {CACHE}", "journalctl -u bentpipe-cache.service")
        return
    seen = os.statvfs(look.path(str(CACHE)))
    total, free = seen.f_blocks * seen.f_frsize, seen.f_bavail * seen.f_frsize
    words = f"{mount['source']} ({mount['kind']}), {total >> 20} MiB, {free * 100 // max(total, 1)} % free"
    if mount["kind"] != look.settings.cache_filesystem:
        remedy = f"the settings say {look.settings.cache_filesystem}; a cache is never formatted again by itself"
        yield warn("cache", words, remedy)
    else:
        yield fine("cache", words)
    for part in PARTS:
        joined = look.mount_of(str(STATE / part))
        if joined is None or joined["device"] != mount["device"]:
            yield fail("cache", f"{STATE / part} is not on it", "systemctl restart bentpipe-cache.service")
    if seen.f_files and seen.f_favail * 100 // seen.f_files < SPARE_PERCENT:
        yield fail(
            "cache's inodes", f"{seen.f_favail} of {seen.f_files} are left", 'buildctl prune, and filesystem = "xfs"'
        )
    yield from _check_room(look, "databases", str(ROOT))


def _check_room(look: SatelliteLook, subject: str, folder: str) -> Iterator[Finding]:
    seen = os.statvfs(look.path(folder))
    free = seen.f_bavail * 100 // max(seen.f_blocks, 1)
    words = f"{folder} has {free} % of the machine's own disk free"
    yield warn(subject, words, "make room, or enlarge the disk") if free < SPARE_PERCENT else fine(subject, words)


def _disks(look: SatelliteLook) -> Iterator[tuple[str, str]]:
    """(MAJOR:MINOR, name) of the whole disks below the root and the cache."""
    found = {}
    for point in ("/", str(CACHE)):
        mount = look.mount_of(point)
        block = look.path(f"/sys/dev/block/{mount['device']}") if mount else None
        if block is None or not block.exists():
            continue
        place = block.resolve()
        disk = place.parent if (place / "partition").exists() else place
        if disk.name.startswith("loop"):
            continue  # a file on the root's disk, which is here already
        number = (disk / "dev").read_text().strip()
        found[number] = disk.name
    yield from found.items()


def check_io(look: SatelliteLook) -> Iterator[Finding]:
    """Which limit of I/O holds between the builds and the rest. IOWeight= alone does nothing on most disks."""
    latency = look.value(RESPONDER_SLICE, "io.latency")
    maximum = look.value(SLICE, "io.max") or ""
    cost = look.text("/sys/fs/cgroup/io.cost.qos") or ""
    for number, name in _disks(look):
        scheduler = look.text(f"/sys/class/block/{name}/queue/scheduler") or "none"
        holds = [
            *(["io.latency"] if latency and f"{number} target=" in latency else []),
            *(["io.max"] if f"{number} " in maximum else []),
            *(["iocost"] if any(line.startswith(f"{number} enable=1") for line in cost.splitlines()) else []),
            *(["BFQ's weights"] if "[bfq]" in scheduler else []),
        ]
        words = f"scheduler {scheduler}"
        if holds:
            yield fine(f"I/O of {name}", f"{', '.join(holds)} ({words})")
            continue
        why = "this kernel has no io.latency" if latency is None else "io.latency is not set for it"
        remedy = "set io_max in the section image. The responder needs no disk to answer"
        yield warn(f"I/O of {name}", f"no limit holds: {why} ({words})", remedy)


def check_swap(look: SatelliteLook) -> Iterator[Finding]:
    """Hibernation needs one swap that nothing else uses, as large as the memory."""
    lines = (look.text("/proc/swaps") or "").splitlines()[1:]
    areas = [line.split() for line in lines]
    if not look.settings.hibernates:
        names = ", ".join(each[0] for each in areas)
        yield warn("swap", names, "builds do not use it; remove it") if areas else fine("swap", "none")
        return
    if len(areas) > 1:
        names = ", ".join(each[0] for each in areas)
        yield fail("swap", f"several: {names}", "leave one: with another active EC2's agent cannot hibernate")
    elif areas and int(areas[0][3]) > int(areas[0][2]) // 10:
        yield warn("swap", f"{areas[0][3]} KiB are in use", "no unit should swap: see MemorySwapMax=")
    else:
        yield fine(
            "swap", f"{areas[0][0]}, unused" if areas else "none yet; the agent turns it on when the machine sleeps"
        )
    if (look.text("/proc/sys/vm/swappiness") or "0") != "0":
        yield warn("swappiness", look.text("/proc/sys/vm/swappiness") or "", "sysctl vm.swappiness=0")
    yield from _check_hibernation(look)


def _check_hibernation(look: SatelliteLook) -> Iterator[Finding]:
    if "disk" not in (look.text("/sys/power/state") or "").split():
        remedy = 'the machine is stopped instead: sleep_mode = "stop" says so, or take another image or type'
        yield warn("hibernation", "this kernel does not offer it", remedy)
        return
    agents = [each for each in HIBERNATION_AGENTS if look.unit(each).get("UnitFileState") in ("enabled", "static")]
    resumes = " resume=" in f" {look.text('/proc/cmdline') or ''}"
    if agents or resumes:
        yield fine("hibernation", f"{agents[0] if agents else 'resume= on the kernel command line'}")
    else:
        remedy = 'install EC2\'s hibinit-agent in the machine image, or set sleep_mode = "stop"'
        yield warn("hibernation", "nothing prepares it on this machine", remedy)


def check_configuration(look: SatelliteLook) -> Iterator[Finding]:
    """What BuildKit runs with, and what it has made of its configuration."""
    text = look.text(str(CONFIGURATION))
    if text is None:
        yield fail("BuildKit's settings", f"{CONFIGURATION} is not there", "systemctl restart bentpipe-cache.service")
        return
    runtime = look.path(RUNTIME)
    if RUNTIME not in text or not os.access(runtime, os.X_OK):
        remedy = "without it steps have BuildKit's protection from the OOM killer: render the image again"
        yield fail("runtime", f"{RUNTIME} is not used, or cannot be run", remedy)
    else:
        yield fine("runtime", RUNTIME)
    yield from _check_plugins(look, text)
    if look.settings.flavour == "earthly" and not look.path(str(DEBUGGER)).exists():
        yield fail("Earthly's debugger", f"{DEBUGGER} is not there", "journalctl -u bentpipe-fetch.service")
    yield from _check_policies(look)


def _check_plugins(look: SatelliteLook, configuration: str) -> Iterator[Finding]:
    """The CNI plug-ins, if steps have networks of their own."""
    match = re.search(r'^cniBinaryPath = "(.*)"$', configuration, re.MULTILINE)
    if match is None:
        return
    missing = [each for each in CNI_PLUGINS if not os.access(look.path(f"{match[1]}/{each}"), os.X_OK)]
    if missing:
        remedy = "add them to the machine image (containernetworking-plugins), or set cni_plugins"
        yield fail("CNI plug-ins", f"{match[1]} lacks {', '.join(missing)}", remedy)
    else:
        yield fine("CNI plug-ins", match[1])


def _check_policies(look: SatelliteLook) -> Iterator[Finding]:
    """BuildKit's parser takes keys that it does not know, so it is asked."""
    buildctl = Path(look.settings.programs) / "buildctl"
    if not look.path(str(buildctl)).exists():
        yield warn("garbage collection", "not asked: there is no buildctl", f"put buildctl into {buildctl.parent}")
        return
    command = ("--addr", f"unix://{SOCKET}", "debug", "workers", "--format", "{{json .}}")
    answer = look.run(str(look.path(str(buildctl))), *command)
    try:
        policies = json.loads(answer or "")[0]["gcPolicy"]
        kept = [max(each["maxUsedSpace"], each["reservedSpace"]) for each in policies]
    except (ValueError, KeyError, IndexError, TypeError):
        yield fail("garbage collection", "BuildKit does not say its policies", "journalctl -u buildkitd.service")
        return
    seen = os.statvfs(look.path(str(CACHE)))
    wanted = seen.f_blocks * seen.f_frsize * look.settings.keep_percent // 100
    if kept and abs(kept[-1] - wanted) <= ROUNDING:
        yield fine("garbage collection", f"leaves {wanted >> 20} MiB")
    else:
        remedy = "systemctl restart bentpipe-cache.service buildkitd.service"
        yield fail("garbage collection", f"BuildKit keeps {kept}, the settings say {wanted}", remedy)


CHECKS = (check_cache, check_io, check_swap, check_configuration)
