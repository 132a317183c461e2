"""The registry in SQLite: its contract, and kill -9."""

import random
import signal
import subprocess
from pathlib import Path

import pytest

from beds.contracts.accounts import AccountsContract, AccountStores
from beds.contracts.identities import IdentityContract, IdentityStores
from beds.contracts.launched import LaunchedContract, LaunchedStores
from beds.contracts.registered import RegisteredContract, RegisteredStores
from beds.contracts.registry import Registries, RegistryContract
from beds.contracts.reserve import ReserveContract, ReserveStores
from beds.programs import program
from bentpipe.daemon.registry.sqlite import SqliteRegistry
from bentpipe.daemon.registry.sqlite_accounts import SqliteAccountStore
from bentpipe.daemon.registry.sqlite_identities import SqliteIdentityStore
from bentpipe.daemon.registry.sqlite_launched import SqliteLaunchedStore
from bentpipe.daemon.registry.sqlite_registered import SqliteRegisteredStore
from bentpipe.daemon.registry.sqlite_reserve import SqliteReserveStore

KILLS = 12


@pytest.fixture
def registries(tmp_path: Path) -> Registries:
    return lambda name: SqliteRegistry(tmp_path / "stores" / f"{name}.sqlite")


@pytest.fixture
def account_stores(tmp_path: Path) -> AccountStores:
    def open_both(name: str) -> tuple[SqliteAccountStore, SqliteRegistry]:
        path = tmp_path / "stores" / f"{name}.sqlite"
        return SqliteAccountStore(path), SqliteRegistry(path)

    return open_both


@pytest.fixture
def launched_stores(tmp_path: Path) -> LaunchedStores:
    return lambda name: SqliteLaunchedStore(tmp_path / "stores" / f"{name}.sqlite")


@pytest.fixture
def identity_stores(tmp_path: Path) -> IdentityStores:
    def open_both(name: str) -> tuple[SqliteIdentityStore, SqliteRegistry]:
        path = tmp_path / "stores" / f"{name}.sqlite"
        return SqliteIdentityStore(path), SqliteRegistry(path)

    return open_both


@pytest.fixture
def registered_stores(tmp_path: Path) -> RegisteredStores:
    def stores(name: str) -> tuple[SqliteRegisteredStore, SqliteLaunchedStore]:
        return SqliteRegisteredStore(tmp_path / name), SqliteLaunchedStore(tmp_path / name)

    return stores


@pytest.fixture
def reserve_stores(tmp_path: Path) -> ReserveStores:
    return lambda name: SqliteReserveStore(tmp_path / "stores" / f"{name}.sqlite")


class TestRegistry(RegistryContract):
    """The suite that every registry passes."""


class TestAccounts(AccountsContract):
    """The suite that every store of accounts passes."""


class TestIdentities(IdentityContract):
    """The suite that every store of identities passes."""


class TestLaunched(LaunchedContract):
    """The suite that every store of launched satellites passes."""


async def test_kill_9_loses_no_token_and_no_generation(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    chance = random.Random(5)
    confirmed: set[str] = set()
    generation = 0
    for kill in range(1, KILLS + 1):
        with subprocess.Popen(
            [*program("stores.registry_child"), path, str(kill)],
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(chance.randrange(1, 40))]
            child.send_signal(signal.SIGKILL)
            lines += [line for line in child.stdout if line.endswith("\n")]
        confirmed |= {line.split()[0] for line in lines}
        registry = SqliteRegistry(path)
        names = {token.name for token in await registry.tokens()}
        (satellite,) = await registry.satellites()
        await registry.aclose()
        assert confirmed <= names
        assert len(names - confirmed) <= kill
        last = int(lines[-1].split()[1])
        assert generation < last <= satellite.generation <= last + 1
        assert satellite.machine_id == (f"i-{satellite.generation}" if satellite.machine_id else None)
        generation = satellite.generation


class TestRegistered(RegisteredContract):
    """The suite that every store of registered satellites passes."""


class TestReserve(ReserveContract):
    """The suite that every store of the reserve passes."""
