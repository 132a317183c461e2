"""Credentials for boto3, the emulated EC2, and the emulated DynamoDB."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from beds.machines.service_models import read_models_once
from bentpipe.daemon.testbed.ec2_emulator.clock import ManualClock
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

if TYPE_CHECKING:
    from beds.stores.dynamodb_server import DynamoDbServer
    from bentpipe.daemon.store.dynamodb_table import Table

read_models_once()


@pytest.fixture
def aws_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """As boto3 finds them, and none of the host's own."""
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIDONE",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def dynamodb() -> Iterator[DynamoDbServer]:
    from beds.stores.dynamodb_server import DynamoDbServer  # here, since moto takes a second to import

    with DynamoDbServer() as server:
        yield server


@pytest.fixture
def tables(dynamodb: DynamoDbServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Table]]:
    """`tables(name)`: a new client of the table of that name, which is made if need be, and deleted after the test: each
    transaction of moto copies all tables."""
    from bentpipe.daemon.store.dynamodb_table import Table

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    own = uuid.uuid4().hex
    made: set[str] = set()

    def open_table(name: str) -> Table:
        table = Table(f"{own}-{name}", region="eu-central-1", endpoint=dynamodb.url)
        if name not in made:
            made.add(name)
            table.create_now()
        return table

    yield open_table
    dynamodb.delete_tables(own)


@pytest.fixture
def table(tables: Callable[[str], Table]) -> Table:
    return tables("only")


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """EC2 whose time stands still."""
    with Emulator(ManualClock()) as emulator:
        yield emulator


@pytest.fixture
def control(emulator: Emulator) -> Control:
    """The hand of that EC2."""
    return emulator.control
