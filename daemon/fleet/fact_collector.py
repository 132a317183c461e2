"""Collects the facts of a satellite's state until the state ends: what a wake took, and who waited for it. Pure.

It reads what goes into the satellite's machine and what comes out. The machine decides without it and never reads it: a
wrong entry here can make a report wrong, not a wake.
"""

from collections.abc import Sequence

from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.model import NO_FACTS, Resume, SatelliteState, StateFacts, Suspicion, Waits, WakePhase
from bentpipe.daemon.readings.changes import Kills
from bentpipe.daemon.readings.condition import peaks_of
from bentpipe.daemon.readings.reading import Reading


class FactCollector:
    """The satellite's owner calls it; all times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._began = 0.0
        self._ends: dict[WakePhase, float] = {}
        self._forget()

    def _forget(self) -> None:
        self._waits, self._resume = NO_FACTS.waits, NO_FACTS.resume
        self._start_attempts = NO_FACTS.start_attempts
        self._peaks, self._kills, self._suspicion = NO_FACTS.peaks, NO_FACTS.kills, NO_FACTS.suspicion
        self._boot = NO_FACTS.boot

    def note_input(self, event: msg.Input, now: float) -> None:
        """The machine is about to handle `event`."""
        if isinstance(event, msg.StartDone) and event.error is None:
            self.phase_ended(WakePhase.START, now)

    def note_actions(self, actions: Sequence[msg.Action], now: float) -> None:
        """The machine's step asked for `actions`; a change of state among them has been taken already."""
        for action in actions:
            match action:
                case msg.Start() | msg.Launch():
                    self._start_attempts += 1
                case msg.Probe():
                    self.phase_ended(WakePhase.BOOT, now)
                case _:
                    pass

    def began(self, now: float) -> None:
        """A wake begins."""
        self._began = now
        self._ends.clear()

    def phase_ended(self, phase: WakePhase, now: float) -> None:
        """A phase is over; if it is repeated, its last end counts."""
        self._ends[phase] = now

    def waited(self, seconds: float) -> None:
        """A held client waits no more, whatever it got."""
        self._waits += Waits(1, seconds, seconds)

    def resumed(self, resume: Resume) -> None:
        """The machine that was woken has been asked whether it kept its memory."""
        self._resume = resume

    def read(self, reading: Reading, kills: Kills, suspicion: Suspicion) -> None:
        """Its responder was read."""
        self._peaks |= peaks_of(reading)
        self._kills += kills.oom + kills.pressure
        self._suspicion |= suspicion
        self._boot = reading.boot

    def take(self, before: SatelliteState, after: SatelliteState, now: float) -> StateFacts:
        """Return the facts of `before`, which ends now, and forget them.

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
        facts = StateFacts(
            *(tuple(phases), self._waits, self._resume, self._start_attempts),
            peaks=self._peaks,
            kills=self._kills,
            suspicion=self._suspicion,
            boot=self._boot if self._resume is Resume.COLD else NO_FACTS.boot,
        )
        self._forget()
        return facts
