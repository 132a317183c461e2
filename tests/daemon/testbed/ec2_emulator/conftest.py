"""An emulator whose time stands still, and its hand."""

from collections.abc import Iterator
from typing import Any

import pytest

from beds.machines.emulator_calls import client_of
from bentpipe.daemon.testbed.ec2_emulator.clock import ManualClock
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(ManualClock()) as emulator:
        yield emulator


@pytest.fixture
def control(emulator: Emulator) -> Control:
    return emulator.control


@pytest.fixture
def ec2(emulator: Emulator) -> Iterator[Any]:
    client = client_of(emulator.url)
    yield client
    client.close()
