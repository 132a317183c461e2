"""Opens the stores that [store] asks for. No store is touched before the first call."""

import dataclasses
import functools
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

import click
import trio

from bentpipe.config.store import StoreSection
from bentpipe.daemon.coordination.contract import Coordination, LocalCoordination
from bentpipe.daemon.coordination.shared import SharedCoordination
from bentpipe.daemon.errors import StoreUnusable
from bentpipe.daemon.ledger.contract import Ledger, RolledLedger
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.registry.accounts import AccountStore
from bentpipe.daemon.registry.contract import Registry
from bentpipe.daemon.registry.identities import IdentityStore
from bentpipe.daemon.registry.launched import LaunchedStore
from bentpipe.daemon.registry.registered import RegisteredStore
from bentpipe.daemon.registry.reserve import ReserveStore
from bentpipe.daemon.registry.sqlite import SqliteRegistry
from bentpipe.daemon.registry.sqlite_accounts import SqliteAccountStore
from bentpipe.daemon.registry.sqlite_identities import SqliteIdentityStore
from bentpipe.daemon.registry.sqlite_launched import SqliteLaunchedStore
from bentpipe.daemon.registry.sqlite_registered import SqliteRegisteredStore
from bentpipe.daemon.registry.sqlite_reserve import SqliteReserveStore
from bentpipe.daemon.service.installed import load_operators_config

AWAY_S = 1_800.0
"""If connections outlive the control plane: how long it may be away before other hosts of a shared fleet put to sleep what
its clients use. It covers a repair by hand. If the whole host dies, its satellites stay awake for so long, too."""

NO_STORE = "no store: [store] in the configuration says where one is kept"


@dataclasses.dataclass(frozen=True, slots=True)
class Stores:
    """The daemon's stores, and its coordination with other hosts. None: it has no such store."""

    ledger: Ledger | None
    registry: Registry | None
    coordination: Coordination
    accounts: AccountStore | None = None
    """None if there is no registry."""
    launched: LaunchedStore | None = None
    """None if there is no registry."""
    identities: IdentityStore | None = None
    """None if there is no registry."""
    registered: RegisteredStore | None = None
    """None if there is no registry."""
    reserve: ReserveStore | None = None
    """None if there is no registry."""
    rolled: RolledLedger | None = None
    """What keeps the ledger's sums of past days; None if there is no ledger."""
    check_fleet: Callable[[str], Awaitable[None]] | None = None
    """Tells the operator if hosts of another fleet use the same store."""


def open_stores(section: StoreSection, *, outlives: bool = False) -> Stores:
    """Open all stores, to read and write."""
    if section.kind == "dynamodb":
        return _open_dynamodb(section, outlives=outlives)
    path = section.ledger_path()
    if path is None:
        return Stores(None, None, LocalCoordination())
    ledger = SqliteLedger(path)
    return Stores(
        ledger,
        SqliteRegistry(path),
        LocalCoordination(),
        SqliteAccountStore(path),
        SqliteLaunchedStore(path),
        SqliteIdentityStore(path),
        SqliteRegisteredStore(path),
        SqliteReserveStore(path),
        ledger,
    )


def state_file(section: StoreSection, name: str) -> Path | None:
    """A file beside the ledger's, or in systemd's state directory; None if there is neither."""
    ledger = section.ledger_path()
    if ledger is not None:
        return ledger.parent / name
    directory = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(directory) / name if directory else None


class _Closable(Protocol):
    async def aclose(self) -> None: ...


T = TypeVar("T", bound=_Closable)


async def use_store(
    section: StoreSection, pick: Callable[[Stores], T | None], use: Callable[[T], Awaitable[None]]
) -> None:
    """Use one of the stores for one command, and close it. Raises StoreUnusable if [store] asks for none, and StoreError."""
    store = pick(open_stores(section))
    if store is None:
        raise StoreUnusable(NO_STORE)
    try:
        await use(store)
    finally:
        await store.aclose()


def shared_ledger(section: StoreSection) -> Ledger:
    """The ledger in DynamoDB. Raises StoreError."""
    ledger = _open_dynamodb(section, outlives=False).ledger
    if ledger is None:
        raise AssertionError("a fleet has a ledger")
    return ledger


def run_store_init(config_path: Path) -> None:
    """Make the table that [store] names. Raises ConfigErrors, StoreError."""
    section = load_operators_config(config_path, check_files=False).store
    if section.kind != "dynamodb":
        raise StoreUnusable(f"[store] kind {section.kind!r} needs no preparation")
    from bentpipe.daemon.store.dynamodb_table import Table

    table = Table(section.table or "", region=section.region, endpoint=section.endpoint)
    made = trio.run(table.create)
    click.echo(f"table {section.table}: {'made' if made else 'was there already'}")


def _open_dynamodb(section: StoreSection, *, outlives: bool) -> Stores:
    # Imported here, because boto3 costs a third of a second and 50 MB, which a daemon without DynamoDB need not pay.
    from bentpipe.daemon.coordination.dynamodb import DynamoRows
    from bentpipe.daemon.ledger.dynamodb import DynamoLedger
    from bentpipe.daemon.ledger.dynamodb_days import DynamoDays
    from bentpipe.daemon.registry.dynamodb import DynamoRegistry
    from bentpipe.daemon.registry.dynamodb_accounts import DynamoAccountStore
    from bentpipe.daemon.registry.dynamodb_identities import DynamoIdentityStore
    from bentpipe.daemon.registry.dynamodb_launched import DynamoLaunchedStore
    from bentpipe.daemon.registry.dynamodb_registered import DynamoRegisteredStore
    from bentpipe.daemon.registry.dynamodb_reserve import DynamoReserveStore
    from bentpipe.daemon.store.dynamodb_fleets import run_fleet_check
    from bentpipe.daemon.store.dynamodb_table import Table

    def table() -> Table:
        # Each table has threads of its own: a ledger that is slow to write must not delay a client.
        return Table(section.table or "", region=section.region, endpoint=section.endpoint)

    host = section.host or socket.gethostname()
    coordination = SharedCoordination(
        *(DynamoRows(table()), host),
        lease_s=section.lease_s,
        host_expiry_s=section.host_expiry_s,
        survives_s=AWAY_S if outlives else 0.0,
    )
    check_fleet = functools.partial(run_fleet_check, table())
    return Stores(
        DynamoLedger(table(), host),
        DynamoRegistry(table()),
        coordination,
        DynamoAccountStore(table()),
        DynamoLaunchedStore(table()),
        DynamoIdentityStore(table()),
        DynamoRegisteredStore(table()),
        DynamoReserveStore(table()),
        DynamoDays(table()),
        check_fleet=check_fleet,
    )
