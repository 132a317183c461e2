"""What the metrics tell of connections that have ended: histograms, and sums by satellite and org if asked for."""

import dataclasses
import math

from bentpipe.daemon.model import BootPhase, SatelliteState, Transition, WakePhase
from bentpipe.daemon.records.histograms import (
    DIAL_BOUNDS_S,
    GREETING_BOUNDS_S,
    LIFE_BOUNDS_S,
    WAIT_BOUNDS_S,
    Histogram,
    LabelledHistogram,
)
from bentpipe.daemon.records.record import Phase, Record

NAMES_MOST = 500
"""Satellites, or orgs, that are told apart. Each is six series, and a scrape of 500 takes some 10 ms."""
OTHERS = "other"
"""All further ones together; no org and no satellite has this name, since a satellite's has a slash and an org is known."""


@dataclasses.dataclass(slots=True)
class Sums:
    """What connections of one satellite, or one org, add up to."""

    connections: int = 0
    refused: int = 0
    held: int = 0
    held_s: float = 0.0
    up_bytes: int = 0
    down_bytes: int = 0

    def add(self, record: Record) -> None:
        """Count a connection that has ended."""
        self.connections += 1
        self.refused += record.end.code == "refused"
        self.up_bytes += record.up_bytes
        self.down_bytes += record.down_bytes
        if not math.isnan(record.held_s):
            self.held += 1
            self.held_s += record.held_s


class SumsByName:
    """Sums of at most NAMES_MOST names, and of all others together."""

    def __init__(self) -> None:
        self.of: dict[str, Sums] = {}

    def add(self, name: str, record: Record) -> None:
        """Count a connection that has ended."""
        if name not in self.of and len(self.of) >= NAMES_MOST:
            name = OTHERS
        self.of.setdefault(name, Sums()).add(record)


class Measures:
    """A sink of the book. Only records of admitted clients count by name: a stranger can ask for any name."""

    def __init__(self, *, per_satellite: bool = False, per_org: bool = False) -> None:
        self.greeting = Histogram(GREETING_BOUNDS_S)
        self.hold = Histogram(WAIT_BOUNDS_S)
        self.dial = Histogram(DIAL_BOUNDS_S)
        self.life = Histogram(LIFE_BOUNDS_S)
        self.wake = LabelledHistogram(WAIT_BOUNDS_S, [phase.value for phase in WakePhase])
        self.boot = LabelledHistogram(WAIT_BOUNDS_S, [phase.value for phase in BootPhase])
        self.satellites: SumsByName | None = None
        self.orgs: SumsByName | None = None
        self.follow(per_satellite=per_satellite, per_org=per_org)

    def follow(self, *, per_satellite: bool, per_org: bool) -> None:
        """Tell these sums from now on. Those that were told already go on; others begin with 0."""
        self.satellites = (self.satellites or SumsByName()) if per_satellite else None
        self.orgs = (self.orgs or SumsByName()) if per_org else None

    def note(self, record: Record) -> None:
        """A connection has ended."""
        self.greeting.observe(record.between_s(Phase.ACCEPTED, Phase.GREETED), record.id)
        self.hold.observe(record.held_s, record.id)
        self.dial.observe(record.between_s(Phase.LEASED, Phase.DIALLED), record.id)
        self.life.observe(record.between_s(Phase.ACCEPTED, Phase.ENDED), record.id)
        if record.satellite is None or not record.has_reached(Phase.ADMITTED):
            return
        if self.satellites is not None:
            self.satellites.add(str(record.satellite), record)
        if self.orgs is not None:
            self.orgs.add(record.satellite.org, record)

    def note_transition(self, transition: Transition) -> None:
        """A satellite has changed its state. A wake that succeeded has phases, and so has the boot before a time awake."""
        if transition.after is SatelliteState.OPERATIONAL:
            for phase, seconds in transition.facts.phases:
                self.wake.observe(phase.value, seconds)
        if transition.before is SatelliteState.OPERATIONAL:
            for boot_phase, ended_s in transition.facts.boot:
                self.boot.observe(boot_phase.value, ended_s)
