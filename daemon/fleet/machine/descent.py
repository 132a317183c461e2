"""A sleep under way as a value: what has happened in it, and what to do next. Pure.

`SatelliteMachine` asks it and acts. A `Descent` never changes: each step makes another value.
"""

import dataclasses
import enum
import math

from bentpipe.daemon.fleet.machine.rules import CLOSE_QUIET_S
from bentpipe.daemon.fleet.machine.states import UP
from bentpipe.daemon.model import Machine, MachineState, SleepMode


class DescentStep(enum.Enum):
    """What the machine must do now."""

    CALL_OFF = "a client waits, and the stop call was not made: serve again"
    STOP = "make the stop call"
    CUT = "quiet connections have not ended by themselves: cut them"
    WAKE = "the machine is up again: the satellite follows"
    FORCE = "the machine is stuck in stopping: force the stop"


@dataclasses.dataclass(frozen=True, slots=True)
class Descent:
    """Times are seconds of one monotonic clock."""

    mode: SleepMode | None
    """None if others have begun the sleep."""
    pending: bool = False
    """Whether the stop call must still be made."""
    cut_at: float = math.inf
    """When quiet connections are cut if they have not ended by themselves."""
    dropped: bool = False
    """Whether the machine has been seen going down since the call."""
    heed_by: float = math.inf
    """From then on a machine that still runs counts as awake."""
    force_at: float = math.inf
    """From then on the stop of a machine that is still stopping may be forced."""
    was_ready: bool = True
    """Whether the satellite was operational when the sleep began. If not, it has to answer before it serves again."""
    restarts: bool = False
    """The machine is stopped for the clients that wait, to be started again: they do not call the stop off."""

    # -- how it begins -------------------------------------------------------------------------------------------------

    @classmethod
    def decided(cls, mode: SleepMode, now: float, *, was_ready: bool = True, restarts: bool = False) -> "Descent":
        """Begin a sleep of ours: quiet connections are asked to end, then the stop call is made."""
        ready = was_ready and not restarts
        return cls(mode, pending=True, cut_at=now + CLOSE_QUIET_S, was_ready=ready, restarts=restarts)

    @classmethod
    def by_others(cls, force_at: float) -> "Descent":
        """Others stop it."""
        return cls(None, dropped=True, force_at=force_at)

    @classmethod
    def forced(cls, force_at: float) -> "Descent":
        """Begin a forced stop, since the machine was stuck in stopping."""
        return cls(SleepMode.STOP, dropped=True, force_at=force_at)

    # -- what has happened ---------------------------------------------------------------------------------------------

    def called(self) -> "Descent":
        """The stop call is made now."""
        return dataclasses.replace(self, pending=False)

    def cut(self, now: float) -> "Descent":
        """Quiet connections are cut now."""
        return dataclasses.replace(self, cut_at=now + CLOSE_QUIET_S)

    def accepted(self, heed_by: float, force_at: float) -> "Descent":
        """The provider has accepted the stop call."""
        return dataclasses.replace(self, heed_by=heed_by, force_at=force_at)

    def called_off(self, now: float, force_at: float) -> "Descent":
        """Our stop has failed, but the machine goes down nevertheless."""
        return dataclasses.replace(self, pending=False, heed_by=now, force_at=min(self.force_at, force_at))

    def going_down(self, force_at: float) -> "Descent":
        """The machine was seen going down."""
        if self.dropped:
            return dataclasses.replace(self, pending=False)
        return dataclasses.replace(self, pending=False, dropped=True, force_at=force_at)

    # -- what follows --------------------------------------------------------------------------------------------------

    def before_call(self, now: float, *, waiting: bool, leases: int) -> DescentStep | None:
        """Return what to do before the stop call is made; None: nothing yet."""
        if waiting and not self.restarts:
            return DescentStep.CALL_OFF
        if not leases and self.mode is not None:
            return DescentStep.STOP
        return DescentStep.CUT if now >= self.cut_at else None

    def after_call(self, machine: Machine, now: float, *, waiting: bool) -> DescentStep | None:
        """Return what to do when the stop call is over, or was not ours; None: nothing yet."""
        if machine.state in UP:
            risen = self.dropped or machine.state is MachineState.PENDING or now >= self.heed_by
            return DescentStep.WAKE if risen else None
        stuck = machine.state is MachineState.STOPPING and now >= self._force_at(waiting=waiting)
        return DescentStep.FORCE if stuck else None

    def next_deadline(self, *, busy: bool, up: bool, waiting: bool) -> float:
        """When something must be decided at the latest, if nothing happens before."""
        if self.pending:
            return self.cut_at
        if busy:
            return math.inf
        return self.heed_by if up else self._force_at(waiting=waiting)

    def _force_at(self, *, waiting: bool) -> float:
        """When to force the stop. A stop by others is not forced until a client waits for the satellite."""
        return self.force_at if self.mode is not None or waiting else math.inf
