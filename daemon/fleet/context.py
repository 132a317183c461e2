"""What all satellites of one daemon share, as one value instead of a long list of parameters."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from bentpipe.daemon.coordination.contract import Coordination, LocalCoordination
from bentpipe.daemon.fleet.crowd import Crowd
from bentpipe.daemon.fleet.gates import Gates, NoGates
from bentpipe.daemon.fleet.reader import ReadingContext
from bentpipe.daemon.fleet.reserve_giver import ReserveGiver
from bentpipe.daemon.fleet.resume import ReadBootInfo
from bentpipe.daemon.fleet.whereabouts import KnownAddresses
from bentpipe.daemon.model import SatelliteKey, Transition
from bentpipe.daemon.providers.base import Provider
from bentpipe.daemon.registry.contract import Registry


@dataclasses.dataclass(frozen=True, slots=True)
class FleetContext:
    """By default it is for one host alone, without a registry.

    It holds any number of clients, and asks no satellite its boot id.
    """

    provider: Provider
    observer: Callable[[Transition], None]
    """Called with each change of state, in the step in which it happens."""
    crowd: Crowd = dataclasses.field(default_factory=Crowd)
    """All held clients, and how many there may be."""
    addresses: KnownAddresses = dataclasses.field(default_factory=KnownAddresses)
    """Where the satellites seem to be, and which of them prove themselves by TLS."""
    coordination: Coordination = dataclasses.field(default_factory=LocalCoordination)
    registry: Registry | None = None
    """Counts launches over restarts and between hosts."""
    read_boot_info: ReadBootInfo | None = None
    """Asks a satellite without a responder."""
    reserve: ReserveGiver | None = None
    """Gives machines that are launched already to new satellites; None: there is no reserve."""
    reading: ReadingContext | None = None
    """Reads the responders of those satellites that have one; None: they are not read."""
    noting_stop: Callable[[SatelliteKey], AbstractAsyncContextManager[object]] = contextlib.nullcontext
    """A successor of this process will know that the satellite's machine is being stopped, while the block runs."""
    gates: Gates = dataclasses.field(default_factory=NoGates)
    """Through them other processes of this host bring clients to awake satellites."""
    wall: Callable[[], float] = time.time
    """The wall clock, in seconds; another one in tests only."""
