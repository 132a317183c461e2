"""What providers of the tests have in common if nobody updates their machines."""

from bentpipe.config.model import MachineSection
from bentpipe.daemon.model import MachineId


class Unchanging:
    """The part of `Provider` that an update needs, for machines that can become anything without a change."""

    async def objection_to(self, machine_id: MachineId, section: MachineSection) -> str:
        return ""

    async def adapt(self, machine_id: MachineId, section: MachineSection) -> None:
        pass
