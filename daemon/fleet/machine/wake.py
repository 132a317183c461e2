"""A wake as a value: what has happened in it, what to do next, and what it means if that fails. Pure.

`SatelliteMachine` asks it and acts. A `Wake` never changes: each step makes another value.
"""

import dataclasses
import enum
import math

from bentpipe.daemon.errors import BentpipeError, WakeFailed
from bentpipe.daemon.fleet.machine.failures import FAULTS, Consequence
from bentpipe.daemon.fleet.machine.rules import STOPS_FORGIVEN
from bentpipe.daemon.fleet.machine.states import ASLEEP, UP
from bentpipe.daemon.fleet.machine.words import about
from bentpipe.daemon.model import Machine, MachineState

NEVER_APPEARED = "it never appeared"


class WakeCall(enum.Enum):
    """The provider's call that a wake needs now."""

    START = "start"
    LAUNCH = "launch"


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """A wake has failed: what follows from it, and what the waiting clients are told."""

    consequence: Consequence
    error: BentpipeError
    lost: bool = False
    """The machine that was launched does not exist, so the next launch makes another one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wake:
    """Times are seconds of one monotonic clock."""

    began: float
    by: float
    """The wake deadline."""
    call_at: float
    """When to call start or launch; infinity once it was called, unless the call must be repeated."""
    came_up: bool
    """Whether the machine was seen up since the wake began."""
    measured: bool
    """Whether it began with a sleeping machine, so that its duration says something about other wakes."""
    settle_by: float = 0.0
    """Until then an accepted start or launch may have no visible effect; 0 if none was accepted."""
    rounds: int = 0
    """How many wake deadlines have passed."""
    from_memory: bool = False
    """Whether the machine was hibernated, so that this wake is a resume."""

    @classmethod
    def begin(cls, machine: Machine | None, now: float, deadline_s: float, *, from_memory: bool = False) -> "Wake":
        """Make a wake that begins now, with the machine as it was last seen."""
        state = None if machine is None else machine.state
        return cls(
            *(now, now + deadline_s),
            call_at=now,
            came_up=state in UP,
            measured=state in ASLEEP,
            from_memory=from_memory,
        )

    # -- what has happened ---------------------------------------------------------------------------------------------

    def called(self) -> "Wake":
        """Start or launch is called now."""
        return dataclasses.replace(self, call_at=math.inf)

    def call_accepted(self, settle_by: float) -> "Wake":
        """The provider has accepted the call."""
        return dataclasses.replace(self, settle_by=settle_by)

    def call_again(self, at: float) -> "Wake":
        """The call has failed, and will be repeated at `at`."""
        return dataclasses.replace(self, call_at=at)

    def seen(self, *, up: bool) -> "Wake":
        """The machine was seen up, or cannot be seen any more."""
        return dataclasses.replace(self, came_up=up)

    def has_lost(self, machine: Machine, *, busy: bool) -> bool:
        """Whether the launched machine is gone for lack of capacity, so that another is launched. `busy`: it already is."""
        return machine.other_left and not busy and (self.came_up or self.is_unseen)

    def vanished(self, machine: Machine, now: float, *, busy: bool) -> "Wake":
        """The machine that was launched is gone, or not visible yet."""
        return self.tried_otherwise(now) if self.has_lost(machine, busy=busy) else self.seen(up=False)

    def tried_otherwise(self, now: float) -> "Wake":
        """It lacked capacity, and is called again at once: there is an alternative."""
        return dataclasses.replace(self, call_at=now, came_up=False, settle_by=0.0)

    # -- what follows --------------------------------------------------------------------------------------------------

    @property
    def is_unseen(self) -> bool:
        """Whether a start or launch was accepted that no look has shown yet."""
        return self.settle_by > 0 and not self.came_up

    def next_call(self, machine: Machine, now: float, *, creating: bool) -> WakeCall | Failed | None:
        """Return what to do with the machine as it is now, while no call is under way; None: nothing, or not yet.

        `creating`: the satellite is CREATING. If a machine exists, it is then started at once.
        """
        if self.came_up:
            return None
        due = now >= self.call_at
        if machine.state is MachineState.TERMINATED:
            if self.settle_by and now >= self.settle_by:
                return never_appeared(machine)
            return WakeCall.LAUNCH if due else None
        return WakeCall.START if machine.state in ASLEEP and (due or creating) else None

    def overdue(
        self, machine: Machine, error: BentpipeError, now: float, *, busy: bool, deadline_s: float
    ) -> "Failed | Wake":
        """The wake deadline has passed: the wake has failed, or goes on. A machine that may still come up is not called
        asleep.

        `error` says that the satellite was not ready in time, `busy` that a call is under way.
        """
        is_up = machine.state in UP
        if not busy and not is_up and now >= self.settle_by:
            if machine.state is MachineState.TERMINATED and self.settle_by:
                return never_appeared(machine)
            return Failed(Consequence.FAILED, error)
        by = now + deadline_s if busy or is_up else self.settle_by
        return dataclasses.replace(self, by=by, rounds=self.rounds + 1)

    def next_deadline(self, *, busy: bool, creating: bool) -> float:
        """When something must be decided at the latest, if nothing happens before."""
        if busy or self.came_up:
            return self.by
        settle_by = self.settle_by if creating and self.settle_by else math.inf
        return min(self.by, self.call_at, settle_by)


def lost(machine: Machine) -> Failed:
    """The machine was launched, and does not exist."""
    if not machine.reason:
        machine = dataclasses.replace(machine, reason=NEVER_APPEARED, hint=NEVER_APPEARED)
    return Failed(FAULTS[machine.fault], about(WakeFailed, "the satellite could not be created", machine), lost=True)


def never_appeared(machine: Machine) -> Failed:
    """The machine was launched, and has not been visible for too long."""
    return lost(dataclasses.replace(machine, reason=""))


def came_down(machine: Machine, stops: int) -> Failed | None:
    """The machine was up, and is down before it was ready. None if that is not the failure of a start.

    If this wake has not started the machine, or if others have stopped it, it is merely asleep, and the next start serves
    the waiting clients. `stops` counts how often others have stopped it after a start of ours since it was last ready.
    """
    if machine.fault is None and stops <= STOPS_FORGIVEN:
        return None
    return Failed(FAULTS[machine.fault], about(WakeFailed, "the satellite stopped while starting", machine))


def stopped_too_often(machine: Machine, stops: int) -> Failed | None:
    """Others have stopped the machine while it was starting, `stops` times. None if that is still forgiven."""
    if stops <= STOPS_FORGIVEN:
        return None
    words = f"the satellite was stopped {stops} times while starting"
    return Failed(Consequence.FAILED, about(WakeFailed, words, machine))
