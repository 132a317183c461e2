"""What the pages show of the host, and where they get it from: values, and the parts of the daemon that are asked."""

import dataclasses
from collections.abc import Callable, Mapping

from bentpipe.daemon.admin.counters import PageCounters
from bentpipe.daemon.admin.history import History
from bentpipe.daemon.api.operations import Operations
from bentpipe.daemon.edge.handoff import HandOff
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.records.telling import RecordFinder


@dataclasses.dataclass(frozen=True, slots=True)
class PlaneFacts:
    """A data plane: the engine of this process, or a process of its own."""

    name: str
    form: str
    pid: int
    version: str
    state: str
    spliced: int


@dataclasses.dataclass(frozen=True, slots=True)
class HostFacts:
    """The host and its daemon now."""

    host: str
    version: str
    pid: int
    problems: tuple[str, ...]
    """What is wrong with it, in words; empty if nothing is."""
    drain_deadline: str
    planes: tuple[PlaneFacts, ...]
    numbers: Mapping[str, str]
    """Name and value of a few counters, for people."""


@dataclasses.dataclass(frozen=True, slots=True)
class AdminParts:
    """The parts of the daemon that the pages ask."""

    fleet: Fleet
    handoff: HandOff
    operations: Operations
    finder: RecordFinder
    history: History
    host: Callable[[], HostFacts]
    drain: Callable[[], None]
    """Begins the drain of the daemon."""
    counters: PageCounters
