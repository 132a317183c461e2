"""The ledger in SQLite: its contract, kill -9, and files of all sorts."""

import itertools
import random
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest

from beds.contracts.ledger import ALWAYS, A, Clock, LedgerContract, Shelf, Writer, check_laws
from beds.programs import program
from beds.stores.edited import edited
from beds.stores.ledger_child import KEYS
from bentpipe.daemon.errors import StoreError, StoreUnusable
from bentpipe.daemon.ledger.contract import ENDED_BADLY, Stamp
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.model import NO_FACTS, Resume, SatelliteState, StateFacts, Waits, WakePhase
from bentpipe.daemon.registry.sqlite import SqliteRegistry
from bentpipe.daemon.store import schema

KILLS = 12


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return lambda name: SqliteLedger(tmp_path / "books" / f"{name}.sqlite")


class TestContract(LedgerContract):
    """The suite that every ledger passes."""


async def test_kill_9_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    chance = random.Random(5)
    confirmed = 0
    for kill in range(1, KILLS + 1):
        with subprocess.Popen([*program("stores.ledger_child"), path], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            last = 0
            for _ in range(chance.randrange(1, 40)):
                last = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            last = max([last, *(int(line) for line in child.stdout if line.endswith("\n"))])
        confirmed += last
        reader = SqliteLedger(path, read_only=True)
        found = await reader.intervals(*ALWAYS)
        await reader.aclose()
        check_laws(found, Stamp.now().wall_us)
        recorded = [interval for interval in found if interval.cause.isdigit()]
        assert confirmed <= len(recorded) <= confirmed + len(KEYS) * kill
        confirmed = len(recorded)
        assert sum(interval.cause == ENDED_BADLY for interval in found) == len(KEYS) * (kill - 1)


async def test_a_file_of_version_1_keeps_its_books_and_gets_a_registry(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript((Path(__file__).parent / "version_1.sql").read_text())
    connection.close()
    reader = SqliteLedger(path, read_only=True)
    before = await reader.intervals(*ALWAYS)
    assert [interval.state.value for interval in before] == ["sleep", "starting", "operational"]
    assert before[1].facts.waits.clients == 3
    registry = SqliteRegistry(path)
    assert await registry.tokens() == ()
    assert await registry.satellites() == ()
    await registry.begin_generation(A, after=0, owner="ci", at_us=1)
    assert await reader.intervals(*ALWAYS) == before
    await registry.aclose()
    await reader.aclose()
    clock = Clock()
    clock.advance(100)
    writer = Writer(SqliteLedger(path), clock)
    await writer.ledger.begin([A], clock.now())
    found = await writer.ledger.intervals(*ALWAYS)
    check_laws(found, clock.wall_us)
    assert found[:2] == before[:2]
    assert [(interval.state.value, interval.cause) for interval in found[3:]] == [("unknown", ENDED_BADLY)]
    await writer.ledger.aclose()


async def test_a_reader_beside_the_writer(tmp_path: Path, shelf: Shelf) -> None:
    writer = Writer(shelf("both"), Clock())
    reader = SqliteLedger(tmp_path / "books" / "both.sqlite", read_only=True)
    with pytest.raises(StoreError, match="unable to open"):
        await reader.intervals(*ALWAYS)
    await writer.ledger.begin([A], writer.clock.now())
    for number, state in enumerate((SatelliteState.SLEEP, SatelliteState.STARTING), start=2):
        await writer.move(A, state)
        assert len(await reader.intervals(*ALWAYS)) == number
    with pytest.raises(StoreError, match="readonly"):
        await reader.begin([A], writer.clock.now())
    await writer.ledger.aclose()
    assert len(await reader.intervals(*ALWAYS)) == 3
    await reader.aclose()


async def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    text, other, newer = (tmp_path / name for name in ("text", "other", "newer"))
    text.write_bytes(b"not a database, but long enough to be looked at: " * 40)
    for path, statement in ((other, "CREATE TABLE theirs (x)"), (newer, "PRAGMA user_version = 999")):
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.close()
    for path, words in ((text, "not a database"), (other, "something else"), (newer, "version 999")):
        before = path.read_bytes()
        ledger = SqliteLedger(path)
        with pytest.raises(StoreUnusable, match=words):
            await ledger.begin([A], Clock().now())
        await ledger.aclose()
        assert path.read_bytes() == before


async def test_a_ledger_that_failed_works_as_soon_as_it_can(tmp_path: Path) -> None:
    (tmp_path / "folder").touch()
    ledger = SqliteLedger(tmp_path / "folder" / "ledger.sqlite")
    with pytest.raises(StoreError):
        await ledger.begin([A], Clock().now())
    (tmp_path / "folder").unlink()
    await ledger.begin([A], Clock().now())
    await ledger.aclose()


async def test_an_older_file_is_brought_forward_or_left_as_it_was(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    writer = Writer(shelf("old"), clock)
    await writer.ledger.begin([A], clock.now())
    await writer.move(A, SatelliteState.SLEEP)
    await writer.ledger.aclose()
    added = ("ALTER TABLE interval ADD COLUMN host TEXT NOT NULL DEFAULT ''", "CREATE TABLE more (x TEXT) STRICT")
    known = schema.MIGRATIONS
    for broken, works in (((*added, "no SQL"), False), (added, True)):
        monkeypatch.setattr(schema, "MIGRATIONS", (*known, broken))
        again = Writer(shelf("old"), clock)
        if works:
            await again.ledger.begin([A], clock.now())
            await again.move(A, SatelliteState.FAILED)
            check_laws(await again.ledger.intervals(*ALWAYS))
        else:
            with pytest.raises(StoreError, match="syntax error"):
                await again.ledger.begin([A], clock.now())
        await again.ledger.aclose()
    monkeypatch.setattr(schema, "MIGRATIONS", known)
    with pytest.raises(StoreUnusable, match=f"version {len(known) + 1}"):
        await shelf("old").begin([A], clock.now())


OLDER_ROWS = """
    INSERT INTO satellite VALUES (1, 'acme', 'a');
    INSERT INTO life VALUES (1, 'a run', 2, 1700000000000000, 5000000, 'boot-0');
    INSERT INTO interval (satellite, state, from_us, from_boot_us, from_boot_id, to_us, elapsed_us, cause, who, phases,
        clients, waited_s, waited_longest_s, resume)
    VALUES (1, 'starting', 1699999999000000, 4000000, 'boot-0', 1700000000000000, 1000000, 'came', 'ci', '{"boot": 2.5}',
        2, 3.0, 2.0, 'cold');
    INSERT INTO interval (satellite, state, from_us, from_boot_us, from_boot_id, cause, who)
    VALUES (1, 'operational', 1700000000000000, 5000000, 'boot-0', 'ready', '');
"""


async def test_facts_of_an_older_file_are_read_from_their_columns(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "books" / "older.sqlite"
    path.parent.mkdir()
    with edited(path) as db:
        for statement in itertools.chain.from_iterable(schema.MIGRATIONS[: schema.FACTS_VERSION - 1]):
            db.execute(statement)
        db.executescript(OLDER_ROWS)
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {schema.FACTS_VERSION - 1}")
    db.close()
    expected = StateFacts(((WakePhase.BOOT, 2.5),), Waits(2, 3.0, 2.0), Resume.COLD)
    reader = SqliteLedger(path, read_only=True)
    assert [interval.facts for interval in await reader.intervals(*ALWAYS)] == [expected, NO_FACTS]
    await reader.aclose()
    clock = Clock()
    clock.advance(1)
    writer = Writer(shelf("older"), clock)
    await writer.ledger.begin([A], clock.now())
    waits = StateFacts(waits=Waits(1, 1.0, 1.0))
    await writer.ledger.record([writer.change(A, SatelliteState.STARTING, facts=waits)])
    found = [interval.facts for interval in await writer.ledger.intervals(*ALWAYS)]
    assert found == [expected, NO_FACTS, waits, NO_FACTS]
    await writer.ledger.aclose()
