"""Any column of one row holds anything: that row is left out and told once, and all others count as before."""

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from dynamodb_server import DynamoDbServer
from store_contract import ALWAYS

from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.coordination.dynamodb import DynamoRows
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.ledger.contract import Change, Ledger, Stamp
from bentpipe.daemon.ledger.dynamodb import DynamoLedger
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.registry.contract import StoredToken
from bentpipe.daemon.registry.dynamodb import DynamoRegistry
from bentpipe.daemon.registry.sqlite import SqliteRegistry
from bentpipe.daemon.store.dynamodb_table import Table
from bentpipe.daemon.store.malformed import TOLD_ROWS, MalformedRow, MalformedRows

A, B = SatelliteKey("acme", "a"), SatelliteKey("acme", "b")
GOOD = StoredToken("good", f"sha256:{'1' * 64}", ("acme/*",), 5)
BAD = StoredToken("bad", f"sha256:{'2' * 64}", ("acme/*",), 6)
NOT_UTF8 = object()
"""Text in the file that is none."""
JUNK = (None, b"\xff\xfe", -1, 1 << 62, 1.5, "", "x", "sha256:", NOT_UTF8)
GRANTS = ("{}", "null", '"acme/*"', "[]", "[1]", '["acme"]', '["acme/*", null]', '["a b/*"]', "[[]]", "9" * 5000)


def loosen(db: sqlite3.Connection, table: str) -> None:
    """Have the table as a program without our schema would have made it: no types, no checks."""
    known = db.execute(f"PRAGMA table_info({table})").fetchall()
    columns = [
        "id INTEGER PRIMARY KEY" if name == "id" else f"{name} DEFAULT {default or 'NULL'}"
        for _, name, _, _, default, _ in known
    ]
    db.execute(f"CREATE TABLE loose ({', '.join(columns)})")
    db.execute(f"INSERT INTO loose SELECT * FROM {table}")
    db.execute(f"DROP TABLE {table}")
    db.execute(f"ALTER TABLE loose RENAME TO {table}")


def put(db: sqlite3.Connection, table: str, column: str, value: object, where: str) -> None:
    value, what = (b"\xff", "CAST(? AS TEXT)") if value is NOT_UTF8 else (value, "?")
    assert db.execute(f"UPDATE {table} SET {column} = {what} WHERE {where}", (value,)).rowcount == 1


def columns(db: sqlite3.Connection, table: str) -> dict[str, object]:
    """Of the table's last row."""
    found = db.execute(f"SELECT * FROM {table} ORDER BY rowid DESC LIMIT 1")
    return dict(zip([each[0] for each in found.description], found.fetchone(), strict=True))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def is_ours(value: object, before: object) -> bool:
    """Junk that this column may well hold."""
    return value is not NOT_UTF8 and type(value) is type(before) and value != ""


async def test_tokens_in_sqlite(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry, admission = SqliteRegistry(file), Admission([])
    for token in (GOOD, BAD):
        await registry.add_token(token)
    with sqlite3.connect(file) as db:
        loosen(db, "token")
        before = columns(db, "token")
    for column, junk in {**dict.fromkeys(before, JUNK), "grants": (*JUNK, *GRANTS)}.items():
        for value in junk:
            if (column == "created_us" and type(value) is int) or (column == "name" and value in ("x", "sha256:")):
                continue
            with sqlite3.connect(file) as db:
                put(db, "token", column, value, "rowid = 2")
            caplog.clear()
            for _ in range(3):
                tokens = await registry.tokens()
                assert tokens == (GOOD,), (column, value)
                admission.replace_stored(tokens)
            told = [record for record in caplog.records if record.getMessage() == "a row is left out"]
            assert len(told) <= 1, (column, value)
            with sqlite3.connect(file) as db:
                put(db, "token", column, before[column], "rowid = 2")
            assert await registry.tokens() == (BAD, GOOD)
    db.close()
    await registry.aclose()


async def test_registrations_in_sqlite(file: Path) -> None:
    registry = SqliteRegistry(file)
    for key in (A, B):
        await registry.begin_generation(key, after=0, owner="", at_us=1)
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE kept AS SELECT * FROM registration")
        db.execute("DROP TABLE registration")
        db.execute(
            "CREATE TABLE registration "
            "(org, name, owner, generation, machine, created_us, forgotten, PRIMARY KEY (org, name))"
        )
        db.execute("INSERT INTO registration SELECT * FROM kept")
        before = columns(db, "registration")
    for column in ("owner", "generation", "machine", "created_us"):
        for value in JUNK:
            if (is_ours(value, before[column] or "") and value != -1) or (column, value) == ("machine", None):
                continue
            if (column in ("owner", "machine") and value == "") or (column, value) == ("created_us", -1):
                continue
            with sqlite3.connect(file) as db:
                put(db, "registration", column, value, "name = 'b'")
            assert [each.key for each in await registry.satellites()] == [A], (column, value)
            with pytest.raises(StoreError):
                await registry.begin_generation(B, after=7, owner="", at_us=1)
            assert (await registry.begin_generation(A, after=7, owner="", at_us=1)).key == A
            with sqlite3.connect(file) as db:
                put(db, "registration", column, before[column], "name = 'b'")
    assert [each.key for each in await registry.satellites()] == [A, B]
    db.close()
    await registry.aclose()


def change(serial: int, key: SatelliteKey, state: SatelliteState) -> Change:
    return Change(serial, key, state, Stamp.now(), "because")


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
    with sqlite3.connect(tmp_path / "first.sqlite") as db:
        for table in ("interval", "life"):
            loosen(db, table)
    db.close()
    whole = (tmp_path / "first.sqlite").read_bytes()
    table, where = {
        "open": ("interval", "satellite = 2 AND to_us IS NULL"),
        "past": ("interval", "satellite = 2 AND state = 'sleep'"),
        "life": ("life", "TRUE"),
    }[which]
    with sqlite3.connect(tmp_path / "first.sqlite") as db:
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
            with sqlite3.connect(file) as db:
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


def test_a_flood_of_bad_rows_is_told_in_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    def parse(row: int) -> int:
        if row:
            raise MalformedRow("no")
        return row

    rows = MalformedRows("t")
    assert rows.read(range(1000), lambda row: row, parse) == [0]
    assert len(caplog.records) == TOLD_ROWS + 1
    assert rows.read(range(1000), lambda row: row, parse) == [0]
    assert len(caplog.records) == TOLD_ROWS + 1, "a series is told once"
    rows.read([0], lambda row: row, parse)
    rows.read(range(3), lambda row: row, parse)
    assert len(caplog.records) == TOLD_ROWS + 3, "a new series is told"


# -- DynamoDB ---------------------------------------------------------------------------------------------------------

WRONG: tuple[Mapping[str, object] | None, ...] = (
    *(None, {"S": ""}, {"S": "x"}, {"N": "1.5"}, {"N": "-1"}, {"B": b"\xff"}, {"BOOL": True}, {"NULL": True}),
    *({"L": []}, {"L": [{"N": "1"}]}, {"L": [{"S": "acme"}]}, {"M": {}}, {"SS": ["x"]}),
)


@pytest.fixture(scope="module")
def server() -> Iterator[DynamoDbServer]:
    with DynamoDbServer() as server:
        yield server


@pytest.fixture
def table(server: DynamoDbServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Table:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    made = Table(f"table-{abs(hash(request.node.name))}", region="eu-central-1", endpoint=server.url)
    made.create_now()
    return made


def spoil(table: Table, item: Mapping[str, object], name: str, value: Mapping[str, object] | None) -> None:
    spoilt = {key: each for key, each in {**item, name: value}.items() if each is not None}
    table._use(lambda client: client.put_item(TableName=table.name, Item=spoilt))


def spoilings(item: Mapping[str, object]) -> Iterator[tuple[str, Mapping[str, object] | None]]:
    for name, before in item.items():
        for value in WRONG if name not in ("pk", "sk") else ():
            if value is None or value.keys() != before.keys():  # type: ignore[attr-defined]
                yield name, value


async def test_tokens_in_dynamodb(table: Table) -> None:
    registry = DynamoRegistry(table)
    for token in (GOOD, BAD):
        await registry.add_token(token)
    item = await table.get("TOKEN", "bad")
    for name, value in [
        *spoilings(item),
        ("grants", {"L": []}),
        ("grants", {"L": [{"N": "1"}]}),
        ("token_hash", {"S": "x"}),
    ]:
        if name == "token_name":
            continue  # its name is the key
        spoil(table, item, name, value)
        assert await registry.tokens() == (GOOD,), (name, value)
        assert await registry.revoke_token("bad"), (name, value)
        assert await registry.tokens() == (GOOD,)


async def test_registrations_in_dynamodb(table: Table) -> None:
    registry = DynamoRegistry(table)
    for key in (A, B):
        await registry.begin_generation(key, after=0, owner="", at_us=1)
    item = await table.get("SATELLITE", str(B))
    for name, value in [*spoilings(item), ("generation", {"N": "1.5"}), ("generation", {"N": "-1"})]:
        spoil(table, item, name, value)
        assert [each.key for each in await registry.satellites()] == [A], (name, value)
        with pytest.raises(StoreError):
            await registry.begin_generation(B, after=7, owner="", at_us=1)


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


async def test_coordination_rows_in_dynamodb(table: Table) -> None:
    rows = DynamoRows(table)
    for key in (A, B):
        assert (await rows.take(key, owner="o", seen="", version="v")).done
        assert (await rows.enter(key, "stay")).done
    item = await table.get(f"ROW#{B}", "ROW")
    for name, value in spoilings(item):
        spoil(table, item, name, value)
        if value is not None:
            with pytest.raises(StoreError):
                await rows.read(B)
        assert (await rows.read(A)).owner == "o"
    await rows.begin_stay("one", "v1")
    await rows.begin_stay("two", "v2")
    item = await table.get("STAY", "two")
    for name, value in spoilings(item):
        spoil(table, item, name, value)
        assert set(await rows.stays()) == {"one", "two"}, "it counts as alive"
