"""The provider that the fleet's own tests run on keeps the contract."""

import dataclasses
from typing import Any

import pytest

from beds.contracts.provider import ProviderContract
from beds.machines.memory_provider import FakeMachine, MemoryProvider, OnStart
from bentpipe.daemon.model import Address, MachineId, MachineState


@dataclasses.dataclass
class MemoryHarness:
    provider: MemoryProvider
    good = MachineId("good")
    slow_to_stop = MachineId("deaf")
    unstartable = MachineId("forbidden")
    short_lived = MachineId("keyless")
    unknown = MachineId("unknown")

    async def memory(self, address: Address) -> str:
        (found,) = (machine.memory for machine in self.provider.machines.values() if machine.address == address)
        return found

    async def kill(self, machine_id: MachineId) -> None:
        machine: FakeMachine = self.provider.machines[machine_id]
        if machine.state is MachineState.HIBERNATED:
            self.provider.others_terminate(machine)
        else:
            machine.memory = ""
            machine.become(MachineState.STOPPED, "killed")


class TestMemoryProvider(ProviderContract):
    @pytest.fixture
    def harness(self) -> MemoryHarness:
        provider = MemoryProvider()
        machines: dict[str, dict[str, Any]] = {
            "good": {},
            "deaf": {"stop_hangs": True},
            "forbidden": {"forbidden": True},
            "keyless": {"on_start": OnStart.NO_KEY},
        }
        for number, (name, habits) in enumerate(machines.items()):
            provider.add(name, address=Address(f"192.0.2.{number}", 8372), **habits)
        return MemoryHarness(provider)
