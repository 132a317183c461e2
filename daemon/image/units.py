"""systemd's units of a satellite. Debian 12's systemd 252 is the oldest that reads them all. Pure.

Each setting has its reason above it. No unit may wait for cloud-init or for the network, and no start may have a time limit:
a cache with many records takes BuildKit minutes to open.
"""

import re

from bentpipe.config.image import ImageSection
from bentpipe.daemon.image.files import EXECUTABLE, ImageFile, ImageLink
from bentpipe.daemon.image.places import (
    ENROL,
    ENROLMENT,
    GENERATOR,
    LIBRARY,
    PROGRAMS_PACKAGE,
    PYTHON,
    RESPONDER,
    SLEEP_HOOK,
    SYSCTL,
    TARGET,
    TLS_FOLDER,
    UNITS,
)
from bentpipe.daemon.image.programs.limits import DROP_IN
from bentpipe.daemon.image.programs.settings import (
    BUILDKIT_UNIT,
    BUILDS_CGROUP,
    RESPONDER_SETTINGS,
    RESPONDER_SLICE,
    RESPONDER_UNIT,
    ROOT,
    SLICE,
)
from bentpipe.daemon.responder.scheduling import DEFAULT_PRIORITY

CACHE_UNIT, FETCH_UNIT, ENROL_UNIT = "bentpipe-cache.service", "bentpipe-fetch.service", "bentpipe-enrol.service"
LIMITS_DROP_IN = f"/run/systemd/generator/{SLICE}.d/{DROP_IN}"
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "unattended-upgrades.service", "dnf-makecache.timer")
"""They would run at every wake, when their hour has passed, beside the first build."""

METADATA_SERVICE = "169.254.169.254/32 fd00:ec2::254/128"
"""EC2's: it tells user data and the instance role's credentials to every process that can reach it."""
RESPONDER_BYTES = "64M"
EARLY = """# By default a service waits for sysinit.target. On Debian and Ubuntu that waits, at every boot, for cloud-init's
# network stage, and so for the network.
DefaultDependencies=no
After=local-fs.target systemd-tmpfiles-setup.service
Conflicts=shutdown.target
Before=shutdown.target"""
"""What a service of ours needs of the boot: its files, and a clean /tmp and /run."""


def render_units(section: ImageSection, *, hibernates: bool, enrols_for: int | None) -> list[ImageFile]:
    """Return all units, and what else systemd and the kernel read.

    `enrols_for` is BuildKit's port if the machine gets a certificate from the daemon, else None.
    """
    enrols = enrols_for is not None
    units = {
        TARGET: _target(),
        SLICE: _builds_slice(),
        RESPONDER_SLICE: _responder_slice(section),
        CACHE_UNIT: _cache(section.cache.device),
        BUILDKIT_UNIT: _buildkit(section, fetches=_fetches(section), enrols=enrols),
        RESPONDER_UNIT: _responder(enrols=enrols),
    }
    if _fetches(section):
        units[FETCH_UNIT] = _fetch()
    if enrols_for is not None:
        units[ENROL_UNIT] = _enrol(enrols_for)
    if section.cache.device is not None:
        units[f"{device_unit(section.cache.device)}.d/50-bentpipe.conf"] = _late_device()
    if hibernates:
        units |= {f"{each}.d/50-bentpipe.conf": _no_swap() for each in ("system.slice", "user.slice")}
    files = [ImageFile(f"{UNITS}/{name}", text) for name, text in units.items()]
    files.append(ImageFile(GENERATOR, _generator(), EXECUTABLE))
    files.append(ImageFile(SYSCTL, _sysctl()))
    if hibernates:
        files.append(ImageFile(SLEEP_HOOK, _sleep_hook(section), EXECUTABLE))
    return files


def _enabled(*, enrols: bool) -> list[str]:
    return [BUILDKIT_UNIT, RESPONDER_UNIT, *([ENROL_UNIT] if enrols else [])]


def render_links(*, enrols: bool) -> list[ImageLink]:
    """Return the links that enable our units and mask the distribution's, as `systemctl enable` and `mask` make them."""
    return [
        ImageLink(f"{UNITS}/multi-user.target.wants/{TARGET}", f"{UNITS}/{TARGET}"),
        *(ImageLink(f"{UNITS}/{TARGET}.wants/{name}", f"{UNITS}/{name}") for name in _enabled(enrols=enrols)),
        *(ImageLink(f"{UNITS}/{name}", "/dev/null") for name in MASKED),
    ]


def render_start(*, enrols: bool) -> str:
    """Return the commands for a machine that has just got its files. Later boots need none: the units are enabled."""
    enabled = " ".join([TARGET, *_enabled(enrols=enrols)])
    # `mask` and `enable` would each reload too, and a reload runs all generators, cloud-init's among them.
    links = f"systemctl --no-reload mask {' '.join(MASKED)}; systemctl --no-reload enable {enabled}"
    return (
        f"{links} && systemctl daemon-reload && systemctl restart --no-block systemd-sysctl.service && "
        f"systemctl start --no-block {TARGET}"
    )


def _fetches(section: ImageSection) -> bool:
    """Whether the machine gets its programs itself. The fork needs its debugger in place in any case."""
    return bool(section.digest) or section.flavour == "earthly"


def device_unit(path: str) -> str:
    """The device's unit, as `systemd-escape --path --suffix=device` names it."""
    escaped = re.sub(r"[^A-Za-z0-9_.:/]", lambda match: "".join(f"\\x{byte:02x}" for byte in match[0].encode()), path)
    return escaped.strip("/").replace("/", "-") + ".device"


def _target() -> str:
    return """[Unit]
Description=All that makes this machine a satellite of bentpipe

[Install]
WantedBy=multi-user.target
"""


def _builds_slice() -> str:
    return f"""[Unit]
Description=Builds, and BuildKit beside them
# CPUQuota= and MemoryMax= are in a drop-in that {GENERATOR}
# writes at every boot: they depend on the machine.

[Slice]
CPUAccounting=yes
MemoryAccounting=yes
IOAccounting=yes
TasksAccounting=yes
# Against system.slice (100) and {RESPONDER_SLICE} (10000), while all want the CPU.
CPUWeight=50
# Beyond MemoryHigh= the kernel slows tasks down for ever and kills none of them: a build would hang instead of failing.
MemoryHigh=infinity
# Hibernation needs the swap empty and for itself.
MemorySwapMax=0
# One limit over BuildKit and its steps would end BuildKit: Go aborts if it cannot make a thread. The steps' cgroup has one.
TasksMax=infinity
# EC2's metadata service: it gives user data and the instance's credentials to every process.
IPAddressDeny={METADATA_SERVICE}
"""


def _responder_slice(section: ImageSection) -> str:
    # A cache in a file is on the machine's own disk.
    disks = ["/"] if section.cache.device is None else ["/", section.cache.device]
    latency = "\n".join(f"IODeviceLatencyTargetSec={each} {section.io_latency_s * 1000:.0f}ms" for each in disks)
    return f"""[Unit]
Description=The responder, which must answer whatever the builds do

[Slice]
CPUAccounting=yes
MemoryAccounting=yes
IOAccounting=yes
CPUWeight=10000
# Counts only if every slice above it has it, so this slice is not inside another.
MemoryMin={RESPONDER_BYTES}
MemorySwapMax=0
# IOWeight= does nothing on EBS, which has neither BFQ nor iocost. This slows the neighbours down instead, if the kernel has
# io.latency: `bentpipe doctor --satellite` says so.
{latency}
"""


def _no_swap() -> str:
    return """[Slice]
# Hibernation needs the swap empty and for itself.
MemorySwapMax=0
"""


def _service(module: str) -> str:
    return f"Environment=PYTHONPATH={LIBRARY}\nExecStart={PYTHON} {PROGRAMS_PACKAGE}.{module}"


def _cache(device: str | None) -> str:
    needs = "" if device is None else f"Requires={device_unit(device)}\nAfter={device_unit(device)}\n"
    return f"""[Unit]
Description=BuildKit's cache, on a file system of its own
{EARLY}
{needs}Before={BUILDKIT_UNIT}

[Service]
Type=oneshot
RemainAfterExit=yes
{_service("cache")}
# A large new file system takes its time.
TimeoutStartSec=infinity
"""


def _late_device() -> str:
    return """[Unit]
# By default systemd gives a device up after 90 s, and with it all that needs it, until the next boot. A volume may be
# attached later, and a machine may be slow.
JobRunningTimeoutSec=infinity
"""


def _fetch() -> str:
    return f"""[Unit]
Description=BuildKit's programs, from their image by its digest
{EARLY}
# It does not wait for the network. With the programs on the machine it takes some ms, and without them it tries again until
# the registry answers.
Before={BUILDKIT_UNIT}

[Service]
Type=oneshot
RemainAfterExit=yes
{_service("fetch")}
# It tries again by itself while the network does not answer.
TimeoutStartSec=infinity
"""


def _buildkit(section: ImageSection, *, fetches: bool, enrols: bool) -> str:
    needs = f"{CACHE_UNIT} {FETCH_UNIT}" if fetches else CACHE_UNIT
    kind = {"moby": "BuildKit", "earthly": "BuildKit, Earthly's fork"}[section.flavour]
    return f"""[Unit]
Description={kind}
{EARLY}
Requires={needs}
After={needs}
{_after_enrolment(enrols=enrols)}# Without limits it does not start.
AssertPathExists={LIMITS_DROP_IN}
# It is never given up.
StartLimitIntervalSec=0

[Service]
Slice={SLICE}
# BuildKit says that it is ready once its databases are open. That takes minutes with some ten thousand records, and a limit
# here would kill it again and again.
Type=notify
NotifyAccess=main
TimeoutStartSec=infinity
# Divides this unit's cgroup, hides the rest of the tree, and becomes buildkitd.
{_service("enclose")}
# The unit's cgroups below its own are BuildKit's to manage.
Delegate=yes
MemoryMin={section.memory_buildkit_bytes}
# The kernel kills steps first. They do not inherit this: the runtime sets their own.
OOMScoreAdjust=-500
# A step that ran out of memory must not take BuildKit down.
OOMPolicy=continue
TasksMax=infinity
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=0
Restart=always
RestartSec=1
# buildkitd is asked to end; the steps are killed with it.
KillMode=mixed
TimeoutStopSec=30
RuntimeDirectory=buildkit
RuntimeDirectoryMode=0710

[Install]
WantedBy={TARGET}
"""


def _enrol(port: int) -> str:
    restart = f"--restart {BUILDKIT_UNIT} --port {port} --builds {BUILDS_CGROUP}"
    return f"""[Unit]
Description=This machine's certificate, from the daemon, and the next one in time
{EARLY}
# It waits neither for the network nor for cloud-init, which writes {ENROLMENT}: at later boots it needs neither.
StartLimitIntervalSec=0

[Service]
Slice={RESPONDER_SLICE}
# It is ready once there is a certificate. It tries again by itself, for ever.
Type=notify
NotifyAccess=main
TimeoutStartSec=infinity
ExecStart=/usr/bin/python3 -I -S {ENROL} {ENROLMENT} {TLS_FOLDER} {restart}
OOMScoreAdjust=-900
OOMPolicy=continue
Restart=always
RestartSec=1

[Install]
WantedBy={TARGET}
"""


def _after_enrolment(*, enrols: bool) -> str:
    # Wants= and not Requires=: if a program is restarted, units that require it are restarted too, and builds with them.
    return f"Wants={ENROL_UNIT}\nAfter={ENROL_UNIT}\n" if enrols else ""


def _responder(*, enrols: bool) -> str:
    return f"""[Unit]
Description=The responder: tells the daemon how this machine is
{EARLY}
{_after_enrolment(enrols=enrols)}StartLimitIntervalSec=0

[Service]
Slice={RESPONDER_SLICE}
Type=notify
NotifyAccess=main
ExecStart=/usr/bin/python3 -I -S {RESPONDER} {RESPONDER_SETTINGS}
# Beside a burning machine a start may take long.
TimeoutStartSec=infinity
WatchdogSec=30
# The last that the kernel kills.
OOMScoreAdjust=-900
OOMPolicy=continue
MemoryMin={RESPONDER_BYTES}
# It locks its memory, so that it needs no page from a disk to answer.
LimitMEMLOCK=infinity
# It asks for SCHED_RR by itself: with CPUSchedulingPolicy= the unit would not start on a kernel that refuses it.
LimitRTPRIO={DEFAULT_PRIORITY}
Environment=MALLOC_ARENA_MAX=1
Restart=always
RestartSec=1
# 78: its configuration is wrong, and stays wrong.
RestartPreventExitStatus=78

[Install]
WantedBy={TARGET}
"""


def _generator() -> str:
    return f"""#!/bin/sh
# systemd.generator(7): writes this machine's limits at every boot.
PYTHONPATH={LIBRARY} exec {PYTHON} {PROGRAMS_PACKAGE}.limits "$@"
"""


def _sysctl() -> str:
    return """# Memory that is not in use is not moved to the swap: hibernation needs it empty.
vm.swappiness = 0
# A build that writes fast is made to wait early, and a sync by somebody else does not wait for gigabytes.
vm.dirty_background_bytes = 67108864
vm.dirty_bytes = 268435456
# All steps are one user to the kernel; by default that user may watch with 128 programs.
fs.inotify.max_user_instances = 8192
"""


def _sleep_hook(section: ImageSection) -> str:
    read = f"{section.programs_folder}/buildkitd {ROOT}"
    return f"""#!/bin/sh
# systemd-sleep(8): after a resume the clock is as old as the sleep was long, and pages are on the disk.
[ "$1" = post ] || exit 0
if command -v chronyc >/dev/null; then
    chronyc makestep >/dev/null 2>&1
else
    systemctl try-restart --no-block systemd-timesyncd.service
fi
# BuildKit's program and databases are read before the first build needs them, with the least priority. Nothing is forced
# out of the swap: that has frozen hosts.
exec systemd-run --quiet --no-block --slice={SLICE} --property=IOSchedulingClass=idle --property=Nice=19 \\
    /bin/sh -c 'find {read} -xdev -type f -exec cat {{}} + >/dev/null'
"""
