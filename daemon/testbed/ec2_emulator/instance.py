"""One emulated instance: its states, how long they take, and the ways in which it can misbehave. Pure: time is given.

           begin_start             ran                 begin_stop            slept
STOPPED ───────────────▶ PENDING ────────▶ RUNNING ─────────────────▶ STOPPING ────────▶ STOPPED
   ▲                        │ no capacity, no key           force: soon ──┘
   └────────────────────────┘
any state: begin_terminate ▶ SHUTTING_DOWN ▶ TERMINATED
"""

import dataclasses
import datetime
import enum
import secrets

DAY_S = 86_400.0
HIBERNATION_LIMIT_S = 60 * DAY_S
"""EC2 keeps a hibernated instance for 60 days. After that the emulated instance loses its memory."""


class InstanceState(enum.Enum):
    """The value is EC2's code and name (the low byte of InstanceState.Code)."""

    PENDING = (0, "pending")
    RUNNING = (16, "running")
    SHUTTING_DOWN = (32, "shutting-down")
    TERMINATED = (48, "terminated")
    STOPPING = (64, "stopping")
    STOPPED = (80, "stopped")

    @property
    def label(self) -> str:
        return self.value[1]


class OnStart(enum.Enum):
    """The outcome of a start."""

    RUN = "run"
    NO_CAPACITY = "no-capacity"
    """Accepted, then back to stopped: Server.InsufficientInstanceCapacity."""
    NO_KEY = "no-key"
    """Accepted, then back to stopped: Client.InternalError, as when kms:CreateGrant is missing."""
    HANG = "hang"
    """Pending for ever."""


class OnStop(enum.Enum):
    """The outcome of a stop."""

    STOP = "stop"
    HANG = "hang"
    """Stopping until it is forced."""


class OnHibernate(enum.Enum):
    """The outcome of a stop with Hibernate."""

    KEEP = "keep"
    REFUSE = "refuse"
    """UnsupportedHibernationConfiguration, even if the instance was launched for it."""
    TOO_EARLY = "too-early"
    """Refused as too early, however long it has run. `Timings.hibernatable_s` does that for young instances."""
    FALL_BACK = "fall-back"
    """Accepted, but a plain shutdown: the memory is lost, and StateReason says so."""
    HANG = "hang"
    """Stopping until it is forced."""
    COLD_BOOT = "cold-boot"
    """EC2 says that it hibernated, but the next start boots."""
    UNREACHABLE = "unreachable"
    """EC2 says that it runs after the next start, but nothing of it answers until it is stopped and started."""


@dataclasses.dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of the emulated clock; by default what was measured of EC2 (m7i.large, AL2023)."""

    pending_s: float = 16.5
    stopping_s: float = 20.0
    hibernating_s: float = 30.0
    forced_s: float = 5.0
    shutting_down_s: float = 20.0
    failing_s: float = 5.0
    """From pending to stopped if the start fails."""
    unseen_s: float = 0.0
    """For this long after RunInstances, DescribeInstances and the other calls do not know the id."""
    outdated_s: float = 0.0
    """For this long after a call that changed its state, DescribeInstances shows the state from before."""
    hibernatable_s: float = 120.0
    """From launch until a stop with Hibernate is accepted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reason:
    """EC2's StateReason."""

    code: str
    message: str


USER_SHUTDOWN = Reason("Client.UserInitiatedShutdown", "Client.UserInitiatedShutdown: User initiated shutdown")
USER_HIBERNATE = Reason("Client.UserInitiatedHibernate", "Client.UserInitiatedHibernate: User initiated hibernate")
INSIDE_SHUTDOWN = Reason(
    "Client.InstanceInitiatedShutdown", "Client.InstanceInitiatedShutdown: Instance initiated shutdown"
)
NO_CAPACITY = Reason(
    "Server.InsufficientInstanceCapacity",
    "Server.InsufficientInstanceCapacity: Insufficient capacity to satisfy instance request",
)
NO_KEY = Reason("Client.InternalError", "Client.InternalError: Client error on launch")


class MemoryStep(enum.Enum):
    """What happened to the instance's memory in the last step. The process behind it does the same."""

    BOOTED = "booted"
    RESUMED = "resumed"
    KEPT = "kept"
    LOST = "lost"


@dataclasses.dataclass(slots=True)
class Script:
    """How the instance behaves, until that is changed."""

    on_start: OnStart = OnStart.RUN
    on_stop: OnStop = OnStop.STOP
    on_hibernate: OnHibernate = OnHibernate.KEEP


@dataclasses.dataclass(slots=True)
class Instance:
    """One instance: its state, the next one, and when that comes."""

    instance_id: str
    instance_type: str
    private_ip: str
    hibernation: bool
    launched_at: float
    created_at: float
    image_id: str = "ami-0emulated"
    client_token: str = ""
    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    volume_tags: dict[str, str] = dataclasses.field(default_factory=dict)
    encrypted: bool = True
    http_tokens: str = "optional"
    user_data: str = ""
    subnet_id: str = "subnet-0emulated"
    zone: str = "eu-central-1a"
    spot_request: str = ""
    """The id of its Spot request; "" if it is on demand."""
    state: InstanceState = InstanceState.STOPPED
    reason: Reason | None = None
    transition_reason: str = ""
    public_ip: str | None = None
    boot_id: str = ""
    reachable: bool = True
    """Whether it answers on the network while it runs."""
    script: Script = dataclasses.field(default_factory=Script)
    next_private_ip: str | None = None
    """The address for the next start."""
    effective_starts: int = 0
    """Starts that led from STOPPED to PENDING."""
    slept_at: float | None = None
    outdated: "Instance | None" = None
    """The state that DescribeInstances shows until `outdated_until`."""
    outdated_until: float = 0.0
    _due: float | None = None
    _next: InstanceState = InstanceState.STOPPED
    _next_reason: Reason | None = None
    _keeps_memory: bool = False
    _forgets: bool = False

    @property
    def volume_id(self) -> str:
        """Its only disk."""
        return self.instance_id.replace("i-", "vol-")

    @property
    def due(self) -> float | None:
        """When the transition under way ends; None if there is none, or it never ends by itself."""
        return self._due

    def launch(self, now: float, timings: Timings, *, unfulfilled: bool = False) -> None:
        """Create it: PENDING for the first time. `unfulfilled`: it ends as TERMINATED, since there is no capacity."""
        self.state = InstanceState.PENDING
        self._plan_start(now, timings)
        if unfulfilled:
            self._due, self._next, self._next_reason = now + timings.failing_s, InstanceState.TERMINATED, NO_CAPACITY

    def view(self, now: float) -> "Instance":
        """The instance as DescribeInstances shows it."""
        return self.outdated if self.outdated is not None and now < self.outdated_until else self

    def begin_start(self, now: float, timings: Timings, *, unfulfilled: bool = False) -> None:
        """Begin a start. Only from STOPPED; the caller has checked that. `unfulfilled`: there is no capacity after all."""
        self._age(now, timings)
        self.effective_starts += 1
        self.launched_at = now
        self.state = InstanceState.PENDING
        self.reason = None
        self.transition_reason = ""
        if self.next_private_ip is not None:
            self.private_ip, self.next_private_ip = self.next_private_ip, None
        self._plan_start(now, timings)
        if unfulfilled:
            self._due, self._next, self._next_reason = now + timings.failing_s, InstanceState.STOPPED, NO_CAPACITY

    def begin_stop(self, now: float, timings: Timings, reason: Reason, *, force: bool) -> MemoryStep | None:
        """Begin a stop: from RUNNING or, if forced, from STOPPING. `reason` says whether memory is kept."""
        self._age(now, timings)
        was_hanging = self.state is InstanceState.STOPPING
        self.state = InstanceState.STOPPING
        self.transition_reason = f"User initiated ({_gmt(now)})" if reason is not INSIDE_SHUTDOWN else ""
        hibernate = reason is USER_HIBERNATE and not force
        outcome = self.script.on_hibernate if hibernate else None
        if outcome is OnHibernate.FALL_BACK:
            reason = USER_SHUTDOWN
        self.reason = reason
        self._keeps_memory = hibernate and outcome is not OnHibernate.FALL_BACK
        self._forgets = outcome is OnHibernate.COLD_BOOT
        self._next, self._next_reason = InstanceState.STOPPED, USER_SHUTDOWN if was_hanging else reason
        hangs = outcome is OnHibernate.HANG if hibernate else self.script.on_stop is OnStop.HANG
        if force:
            self._due = now + timings.forced_s
        elif hangs:
            self._due = None
        else:
            self._due = now + (timings.hibernating_s if self._keeps_memory else timings.stopping_s)
        return None if self._keeps_memory or was_hanging else MemoryStep.LOST

    def begin_terminate(self, now: float, timings: Timings) -> MemoryStep:
        self._age(now, timings)
        self.state = InstanceState.SHUTTING_DOWN
        self.reason = USER_SHUTDOWN
        self.transition_reason = f"User initiated ({_gmt(now)})"
        self._next, self._next_reason = InstanceState.TERMINATED, USER_SHUTDOWN
        self._due = now + timings.shutting_down_s
        self._keeps_memory = False
        return MemoryStep.LOST

    def settle(self, now: float) -> MemoryStep | None:
        """End the transition that is due. Returns what happened to the memory; None if nothing did."""
        if self._due is None or now < self._due:
            return None
        at, self._due = self._due, None
        self.state = self._next
        self.reason = self._next_reason
        match self._next:
            case InstanceState.RUNNING:
                resumed = self._keeps_memory and self.slept_at is not None and not self._forgets
                resumed = resumed and at - (self.slept_at or at) <= HIBERNATION_LIMIT_S
                self._keeps_memory = False
                self.reachable = not (resumed and self.script.on_hibernate is OnHibernate.UNREACHABLE)
                self.slept_at = None
                self.public_ip = f"198.51.100.{secrets.randbelow(254) + 1}"
                if not resumed:
                    self.boot_id = secrets.token_hex(8)
                if not self.reachable:
                    return None
                return MemoryStep.RESUMED if resumed else MemoryStep.BOOTED
            case InstanceState.STOPPED:
                self.public_ip = None
                if self.slept_at is None:  # otherwise it never came up, and what it had kept stays
                    self.slept_at = at
                return MemoryStep.KEPT if self._keeps_memory else MemoryStep.LOST
            case _:
                self.public_ip = None
                return MemoryStep.LOST

    def state_element(self) -> dict[str, str | int]:
        code, name = self.state.value
        return {"code": code, "name": name}

    def _age(self, now: float, timings: Timings) -> None:
        self.outdated = dataclasses.replace(self, outdated=None) if timings.outdated_s else None
        self.outdated_until = now + timings.outdated_s

    def _plan_start(self, now: float, timings: Timings) -> None:
        match self.script.on_start:
            case OnStart.RUN:
                self._due, self._next, self._next_reason = now + timings.pending_s, InstanceState.RUNNING, None
            case OnStart.NO_CAPACITY:
                self._due, self._next, self._next_reason = now + timings.failing_s, InstanceState.STOPPED, NO_CAPACITY
            case OnStart.NO_KEY:
                self._due, self._next, self._next_reason = now + timings.failing_s, InstanceState.STOPPED, NO_KEY
            case OnStart.HANG:
                self._due = None


def _gmt(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S GMT")
