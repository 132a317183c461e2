"""The store in DynamoDB: real boto3 against moto's server, through the contracts that SQLite and memory pass too."""

import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import trio
from coordination_contract import CoordinationContract, SharedContract, hosts
from dynamodb_server import DynamoDbServer
from hypothesis import HealthCheck, given, settings
from registry_contract import Registries, RegistryContract
from rows_contract import RowsContract
from store_contract import ALWAYS, MOVES, A, B, Clock, LedgerContract, Shelf, Writer, check_laws

from bentpipe.daemon.coordination.contract import Coordination
from bentpipe.daemon.coordination.dynamodb import DynamoRows
from bentpipe.daemon.errors import StoreError, StoreUnusable
from bentpipe.daemon.ledger.dynamodb import DynamoLedger
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.registry.dynamodb import DynamoRegistry
from bentpipe.daemon.store import dynamodb_table as table_module
from bentpipe.daemon.store.dynamodb_fleets import run_fleet_check
from bentpipe.daemon.store.dynamodb_table import Table

S = SatelliteState
EXAMPLES = 6
"""Of the ledger's property: each is some hundred requests."""
MANY = 40
"""Satellites: more than go into one transaction."""


@pytest.fixture(scope="module")
def server() -> Iterator[DynamoDbServer]:
    with DynamoDbServer() as server:
        yield server


@pytest.fixture
def tables(server: DynamoDbServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Table]:
    """`tables(name)`: a new client of the table of that name, which is made if need be."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    own = uuid.uuid4().hex
    made: set[str] = set()

    def open_table(name: str) -> Table:
        table = Table(f"{own}-{name}", region="eu-central-1", endpoint=server.url)
        if name not in made:
            made.add(name)
            table.create_now()
        return table

    return open_table


@pytest.fixture
def shelf(tables: Callable[[str], Table]) -> Shelf:
    return lambda name: DynamoLedger(tables(name), "edge-1")


@pytest.fixture
def registries(tables: Callable[[str], Table]) -> Registries:
    return lambda name: DynamoRegistry(tables(name))


@pytest.fixture
def rows(tables: Callable[[str], Table]) -> DynamoRows:
    return DynamoRows(tables("rows"))


class TestLedger(LedgerContract):
    """The suite that every ledger passes."""

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(MOVES)
    def test_no_overlaps_no_holes_nothing_lost(self, shelf: Shelf, moves: list[tuple]) -> None:
        self.play(shelf, moves)


class TestRegistry(RegistryContract):
    """The suite that every registry passes."""


class TestRows(RowsContract):
    """The suite that all rows pass."""


class TestShared(SharedContract):
    """Several hosts."""


class TestSharedByOne(CoordinationContract):
    """One host that might not be alone."""

    @pytest.fixture
    async def coordination(self, rows: DynamoRows) -> AsyncIterator[Coordination]:
        async with hosts(rows, "one") as (one,):
            yield one.coordination


async def test_every_host_keeps_its_own_books_and_a_reader_gets_one_chain(tables: Callable[[str], Table]) -> None:
    clock = Clock()
    one, two = (Writer(DynamoLedger(tables("fleet"), host), clock) for host in ("one", "two"))
    for writer in (one, two):
        await writer.ledger.begin([A, B], clock.now())
        await writer.move(A, S.SLEEP)
    clock.advance(10)
    await one.move(A, S.STARTING, "a client came")
    clock.advance(1)
    await two.move(A, S.STARTING, "started by others")
    clock.advance(9)
    await two.move(A, S.OPERATIONAL)
    clock.advance(1)
    await one.move(A, S.OPERATIONAL)
    clock.advance(5)
    await one.ledger.beat(clock.now())
    await two.ledger.end(clock.now())
    found = await DynamoLedger(tables("fleet"), "reader").intervals(*ALWAYS)
    check_laws(found, clock.wall_us)
    own = [(i.state.value, i.cause, i.elapsed_us / 1e6) for i in found if i.key == A]
    assert own == [
        ("sleep", "test", 10.0),
        ("starting", "a client came", 10.0),
        ("operational", "test", 6.0),
    ]


async def test_more_satellites_than_go_into_one_transaction(tables: Callable[[str], Table]) -> None:
    keys = [SatelliteKey("acme", f"s{number:03}") for number in range(MANY)]
    clock = Clock()
    for state in (S.OPERATIONAL, S.SLEEP):
        writer = Writer(DynamoLedger(tables("many"), "one"), clock)
        await writer.ledger.begin(keys, clock.now())
        clock.advance(1)
        await writer.ledger.record([writer.change(key, state) for key in keys])
        clock.advance(1)
        await writer.ledger.beat(clock.now())
        clock.advance(1)
    found = await writer.ledger.intervals(*ALWAYS)
    check_laws(found, clock.wall_us)
    expected = [S.UNKNOWN, S.OPERATIONAL, S.UNKNOWN, S.SLEEP]
    assert [interval.state for interval in found] == expected * MANY


async def test_a_table_that_is_not_there_or_not_reachable(
    server: DynamoDbServer, tables: Callable[[str], Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Table("nowhere", region="eu-central-1", endpoint=server.url)
    with pytest.raises(StoreUnusable, match="bentpipe store init"):
        await DynamoRegistry(missing).tokens()
    assert await missing.create()
    assert not await missing.create()
    assert await DynamoRegistry(missing).tokens() == ()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    attempts = 0

    async def sleep(seconds: float) -> None:
        nonlocal attempts
        attempts += 1

    monkeypatch.setattr(table_module.trio, "sleep", sleep)
    with pytest.raises(StoreError, match="Could not connect") as error:
        await DynamoRegistry(Table("t", region="eu-central-1", endpoint=url)).tokens()
    assert error.value.retryable
    assert attempts == table_module.ATTEMPTS - 1


async def test_without_a_region_it_is_no_use_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with trio.fail_after(30), pytest.raises(StoreUnusable, match="region"):
        await DynamoRegistry(Table("t", region=None, endpoint=None)).tokens()


async def test_two_fleets_in_one_table_are_told(
    tables: Callable[[str], Table], caplog: pytest.LogCaptureFixture
) -> None:
    for fleet in ("prod", "prod", "staging", "prod"):
        await run_fleet_check(tables("shared"), fleet)
    await run_fleet_check(tables("alone"), "staging")
    told = [each.__dict__["fields"] for each in caplog.records if "several fleets" in each.getMessage()]
    assert [(each["fleet"], each["others"]) for each in told] == [("staging", "prod"), ("prod", "staging")]
