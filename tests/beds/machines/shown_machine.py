"""A provider of one machine that is in the state that the test shows."""

import trio

from beds.machines.unchanging import Unchanging
from bentpipe.daemon.model import Address, Fault, Machine, MachineId, MachineState, MachineTraits
from bentpipe.daemon.providers.ec2.traits import TRAITS


class ShownMachine(Unchanging):
    """The half of a provider that tells of its machine; a subclass has the calls that move it."""

    def __init__(self, machine_id: MachineId, address: Address) -> None:
        self.machine_id = machine_id
        self.address = address
        self.state = MachineState.STOPPED
        self.reason = ""
        self.fault: Fault | None = None
        self.calls: list[str] = []
        self.changed = trio.Event()

    def look(self) -> Machine:
        address = self.address if self.state is MachineState.RUNNING else None
        return Machine(self.machine_id, self.state, address, self.reason, self.fault)

    def show(self, state: MachineState, reason: str = "", fault: Fault | None = None) -> None:
        """Be in that state from now on, and wake those that wait for a change."""
        self.state, self.reason, self.fault = state, reason, fault
        self.changed.set()
        self.changed = trio.Event()

    async def describe(self, machine_id: MachineId) -> Machine:
        await trio.lowlevel.checkpoint()
        return self.look()

    async def wait_changed(self, seen: Machine) -> Machine:
        while self.look() == seen:
            await self.changed.wait()
        return self.look()

    def traits_of(self, machine_id: MachineId) -> MachineTraits:
        return TRAITS

    def vouches_nowait(self, look: Machine) -> bool:
        return look == self.look()
