"""A launched satellite that this host has taken up into its fleet. It decides nothing."""

import dataclasses

import trio

from bentpipe.config.model import MachineTypeSection
from bentpipe.daemon.errors import BentpipeError, MachineNotFound
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.ids import machine_id_of
from bentpipe.daemon.model import MachineState, SatelliteKey
from bentpipe.daemon.providers.base import Provider
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


async def is_gone(provider: Provider, key: SatelliteKey) -> bool:
    """Whether a satellite has no machine, or a terminated one. Raises ProviderError."""
    try:
        machine = await provider.describe(machine_id_of(key))
    except MachineNotFound:
        return True
    return machine.state is MachineState.TERMINATED


async def is_settled(registry: Registry, satellite: Satellite, wall_s: float) -> bool:
    """Whether the newest machine is known, or would have appeared by now, in seconds since the epoch. Raises StoreError."""
    newest = await newest_machine(registry, satellite.key)
    if newest is None or newest.attempt is None or newest.generation == satellite.calls.launched_generation:
        return True
    return wall_s - newest.attempt.at_us / 1e6 >= satellite.rules.traits.appear_grace_s
