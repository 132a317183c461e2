"""A sleep under way as a value: when what happens in it, and what to do next. Pure.

`SatelliteMachine` asks it and acts. A `Descent` never changes: each step of it is another value.
"""

import dataclasses
import enum
import math

from bentpipe.daemon.fleet.machine.rules import CLOSE_QUIET_S
from bentpipe.daemon.fleet.machine.states import UP
from bentpipe.daemon.model import Machine, MachineState, SleepMode


class DescentStep(enum.Enum):
    """What to do now."""

    CALL_OFF = "somebody waits, and the stop call was not made: serve again"
    STOP = "make the stop call"
    CUT = "quiet connections have not ended by themselves: cut them"
    WAKE = "it is up again: follow it"
    FORCE = "it is stuck in stopping: cut it off"


@dataclasses.dataclass(frozen=True, slots=True)
class Descent:
    """Times are seconds of one monotonic clock."""

    mode: SleepMode | None
    """None if others brought it about."""
    pending: bool = False
    """The stop call is still to be made."""
    cut_at: float = math.inf
    """When quiet connections are cut that do not end by themselves."""
    dropped: bool = False
    """The machine has been seen going down since the call."""
    heed_by: float = math.inf
    """From when on a machine that still runs is taken as awake."""
    force_at: float = math.inf
    """From when on a machine that is still stopping may be cut off."""

    # -- how it begins -------------------------------------------------------------------------------------------------

    @classmethod
    def decided(cls, mode: SleepMode, now: float) -> "Descent":
        """We put it to sleep: quiet connections are asked to end, then the stop call is made."""
        return cls(mode, pending=True, cut_at=now + CLOSE_QUIET_S)

    @classmethod
    def by_others(cls, force_at: float) -> "Descent":
        """Others stop it."""
        return cls(None, dropped=True, force_at=force_at)

    @classmethod
    def forced(cls, force_at: float) -> "Descent":
        """We cut it off, since it was stuck in stopping."""
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
        """Nothing was stopped by us, but the machine goes down all the same."""
        return dataclasses.replace(self, pending=False, heed_by=now, force_at=min(self.force_at, force_at))

    def going_down(self, force_at: float) -> "Descent":
        """The machine was seen going down."""
        if self.dropped:
            return dataclasses.replace(self, pending=False)
        return dataclasses.replace(self, pending=False, dropped=True, force_at=force_at)

    # -- what follows --------------------------------------------------------------------------------------------------

    def before_call(self, now: float, *, waiting: bool, leases: int) -> DescentStep | None:
        """Say what to do while the stop call is still to be made; None: nothing yet."""
        if waiting:
            return DescentStep.CALL_OFF
        if not leases and self.mode is not None:
            return DescentStep.STOP
        return DescentStep.CUT if now >= self.cut_at else None

    def after_call(self, machine: Machine, now: float, *, waiting: bool) -> DescentStep | None:
        """Say what to do when the stop call is over, or was not ours; None: nothing yet."""
        if machine.state in UP:
            risen = self.dropped or machine.state is MachineState.PENDING or now >= self.heed_by
            return DescentStep.WAKE if risen else None
        stuck = machine.state is MachineState.STOPPING and now >= self._force_at(waiting=waiting)
        return DescentStep.FORCE if stuck else None

    def next_deadline(self, *, busy: bool, up: bool, waiting: bool) -> float:
        """When something is to be decided at the latest, if nothing happens before."""
        if self.pending:
            return self.cut_at
        if busy:
            return math.inf
        return self.heed_by if up else self._force_at(waiting=waiting)

    def _force_at(self, *, waiting: bool) -> float:
        """When to cut it off: what others stop is theirs, until somebody waits for it."""
        return self.force_at if self.mode is not None or waiting else math.inf
