"""The EC2 provider keeps the contract, over the emulator."""

from collections.abc import AsyncIterator

import pytest

from beds.contracts.provider import ProviderContract
from beds.machines.emulated_ec2 import (
    SATELLITES,
    TEMPLATE,
    Ec2Harness,
    ec2_section,
    machine,
    machine_id,
    running,
    set_up,
)
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

SPEED = 300.0


@pytest.fixture
async def harness() -> AsyncIterator[Ec2Harness]:
    with Emulator(ScaledClock(SPEED)) as emulator:
        ids = set_up(emulator.control)
        machines = {machine_id(each): machine(each, launch_template=TEMPLATE) for each in SATELLITES}
        async with running(ec2_section(emulator.url), machines) as provider:
            yield Ec2Harness(provider, emulator.control, ids)


class TestContract(ProviderContract):
    """The suite that every provider passes."""
