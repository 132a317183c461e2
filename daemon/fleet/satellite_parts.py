"""What the rest of the daemon keeps of a satellite that comes and goes at run time."""

from typing import Protocol

from bentpipe.config.model import MachineTypeSection, SatelliteSection
from bentpipe.daemon.model import SatelliteKey


class Parts(Protocol):
    """What the rest of the daemon keeps of each satellite."""

    def add(self, section: SatelliteSection, kind: MachineTypeSection) -> None:
        """A satellite is about to be taken up, whose section was made of its machine type."""
        ...

    def end_use(self, key: SatelliteKey) -> None:
        """End the connections to a satellite, and what keeps it awake."""
        ...

    def forget(self, key: SatelliteKey) -> None:
        """A satellite is gone."""
        ...
