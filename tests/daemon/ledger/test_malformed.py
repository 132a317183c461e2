"""A row of the ledger whose columns hold anything is left out and told once; all others count as before."""

from pathlib import Path

import pytest

from beds.contracts.ledger import ALWAYS, A, B
from beds.stores.edited import edited
from beds.stores.spoiled_rows import JUNK, columns, loosen, put, spoil, spoilings
from bentpipe.daemon.ledger.contract import Ledger, Stamp, StampedTransition
from bentpipe.daemon.ledger.dynamodb import DynamoLedger
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.model import SatelliteKey, SatelliteState, Transition
from bentpipe.daemon.store.dynamodb_table import Table


def change(serial: int, key: SatelliteKey, state: SatelliteState) -> StampedTransition:
    return StampedTransition(serial, Stamp.now(), Transition(key, SatelliteState.UNKNOWN, state, 0.0, "because"))


async def keep_books(ledger: Ledger) -> None:
    """A whole life of a daemon."""
    await ledger.begin([A, B], Stamp.now())
    await ledger.record([change(1, A, SatelliteState.SLEEP), change(2, B, SatelliteState.SLEEP)])
    await ledger.record([change(3, A, SatelliteState.STARTING), change(4, B, SatelliteState.STARTING)])
    await ledger.beat(Stamp.now())


async def states_of(ledger: Ledger, key: SatelliteKey) -> list[SatelliteState]:
    return [each.state for each in await ledger.intervals(*ALWAYS) if each.key == key]


@pytest.mark.parametrize("which", ["open", "past", "life"])
async def test_the_ledger_in_sqlite(tmp_path: Path, which: str) -> None:
    first = SqliteLedger(tmp_path / "first.sqlite")
    await keep_books(first)
    good = await states_of(first, A)
    await first.aclose()
    with edited(tmp_path / "first.sqlite") as db:
        for table in ("interval", "life"):
            loosen(db, table)
    db.close()
    whole = (tmp_path / "first.sqlite").read_bytes()
    table, where = {
        "open": ("interval", "satellite = 2 AND to_us IS NULL"),
        "past": ("interval", "satellite = 2 AND state = 'sleep'"),
        "life": ("life", "TRUE"),
    }[which]
    with edited(tmp_path / "first.sqlite") as db:
        names = [name for name in columns(db, table) if name not in ("id", "satellite", "to_us", "run")]
    db.close()
    for column in names:
        for value in JUNK:
            if column in ("from_us", "wall_us") and type(value) is int:
                continue  # a moment, if an odd one
            file = tmp_path / "one.sqlite"
            for suffix in ("", "-wal", "-shm"):
                file.with_name(f"one.sqlite{suffix}").unlink(missing_ok=True)
            file.write_bytes(whole)
            with edited(file) as db:
                put(db, table, column, value, where)
            db.close()
            reader = SqliteLedger(file, read_only=True)
            found = await states_of(reader, A)
            assert found[: len(good) - 1] == good[:-1], (column, value)
            await reader.aclose()
            ledger = SqliteLedger(file)
            await keep_books(ledger)
            await ledger.end(Stamp.now())
            for key in (A, B):
                end = (await states_of(ledger, key))[-3:]
                assert end == [SatelliteState.SLEEP, SatelliteState.STARTING, SatelliteState.UNKNOWN], (
                    column,
                    value,
                    key,
                )
            await ledger.aclose()


@pytest.mark.parametrize("which", ["open", "past", "life"])
async def test_the_ledger_in_dynamodb(table: Table, which: str) -> None:
    await keep_books(DynamoLedger(table, "edge"))
    items = await table.query("LIFE" if which == "life" else "BOOKS#edge")
    item = next(
        each
        for each in items
        if which == "life"
        or (each["satellite"]["S"] == str(B) and each["sk"]["S"].startswith("OPEN#" if which == "open" else "PAST#"))
    )
    good = await states_of(DynamoLedger(table, "edge"), A)
    for name, value in spoilings(item):
        if name == "run":
            continue  # whose books they are: nobody's are taken without a word
        spoil(table, item, name, value)
        found = await states_of(DynamoLedger(table, "edge"), A)
        assert found[: len(good) - 1] == good[:-1], (name, value)
    ledger = DynamoLedger(table, "edge")
    await keep_books(ledger)
    for key in (A, B):
        assert (await states_of(ledger, key))[-2:] == [SatelliteState.SLEEP, SatelliteState.STARTING]
