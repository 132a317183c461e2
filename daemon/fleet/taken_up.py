"""A launched satellite that this host has taken up into its fleet. It decides nothing."""

import dataclasses

import trio

from bentpipe.config.model import MachineTypeSection
from bentpipe.daemon.errors import BentpipeError
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.providers.series import Series
from bentpipe.daemon.registry.contract import Registry, StoredSatellite
from bentpipe.daemon.registry.launched import LaunchedSatellite


@dataclasses.dataclass(slots=True)
class TakenUp:
    """What is kept of it."""

    row: LaunchedSatellite
    kind: MachineTypeSection
    """With which it was taken up."""
    satellite: Satellite
    removals: Series
    attempts: int = 0
    """To finish its removal or update, by the task."""
    again_at: float = float("-inf")
    working: trio.Lock = dataclasses.field(default_factory=trio.Lock)
    """Held by the task that takes the next step of its removal or update."""
    gone_generation: int = 0
    """The newest of its machines when the last of them was seen to be gone."""
    outcome: BentpipeError | None = None
    """Why its update has not led to what the client wanted."""


async def newest_machine(registry: Registry, key: SatelliteKey) -> StoredSatellite | None:
    """A satellite's newest machine in the registry. Raises StoreError."""
    return next((each for each in await registry.satellites() if each.key == key), None)
