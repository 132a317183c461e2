"""Credentials for every test, an emulator whose time stands still, and its hand."""

from collections.abc import Iterator

import pytest

from bentpipe.daemon.testbed.ec2_emulator.clock import ManualClock
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator


@pytest.fixture(autouse=True)
def _credentials(aws_credentials: None) -> None:
    """For every test here."""


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(ManualClock()) as emulator:
        yield emulator


@pytest.fixture
def control(emulator: Emulator) -> Control:
    return emulator.control
