"""The registry in DynamoDB: real boto3 against moto's server, through the contract that SQLite passes too."""

from collections.abc import Callable

import pytest

from beds.contracts.registry import Registries, RegistryContract
from bentpipe.daemon.registry.dynamodb import DynamoRegistry
from bentpipe.daemon.store.dynamodb_table import Table


@pytest.fixture
def registries(tables: Callable[[str], Table]) -> Registries:
    return lambda name: DynamoRegistry(tables(name))


class TestRegistry(RegistryContract):
    """The suite that every registry passes."""
