"""A token or a satellite whose columns hold anything is left out and told once; all others count as before."""

import sqlite3
from pathlib import Path

import pytest

from beds.contracts.ledger import A, B
from beds.stores.spoiled_rows import JUNK, columns, is_ours, loosen, put, spoil, spoilings
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.registry.contract import StoredToken
from bentpipe.daemon.registry.dynamodb import DynamoRegistry
from bentpipe.daemon.registry.sqlite import SqliteRegistry
from bentpipe.daemon.store.dynamodb_table import Table

GOOD = StoredToken("good", f"sha256:{'1' * 64}", ("acme/*",), 5)
BAD = StoredToken("bad", f"sha256:{'2' * 64}", ("acme/*",), 6)
GRANTS = ("{}", "null", '"acme/*"', "[]", "[1]", '["acme"]', '["acme/*", null]', '["a b/*"]', "[[]]", "9" * 5000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


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
