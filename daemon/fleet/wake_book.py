"""What one satellite's wake took and who waited for it, collected until its state changes. Pure bookkeeping.

The machine decides without it and never reads it: a wrong entry here can make a report wrong, not a wake.
"""

from bentpipe.daemon.model import NO_WAITS, SatelliteState, Waits, WakePhase


class WakeBook:
    """Fed by the satellite's owner; all times in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._began = 0.0
        self._ends: dict[WakePhase, float] = {}
        self._waits = NO_WAITS

    def began(self, now: float) -> None:
        """A wake begins."""
        self._began = now
        self._ends.clear()

    def phase_ended(self, phase: WakePhase, now: float) -> None:
        """A phase is over; if it is repeated, its last end counts."""
        self._ends[phase] = now

    def waited(self, seconds: float) -> None:
        """A held client waits no more, whatever it got."""
        self._waits = Waits(self._waits.clients + 1, self._waits.total_s + seconds, max(self._waits.longest_s, seconds))

    def take(
        self, before: SatelliteState, after: SatelliteState, now: float
    ) -> tuple[tuple[tuple[WakePhase, float], ...], Waits]:
        """Return the phases and the waits of the state that is left, and begin a new page.

        A phase that ended later than the next one began (a machine can be seen running before its start call is back)
        leaves nothing to the next: phases never add up to more than the wake.
        """
        phases: list[tuple[WakePhase, float]] = []
        if before in (SatelliteState.CREATING, SatelliteState.STARTING):
            if after is SatelliteState.OPERATIONAL:
                self.phase_ended(WakePhase.LISTEN, now)
            last = self._began
            for phase in WakePhase:
                if phase in self._ends:
                    phases.append((phase, max(0.0, self._ends[phase] - last)))
                    last = max(last, self._ends[phase])
        waits, self._waits = self._waits, NO_WAITS
        return tuple(phases), waits
