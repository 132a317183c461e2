"""What all satellites of one daemon share: one value in place of a long list of parameters."""

import dataclasses
import time
from collections.abc import Callable

from bentpipe.daemon.coordination.contract import Coordination, LocalCoordination
from bentpipe.daemon.fleet.crowd import Crowd
from bentpipe.daemon.fleet.resume import Witness
from bentpipe.daemon.fleet.whereabouts import Places
from bentpipe.daemon.model import Transition
from bentpipe.daemon.providers.base import Provider
from bentpipe.daemon.registry.contract import Registry


@dataclasses.dataclass(frozen=True, slots=True)
class FleetContext:
    """By default: one host alone, without a registry, that holds any number of clients and asks no satellite what it is."""

    provider: Provider
    observer: Callable[[Transition], None]
    """Is told of each change of state, in the step in which it happens."""
    crowd: Crowd = dataclasses.field(default_factory=Crowd)
    """All clients that are held, and how many may be."""
    places: Places = dataclasses.field(default_factory=Places)
    """Where the satellites are believed to be, and which of them prove by TLS who they are."""
    coordination: Coordination = dataclasses.field(default_factory=LocalCoordination)
    registry: Registry | None = None
    """Counts launches over restarts and between hosts."""
    witness: Witness | None = None
    wall: Callable[[], float] = time.time
    """The wall clock, in seconds; another one in tests only."""
