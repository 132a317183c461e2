"""The life of one satellite as a pure state machine: inputs and the time go in, actions come out.

    UNKNOWN ─▶ SLEEP ─▶ STARTING ─▶ OPERATIONAL ─▶ STOPPING ─▶ SLEEP
                 ▲          │ failed     │ died         │ somebody came
                 └──────────┴────────────┘              └──▶ STARTING
    and from anywhere: the machine is gone ─▶ FAILED ─▶ (it is seen again) ─▶ any of the above

Rules. At most one provider call is under way (`busy`). A lease is granted in OPERATIONAL only. Sleep is decided in the
same step that moves to STOPPING, with no lease and no waiter. A wake outlives its clients. A failed wake is told to all
waiters at once and remembered until `retry_at`, so that a herd does not hammer a broken machine. The provider is the
truth about the machine: what others do to it arrives as `Seen` like everything else.
"""

import dataclasses
import enum
from typing import NewType

from bentpipe.daemon.errors import (
    BentpipeError,
    Draining,
    LimitReached,
    ProviderError,
    ProviderRetryable,
    SatelliteUnusable,
    SleepModeRefused,
    WakeFailed,
)
from bentpipe.daemon.model import Address, Machine, MachineState, SatelliteState, SleepMode

WaiterId = NewType("WaiterId", int)

S = SatelliteState
M = MachineState

TRANSITIONS: dict[SatelliteState, frozenset[SatelliteState]] = {
    S.UNKNOWN: frozenset({S.SLEEP, S.STARTING, S.STOPPING, S.FAILED}),
    S.SLEEP: frozenset({S.STARTING, S.STOPPING, S.FAILED}),
    S.STARTING: frozenset({S.OPERATIONAL, S.SLEEP, S.STOPPING, S.FAILED}),
    S.OPERATIONAL: frozenset({S.STOPPING, S.SLEEP, S.STARTING, S.FAILED}),
    S.STOPPING: frozenset({S.SLEEP, S.STARTING, S.FAILED}),
    S.FAILED: frozenset({S.SLEEP, S.STARTING, S.STOPPING}),
}
"""Every legal change of state; `_move` refuses any other."""

ASLEEP = (M.STOPPED, M.HIBERNATED)
RETRY_START_S = 1.0
"""Between attempts to start while the provider says that it may work a moment later."""


class SleepReason(enum.Enum):
    """Why the satellite is put to sleep."""

    IDLE = "idle"


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """The satellite's section of the configuration, as the machine needs it; all times in seconds."""

    sleep_mode: SleepMode
    sleep_after_s: float
    min_awake_s: float
    wake_deadline_s: float
    hold_limit_s: float
    retry_after_s: float
    max_waiters: int


# -- inputs ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Arrived:
    """Somebody wants the satellite."""

    waiter: WaiterId


@dataclasses.dataclass(frozen=True, slots=True)
class Departed:
    """A waiter left before it was granted."""

    waiter: WaiterId


@dataclasses.dataclass(frozen=True, slots=True)
class Released:
    """A lease ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """The provider's newest look at the machine."""

    machine: Machine


@dataclasses.dataclass(frozen=True, slots=True)
class StartDone:
    """The start call came back."""

    error: ProviderError | None


@dataclasses.dataclass(frozen=True, slots=True)
class StopDone:
    """The stop call came back."""

    error: ProviderError | None


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """The machine's port listens."""


@dataclasses.dataclass(frozen=True, slots=True)
class Unreachable:
    """A client's connection could not be dialled though the satellite is operational."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Drain:
    """The daemon takes nobody in any more."""


Input = Arrived | Departed | Released | Seen | StartDone | StopDone | Ready | Unreachable | Tick | Drain

# -- actions -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """Call the provider's start."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stop:
    """Call the provider's stop."""

    mode: SleepMode


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """Begin to look whether the port listens; ends a probe that is under way."""

    address: Address


@dataclasses.dataclass(frozen=True, slots=True)
class EndProbe:
    """Look no more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Grant:
    """The waiter has a lease."""

    waiter: WaiterId
    address: Address


@dataclasses.dataclass(frozen=True, slots=True)
class Fail:
    """The waiter gets the error."""

    waiter: WaiterId
    error: BentpipeError


@dataclasses.dataclass(frozen=True, slots=True)
class Moved:
    """The state has changed: for logs and books."""

    before: SatelliteState
    after: SatelliteState
    cause: str


Action = Start | Stop | Probe | EndProbe | Grant | Fail | Moved


class SatelliteMachine:
    """State of one satellite. `handle` is the only way to change it; times are seconds of one monotonic clock."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._actions: list[Action] = []
        self.state = S.UNKNOWN
        self.machine: Machine | None = None
        self.busy = False
        self.waiters: dict[WaiterId, float] = {}
        self.leases = 0
        self.wakes = 0
        self.error: BentpipeError | None = None
        self._retry_at = 0.0
        self._wake_by = 0.0
        self._start_at = 0.0
        self._came_up = False
        self._probing = False
        self._idle_since = 0.0
        self._awake_since = 0.0
        self._mode = rules.sleep_mode
        self._draining = False

    def next_deadline(self) -> float | None:
        """When to send the next Tick at the latest."""
        times = list(self.waiters.values())
        if self.state is S.STARTING:
            times.append(self._wake_by)
            if not self.busy and self.machine is not None and self.machine.state in ASLEEP:
                times.append(self._start_at)
        if self._may_sleep():
            times.append(self._sleep_at())
        return min(times, default=None)

    def handle(self, event: Input, now: float) -> list[Action]:
        """Take one input. Returns what to do, in order."""
        self._actions = []
        match event:
            case Arrived(waiter):
                self._arrived(waiter, now)
            case Departed(waiter):
                self.waiters.pop(waiter, None)
            case Released():
                self.leases -= 1
                self._idle_since = now
            case Seen(machine):
                self._seen(machine, now)
            case StartDone(error):
                self.busy = False
                self._start_done(error, now)
            case StopDone(error):
                self.busy = False
                self._stop_done(error, now)
            case Ready():
                self._ready(now)
            case Unreachable():
                if self.state is S.OPERATIONAL:
                    self._begin_wake("could not be reached", now)
            case Tick():
                pass
            case Drain():
                self._draining = True
                self._fail_all(Draining("the edge host is shutting down; try again in a moment"))
        self._expire(now)
        self._progress(now)
        return self._actions

    # -- clients -----------------------------------------------------------------------------------------------------

    def _arrived(self, waiter: WaiterId, now: float) -> None:
        error: BentpipeError | None = None
        if self._draining:
            error = Draining("the edge host is shutting down; try again in a moment")
        elif self.state is S.FAILED:
            reason = self.machine.reason if self.machine else ""
            error = SatelliteUnusable(f"the satellite's machine is gone {reason}".rstrip())
        elif self.state is not S.OPERATIONAL and self.error is not None and now < self._retry_at:
            error = self.error
        elif self.state is not S.OPERATIONAL and len(self.waiters) >= self._rules.max_waiters:
            error = LimitReached(f"{len(self.waiters)} clients wait for this satellite already")
        if error is not None:
            self._actions.append(Fail(waiter, error))
        elif self.state is S.OPERATIONAL:
            self._grant(waiter)
        else:
            self.waiters[waiter] = now + self._rules.hold_limit_s

    def _grant(self, waiter: WaiterId) -> None:
        if self.machine is None or self.machine.address is None:
            raise AssertionError("operational without an address")
        self.leases += 1
        self._actions.append(Grant(waiter, self.machine.address))

    def _fail_all(self, error: BentpipeError) -> None:
        self._actions += [Fail(waiter, error) for waiter in self.waiters]
        self.waiters.clear()

    def _expire(self, now: float) -> None:
        for waiter in [waiter for waiter, until in self.waiters.items() if until <= now]:
            del self.waiters[waiter]
            held = f"the satellite was not ready after {self._rules.hold_limit_s:g} s"
            self._actions.append(Fail(waiter, WakeFailed(held)))

    # -- the machine -------------------------------------------------------------------------------------------------

    def _seen(self, machine: Machine, now: float) -> None:
        before, self.machine = self.machine, machine
        moved_away = before is not None and before.address != machine.address
        if self._probing and (machine.state is not M.RUNNING or moved_away):
            self._end_probe()
        if machine.state in (M.PENDING, M.RUNNING):
            self._came_up = True
        match machine.state:
            case M.TERMINATED:
                if self.state is not S.FAILED:
                    self._move(S.FAILED, machine.reason or "terminated")
                self._fail_all(SatelliteUnusable(f"the satellite's machine is gone {machine.reason}".rstrip()))
            case M.STOPPING:
                if self.state is not S.STOPPING:
                    self._move(S.STOPPING, machine.reason or "stopped by others")
            case M.STOPPED | M.HIBERNATED:
                if self.state is S.STARTING and self._came_up:
                    self._wake_failed(WakeFailed(f"the satellite stopped while starting: {machine.reason}"), now)
                elif self.state not in (S.STARTING, S.SLEEP):
                    self._move(S.SLEEP, machine.reason or machine.state.value)
            case M.PENDING | M.RUNNING:
                # While our own stop call is under way the machine is seen running for a little longer.
                if self.state in (S.UNKNOWN, S.SLEEP, S.FAILED):
                    self._begin_wake("started by others", now)
                elif self.state is S.OPERATIONAL and (machine.state is M.PENDING or moved_away):
                    self._begin_wake("restarted by others", now)

    def _begin_wake(self, cause: str, now: float) -> None:
        self._wake_by = now + self._rules.wake_deadline_s
        self._start_at = now
        self._came_up = self.machine is not None and self.machine.state in (M.PENDING, M.RUNNING)
        self._move(S.STARTING, cause)

    def _wake_failed(self, error: BentpipeError, now: float) -> None:
        self.error = error
        self._retry_at = now + self._rules.retry_after_s
        self._end_probe()
        self._move(S.SLEEP, f"wake failed: {error}")
        self._fail_all(error)

    def _start_done(self, error: ProviderError | None, now: float) -> None:
        if self.state is not S.STARTING or error is None:
            return
        if isinstance(error, ProviderRetryable):
            self._start_at = now + RETRY_START_S
        else:
            self._wake_failed(error, now)

    def _stop_done(self, error: ProviderError | None, now: float) -> None:
        if error is None or self.state is not S.STOPPING:
            return
        if isinstance(error, SleepModeRefused) and self._mode is SleepMode.HIBERNATE:
            self._mode = SleepMode.STOP
            if not self.waiters and not self._draining:
                self._stop()
                return
        self._idle_since = now
        self._begin_wake(f"sleep refused: {error}", now)

    def _ready(self, now: float) -> None:
        if self.state is not S.STARTING or not self._probing:
            return
        self._probing = False
        self.error = None
        self._idle_since = self._awake_since = now
        self._move(S.OPERATIONAL, "ready")
        for waiter in list(self.waiters):
            self._grant(waiter)
        self.waiters.clear()

    # -- what follows from the state ---------------------------------------------------------------------------------

    def _progress(self, now: float) -> None:
        if self.state is S.SLEEP and self.waiters:
            self.wakes += 1
            self._begin_wake("a client came", now)
        if self.state is S.STARTING and self.machine is not None:
            if now >= self._wake_by:
                waited = f"not ready after {self._rules.wake_deadline_s:g} s"
                self._wake_failed(WakeFailed(f"the satellite was {waited}"), now)
            elif self.machine.state in ASLEEP and not self.busy and not self._came_up and now >= self._start_at:
                self.busy = True
                self._start_at = self._wake_by
                self._actions.append(Start())
            elif self.machine.state is M.RUNNING and self.machine.address is not None and not self._probing:
                self._probing = True
                self._actions.append(Probe(self.machine.address))
        if self._may_sleep() and now >= self._sleep_at():
            self._move(S.STOPPING, SleepReason.IDLE.value)
            self._stop()

    def _may_sleep(self) -> bool:
        return self.state is S.OPERATIONAL and not self.leases and not self.waiters and not self.busy

    def _sleep_at(self) -> float:
        return max(self._idle_since + self._rules.sleep_after_s, self._awake_since + self._rules.min_awake_s)

    def _stop(self) -> None:
        self.busy = True
        self._actions.append(Stop(self._mode))

    def _end_probe(self) -> None:
        if self._probing:
            self._probing = False
            self._actions.append(EndProbe())

    def _move(self, after: SatelliteState, cause: str) -> None:
        if after not in TRANSITIONS[self.state]:
            raise AssertionError(f"{self.state.name} to {after.name}: {cause}")
        self._actions.append(Moved(self.state, after, cause))
        if after is not S.STARTING:
            self._end_probe()
        self.state = after
