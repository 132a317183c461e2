"""The ledger in DynamoDB: real boto3 against moto's server, through the contract that SQLite passes too."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings

from beds.contracts.ledger import ALWAYS, MOVES, A, B, Clock, LedgerContract, LedgerMove, Shelf, Writer, check_laws
from bentpipe.daemon.ledger.dynamodb import DynamoLedger
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.store.dynamodb_table import Table

S = SatelliteState
EXAMPLES = 6
"""Of the ledger's property: each is some hundred requests."""
MANY = 40
"""Satellites: more than go into one transaction."""


@pytest.fixture
def shelf(tables: Callable[[str], Table]) -> Shelf:
    return lambda name: DynamoLedger(tables(name), "edge-1")


class TestLedger(LedgerContract):
    """The suite that every ledger passes."""

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(MOVES)
    def test_no_overlaps_no_holes_nothing_lost(self, shelf: Shelf, moves: list[LedgerMove]) -> None:
        self.play(shelf, moves)


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
