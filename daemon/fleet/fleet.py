"""All satellites of the configuration, each with a task and a nursery of its own."""

from collections.abc import Callable, Iterable

import trio

from bentpipe.config.model import SatelliteSection
from bentpipe.daemon.errors import NoSuchSatellite
from bentpipe.daemon.fleet.satellite import Satellite, rules_of
from bentpipe.daemon.model import MachineId, SatelliteKey, Transition
from bentpipe.daemon.providers.base import Provider


def machine_id_of(section: SatelliteSection) -> MachineId:
    """The id by which the provider knows the satellite's machine."""
    return MachineId(f"{section.org}.{section.name}")


class Fleet:
    """Finds satellites and runs them."""

    def __init__(
        self,
        sections: Iterable[SatelliteSection],
        provider: Provider,
        observer: Callable[[Transition], None],
        *,
        max_held: int,
    ) -> None:
        self._satellites = {
            (key := SatelliteKey(section.org, section.name)): Satellite(
                key, rules_of(section, max_held), provider, machine_id_of(section), observer
            )
            for section in sections
        }

    def get(self, key: SatelliteKey) -> Satellite:
        """Find a satellite. Raises NoSuchSatellite, in the words of one that is somebody else's."""
        try:
            return self._satellites[key]
        except KeyError:
            raise NoSuchSatellite(f"unknown satellite {key}", peer_hint="no such satellite, or not yours") from None

    @property
    def satellites(self) -> tuple[Satellite, ...]:
        """All of them, in the order of the configuration."""
        return tuple(self._satellites.values())

    def drain(self) -> None:
        """Refuse everybody who waits or comes."""
        for satellite in self._satellites.values():
            satellite.drain()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run every satellite for ever. A bug in one ends the daemon: systemd restarts it from the provider's truth."""
        async with trio.open_nursery() as nursery:
            for satellite in self._satellites.values():
                await nursery.start(satellite.run)
            task_status.started()
