"""boto3 for the emulator."""

from collections.abc import Iterator
from typing import Any

import pytest

from beds.machines.emulator_calls import client_of
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator


@pytest.fixture
def ec2(emulator: Emulator) -> Iterator[Any]:
    client = client_of(emulator.url)
    yield client
    client.close()
