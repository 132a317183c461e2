"""The registry in DynamoDB: real boto3 against moto's server, through the contract that SQLite passes too."""

from collections.abc import Callable

import pytest

from beds.contracts.accounts import AccountsContract, AccountStores
from beds.contracts.identities import IdentityContract, IdentityStores
from beds.contracts.launched import LaunchedContract, LaunchedStores
from beds.contracts.registered import RegisteredContract, RegisteredStores
from beds.contracts.registry import Registries, RegistryContract
from beds.contracts.reserve import ReserveContract, ReserveStores
from bentpipe.daemon.registry.dynamodb import DynamoRegistry
from bentpipe.daemon.registry.dynamodb_accounts import DynamoAccountStore
from bentpipe.daemon.registry.dynamodb_identities import DynamoIdentityStore
from bentpipe.daemon.registry.dynamodb_launched import DynamoLaunchedStore
from bentpipe.daemon.registry.dynamodb_registered import DynamoRegisteredStore
from bentpipe.daemon.registry.dynamodb_reserve import DynamoReserveStore
from bentpipe.daemon.store.dynamodb_table import Table


@pytest.fixture
def registries(tables: Callable[[str], Table]) -> Registries:
    return lambda name: DynamoRegistry(tables(name))


@pytest.fixture
def account_stores(tables: Callable[[str], Table]) -> AccountStores:
    return lambda name: (DynamoAccountStore(tables(name)), DynamoRegistry(tables(name)))


@pytest.fixture
def launched_stores(tables: Callable[[str], Table]) -> LaunchedStores:
    return lambda name: DynamoLaunchedStore(tables(name))


@pytest.fixture
def identity_stores(tables: Callable[[str], Table]) -> IdentityStores:
    return lambda name: (DynamoIdentityStore(tables(name)), DynamoRegistry(tables(name)))


@pytest.fixture
def registered_stores(tables: Callable[[str], Table]) -> RegisteredStores:
    return lambda name: (DynamoRegisteredStore(tables(name)), DynamoLaunchedStore(tables(name)))


@pytest.fixture
def reserve_stores(tables: Callable[[str], Table]) -> ReserveStores:
    return lambda name: DynamoReserveStore(tables(name))


class TestRegistry(RegistryContract):
    """The suite that every registry passes."""


class TestAccounts(AccountsContract):
    """The suite that every store of accounts passes."""


class TestIdentities(IdentityContract):
    """The suite that every store of identities passes."""


class TestLaunched(LaunchedContract):
    """The suite that every store of launched satellites passes."""


class TestRegistered(RegisteredContract):
    """The suite that every store of registered satellites passes."""


class TestReserve(ReserveContract):
    """The suite that every store of the reserve passes."""
