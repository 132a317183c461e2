"""Small immutable values that pass between the daemon's parts. It must never do I/O, and computes nothing except sums."""

import dataclasses
import enum
from typing import NewType

MachineId = NewType("MachineId", str)


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class SatelliteKey:
    """Names one satellite: `org` and `name` as they are in the request's metadata."""

    org: str
    name: str

    def __str__(self) -> str:
        return f"{self.org}/{self.name}"


@dataclasses.dataclass(frozen=True, slots=True)
class Grant:
    """Satellites of one org: one by name, or all whose names begin with `prefix`."""

    org: str
    prefix: str
    exact: bool

    @classmethod
    def parse(cls, text: str) -> "Grant":
        """Read `org/name`, `org/prefix*` or `org/*`; the configuration has checked the form."""
        org, _, name = text.partition("/")
        return cls(org, name.removesuffix("*"), not name.endswith("*"))

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.org}/{self.prefix}" if self.exact else f"{self.org}/{self.prefix}*"

    def covers(self, key: SatelliteKey) -> bool:
        """Whether the satellite is among those granted."""
        return self.org == key.org and (key.name == self.prefix if self.exact else key.name.startswith(self.prefix))


RESERVE_ORG = "~reserve"
"""The org of the reserve's places, in the ledger and between hosts. No name begins with a tilde, so no org has it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where a satellite listens: an IP address or host name, and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class SatelliteState(enum.Enum):
    """State of a satellite, by the names of the public Compute API."""

    CREATING = "creating"
    OPERATIONAL = "operational"
    SLEEP = "sleep"
    STARTING = "starting"
    STOPPING = "stopping"
    UPDATING = "updating"
    OFFLINE = "offline"
    FAILED = "failed"
    DESTROYING = "destroying"
    UNKNOWN = "unknown"


class SleepMode(enum.Enum):
    """How a machine is put to sleep: with its memory kept, or without."""

    HIBERNATE = "hibernate"
    STOP = "stop"


class MachineState(enum.Enum):
    """State of a machine as a provider reports it: EC2's instance states, and hibernated apart from stopped."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    HIBERNATED = "hibernated"
    TERMINATED = "terminated"


class Fault(enum.Enum):
    """Why a machine that was started did not come up, if the provider knows it."""

    CAPACITY = "capacity"
    """No such machine is free now. Another attempt in some minutes may work."""
    PERMISSION = "permission"
    """It was forbidden (EC2: a KMS grant is missing). Nothing changes until somebody acts."""
    FOREIGN = "foreign"
    """The machine exists, and its tags name another satellite. Nothing changes until somebody acts."""
    OTHER = "other"


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """One look at a machine. `address` is None unless it is RUNNING; `reason` is the provider's own words, for the log."""

    machine_id: MachineId
    state: MachineState
    address: Address | None = None
    reason: str = ""
    fault: Fault | None = None
    """Set while it is STOPPED or TERMINATED because it could not come up."""
    can_hibernate: bool = True
    """Whether hibernating it is worth an attempt."""
    asleep_since: float | None = None
    """time.time() seconds at which it fell asleep, as far as the provider knows; None if it is not asleep."""
    hint: str = ""
    """The part of `reason` that clients of the satellite may read: one printable line, bounded by the provider."""
    other_left: bool = False
    """It could not come up for lack of capacity, and there is an alternative that has not lately lacked it. So it is worth
    launching or starting again at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class MachineTraits:
    """What machines of one kind are like: facts of the cloud that runs them, which its provider states. Times are seconds.

    There are no defaults: an author of a provider is to know, or to measure, each of them.
    """

    look_deadline_s: float
    """A look that has not come back by then is given up and made again: longer than the latest answer that is usual."""
    address_age_s: float
    """For so long after a satellite has proved that it is at its address, the address cannot be anybody else's."""
    appear_grace_s: float
    """A launched machine may not be found for so long; after that it is lost, and another one is launched."""
    start_grace_s: float
    """A look may show a machine as asleep for so long after its start was accepted."""
    stop_grace_s: float
    """A look may show a machine as running for so long after its stop was accepted; after that it is awake again."""
    stuck_stopping_s: float
    """A machine that is stopping for longer will not come to an end by itself: it is cut off, if we stopped it or a client
    waits for it."""
    too_early_retry_s: float
    """Between two attempts to put a machine to sleep that has not run for long enough (SleepTooEarly)."""
    hibernation_limit_s: float
    """So long at most a machine may stay hibernated; infinity if there is no such limit."""


class WakePhase(enum.Enum):
    """The parts of a wake, in their order."""

    START = "start"
    """Until the provider has accepted the start; repeated attempts included."""
    BOOT = "boot"
    """Until the machine runs and has an address."""
    LISTEN = "listen"
    """Until its port accepts connections."""


class Resume(enum.Enum):
    """Whether the machine still had its memory after a wake."""

    RESUMED = "resumed"
    COLD = "cold"
    """It has booted anew."""
    UNKNOWN = "unknown"
    """The satellite does not tell."""


@dataclasses.dataclass(frozen=True, slots=True)
class Waits:
    """Clients that were held for a satellite until they got it, were refused or left: how many, and how long they waited."""

    clients: int = 0
    total_s: float = 0.0
    longest_s: float = 0.0

    def __add__(self, other: "Waits") -> "Waits":
        return Waits(self.clients + other.clients, self.total_s + other.total_s, max(self.longest_s, other.longest_s))


NO_WAITS = Waits()


class BootPhase(enum.Enum):
    """The phases of a machine's boot that its responder measures, in their usual order."""

    KERNEL = "kernel"
    """Until systemd was started: the firmware's time does not count, and that of the RAM disk does."""
    CLOUD_INIT = "cloud-init"
    """Until the end of its last stage."""
    BUILDKIT = "buildkit"
    """Until buildkitd has answered."""
    FIRST_BUILD = "first build"
    """Until the first build was over."""


@dataclasses.dataclass(frozen=True, slots=True)
class Suspicion:
    """How much a satellite looks as if it mined instead of building: `score` is 0 to 100, `reasons` are for people."""

    score: int = 0
    reasons: tuple[str, ...] = ()

    def __or__(self, other: "Suspicion") -> "Suspicion":
        return other if other.score > self.score else self


NO_SUSPICION = Suspicion()


@dataclasses.dataclass(frozen=True, slots=True)
class Peaks:
    """The highest shares of any 10 s, in percent, in which some task waited for a resource (PSI)."""

    cpu_percent: float = 0.0
    memory_percent: float = 0.0
    io_percent: float = 0.0

    def __or__(self, other: "Peaks") -> "Peaks":
        return Peaks(
            max(self.cpu_percent, other.cpu_percent),
            max(self.memory_percent, other.memory_percent),
            max(self.io_percent, other.io_percent),
        )


NO_PEAKS = Peaks()


@dataclasses.dataclass(frozen=True, slots=True)
class StateFacts:
    """What is known of a satellite's stay in one state once that state has ended.

    The value passes whole from the satellite to the ledger and to the report. Each field has a default, which old ledgers
    give, and a row in `ledger.facts`, which says how it is written, read and merged.
    """

    phases: tuple[tuple[WakePhase, float], ...] = ()
    """Of a wake: how long each of its parts took, in seconds."""
    waits: Waits = NO_WAITS
    resume: Resume = Resume.UNKNOWN
    """Of OPERATIONAL: what the wake before it found. The machine is asked only when it is operational."""
    start_attempts: int = 0
    """Of a wake: how often the provider was asked to start or launch the machine."""
    peaks: Peaks = NO_PEAKS
    """Of OPERATIONAL, as the next two: what its responder has told."""
    kills: int = 0
    """Processes and steps of builds that were ended because memory ran out."""
    suspicion: Suspicion = NO_SUSPICION
    """The highest."""
    boot: tuple[tuple[BootPhase, float], ...] = ()
    """If the wake before was a boot: the machine's uptime at which each of its phases was over, in seconds."""


NO_FACTS = StateFacts()


@dataclasses.dataclass(frozen=True, slots=True)
class Transition:
    """A satellite's change of state: `at` is time.time() seconds, `cause` a short text for people.

    `who` is the principal whose client led to the new state, or "". `facts` are about the state that ended, `before`.
    """

    key: SatelliteKey
    before: SatelliteState
    after: SatelliteState
    at: float
    cause: str
    who: str = ""
    facts: StateFacts = NO_FACTS
