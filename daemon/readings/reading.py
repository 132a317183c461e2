"""One answer of a satellite's responder, checked: `read_status` makes a Reading of the message of `proto/responder.proto`.

The tenant of a satellite can be root on it, so the answer may be a lie, but never a burden: every text is bounded and
printable, every number is finite and in its range, every list has an end. A section whose last look is too old counts as
absent, since the responder itself may be well while what it looks at hangs.
"""

import dataclasses
import enum
import math
from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError

from bentpipe.daemon.model import BootPhase
from bentpipe.proto import responder_pb2 as pb
from bentpipe.proto.asking import printable

BOOT_ID_CHARS = 64
"""A boot id is a UUID of 36 characters; a longer value is not accepted."""
MAX_WORDS, MAX_REF_CHARS, MAX_STEP_CHARS = 200, 64, 200
"""Of texts that go to the log. BuildKit's references are 25 characters of base 36."""
MAX_KILLS, MAX_REFS = 16, 64
"""As in proto/responder.proto."""
MAX_COUNT = 1 << 53
"""Nothing measures larger numbers, and a float would not hold them."""
MAX_CPUS = 4096
MAX_BUILDS = 10_000
MAX_CONNECTIONS = 1 << 20
STALE_S = 30.0
"""A section is absent if its last look that succeeded is older."""


class ReadResult(enum.Enum):
    """What came of asking a responder."""

    OK = "ok"
    UNREACHABLE = "unreachable"
    """There was no connection, or TLS failed."""
    TIMEOUT = "timeout"
    """No answer before the deadline."""
    REFUSED = "refused"
    """It answered with an error, or not in gRPC."""
    MALFORMED = "malformed"
    """It answered with something that no responder says."""


class ReadingFailed(Exception):
    """There is no reading; `str()` says why, in words for the operator's log."""

    def __init__(self, result: ReadResult, words: str) -> None:
        super().__init__(words)
        self.result = result


class MalformedReading(ReadingFailed):
    """The answer is not one that a responder gives."""

    def __init__(self, words: str) -> None:
        super().__init__(ReadResult.MALFORMED, words)


@dataclasses.dataclass(frozen=True, slots=True)
class Stall:
    """PSI of one resource: percent of the last 10 s in which some task waited, and in which all that could run did."""

    some_percent: float
    full_percent: float


@dataclasses.dataclass(frozen=True, slots=True)
class Stalls:
    """PSI of one cgroup or machine; None where its kernel does not tell."""

    cpu: Stall | None
    memory: Stall | None
    io: Stall | None


@dataclasses.dataclass(frozen=True, slots=True)
class MachineReading:
    """The whole machine."""

    stalls: Stalls
    memory_total_bytes: int
    memory_available_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class BuildsReading:
    """The cgroup of the builds."""

    stalls: Stalls
    cpu_s: float
    """CPU time since the machine's boot."""
    cpu_limit: float | None
    """In CPUs: 1.9 is 95 % of two."""
    steps: int
    """Steps of builds that run now."""


@dataclasses.dataclass(frozen=True, slots=True)
class DiskReading:
    """The file system of BuildKit's cache; shares are between 0 and 1."""

    used: float
    inodes_used: float


class KillCause(enum.Enum):
    """What ended a step of a build."""

    OOM = "oom"
    """The kernel's OOM killer."""
    PRESSURE = "pressure"
    """The responder, since the builds stalled on memory and the kernel ended nothing."""
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True, slots=True)
class KilledStep:
    """A step that was ended."""

    number: int
    """Counts from 1 since the responder started."""
    cause: KillCause
    step: str
    memory_bytes: int | None
    build_refs: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class KillsReading:
    """What was killed since the machine's boot, except `pressure`, which counts since the responder's start."""

    machine_oom: int
    builds_oom: int
    pressure: int
    recent: tuple[KilledStep, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class NetworkReading:
    """TCP connections that builds and buildkitd have opened to other machines, by age."""

    young: int
    """Under 10 minutes."""
    old: int
    """Older."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """One answer. A look is None if the responder has none that is young enough."""

    boot_id: str
    uptime_s: float
    responder_started_s: float
    """The uptime at which the responder has started."""
    cpus: int
    slow_turns: int
    machine: MachineReading | None
    builds: BuildsReading | None
    running: int | None
    """Builds that BuildKit says it runs."""
    oldest_build_s: float
    """For how long the oldest of them has run; 0 if none does."""
    buildkit_error: str
    """Why BuildKit could not be asked; empty if it could."""
    disk: DiskReading | None
    kills: KillsReading | None
    network: NetworkReading | None
    boot: tuple[tuple[BootPhase, float], ...]
    """The uptime at which each phase of the machine's boot was over, as far as it is known, in seconds."""

    @property
    def running_builds(self) -> int | None:
        """How many builds run; None if nobody there knows. A step that runs is a build, whatever BuildKit says."""
        if not self.running and self.builds is not None and self.builds.steps:
            return 1
        return self.running


def read_status(message: bytes) -> Reading:
    """Decode and check an answer. Raises MalformedReading."""
    status = pb.Status()
    try:
        status.ParseFromString(message)
    except DecodeError as exc:
        raise MalformedReading("it is not a Status of bentpipe.responder.v1") from exc
    boot_id = status.boot_id
    if not boot_id or len(boot_id) > BOOT_ID_CHARS or not boot_id.isascii() or not boot_id.isprintable():
        raise MalformedReading("boot_id is missing or malformed")
    return Reading(
        boot_id=boot_id,
        uptime_s=_count(status.uptime_ms, "uptime_ms") / 1e3,
        responder_started_s=_count(status.started_at_uptime_ms, "started_at_uptime_ms") / 1e3,
        cpus=_count(status.cpus, "cpus", MAX_CPUS),
        slow_turns=_count(status.slow_turns, "slow_turns"),
        machine=_machine(status.machine) if _is_young(status.machine.look) else None,
        builds=_builds(status.builds) if _is_young(status.builds.look) else None,
        running=(
            _count(status.buildkit.running_count, "running_count", MAX_BUILDS)
            if _is_young(status.buildkit.look)
            else None
        ),
        oldest_build_s=max((_count(each.age_ms, "age_ms") for each in status.buildkit.running[:MAX_REFS]), default=0)
        / 1e3,
        buildkit_error=printable(status.buildkit.look.error, MAX_WORDS),
        disk=_disk(status.disk) if _is_young(status.disk.look) else None,
        kills=_kills(status.kills) if _is_young(status.kills.look) else None,
        network=_network(status.network) if _is_young(status.network.look) else None,
        boot=_boot(status.boot),
    )


def _is_young(look: pb.Look) -> bool:
    return look.HasField("age_ms") and look.age_ms <= STALE_S * 1e3


def _machine(section: pb.Machine) -> MachineReading:
    return MachineReading(
        _stalls(section.pressure),
        _count(section.memory_total_bytes, "memory_total_bytes"),
        _count(section.memory_available_bytes, "memory_available_bytes"),
    )


def _builds(section: pb.Builds) -> BuildsReading:
    limit_percent = section.cpu_limit_percent if section.HasField("cpu_limit_percent") else None
    return BuildsReading(
        _stalls(section.pressure),
        _count(section.cpu_usage_us, "cpu_usage_us") / 1e6,
        None if limit_percent is None else _count(limit_percent, "cpu_limit_percent") / 100,
        _count(section.steps, "steps", MAX_BUILDS),
    )


def _stalls(section: pb.Pressures) -> Stalls:
    def stall(name: str, found: pb.Pressure) -> Stall | None:
        if not section.HasField(name):
            return None
        return Stall(_percent(found.some.avg10_percent), _percent(found.full.avg10_percent))

    return Stalls(stall("cpu", section.cpu), stall("memory", section.memory), stall("io", section.io))


def _disk(section: pb.Disk) -> DiskReading:
    return DiskReading(
        _used(section.available_bytes, section.total_bytes), _used(section.available_inodes, section.total_inodes)
    )


def _used(available: int, total: int) -> float:
    """The share that is used; 0 if there is no total, as on file systems without inodes."""
    return 1 - min(available, total) / total if total else 0.0


CAUSES = {pb.Kill.OOM: KillCause.OOM, pb.Kill.PRESSURE: KillCause.PRESSURE}


def _kills(section: pb.Kills) -> KillsReading:
    recent = [
        KilledStep(
            _count(each.number, "number"),
            CAUSES.get(each.cause, KillCause.UNKNOWN),
            printable(each.step, MAX_STEP_CHARS),
            _count(each.memory_bytes, "memory_bytes") if each.HasField("memory_bytes") else None,
            _refs(each.build_refs),
        )
        for each in section.recent[-MAX_KILLS:]
    ]
    return KillsReading(
        _count(section.machine_oom_kills, "machine_oom_kills"),
        _count(section.builds_oom_kills, "builds_oom_kills"),
        _count(section.pressure_kills, "pressure_kills"),
        tuple(recent),
    )


def _network(section: pb.Network) -> NetworkReading:
    young, old = section.under_1m + section.under_10m, section.under_1h + section.over_1h
    return NetworkReading(min(young, MAX_CONNECTIONS), min(old, MAX_CONNECTIONS))


PHASES = {
    "init_ms": BootPhase.KERNEL,
    "cloud_init_ms": BootPhase.CLOUD_INIT,
    "buildkit_ms": BootPhase.BUILDKIT,
    "first_build_ms": BootPhase.FIRST_BUILD,
}


def _boot(section: pb.Boot) -> tuple[tuple[BootPhase, float], ...]:
    found = [(phase, getattr(section, field), field) for field, phase in PHASES.items() if section.HasField(field)]
    return tuple((phase, _count(value, field) / 1e3) for phase, value, field in found)


def _refs(refs: Iterable[str]) -> tuple[str, ...]:
    found: Sequence[str] = list(refs)[:MAX_REFS]
    return tuple(printable(ref, MAX_REF_CHARS) for ref in found)


def _count(value: int, field: str, most: int = MAX_COUNT) -> int:
    if value > most:
        raise MalformedReading(f"{field} is {value}, over {most}")
    return value


def _percent(value: float) -> float:
    if not math.isfinite(value) or not 0 <= value <= 100:
        raise MalformedReading(f"{value} is not a share in percent")
    return value
