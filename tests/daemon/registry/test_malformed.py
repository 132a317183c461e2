"""A token or a satellite whose columns hold anything is left out and told once; all others count as before."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from beds.contracts.accounts import key as stored_key
from beds.contracts.ledger import A, B
from beds.stores.edited import edited
from beds.stores.spoiled_rows import JUNK, columns, is_ours, loosen, put, spoil, spoilings
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.registry.accounts import StoredOrg, StoredRevocation
from bentpipe.daemon.registry.contract import StoredToken
from bentpipe.daemon.registry.dynamodb import DynamoRegistry
from bentpipe.daemon.registry.dynamodb_accounts import DynamoAccountStore
from bentpipe.daemon.registry.sqlite import SqliteRegistry
from bentpipe.daemon.registry.sqlite_accounts import SqliteAccountStore
from bentpipe.daemon.store.dynamodb_table import Table

if TYPE_CHECKING:
    from beds.stores.spoiled_rows import Spoiling

GOOD = StoredToken("good", f"sha256:{'1' * 64}", ("acme/*",), 5)
BAD = StoredToken("bad", f"sha256:{'2' * 64}", ("acme/*",), 6, ("use", "manage"), "somebody", 7)
OPTIONAL = ("scopes", "principal", "expires_us")
"""Columns that rows of an older daemon do not have."""
SCOPES = ("{}", "null", '"use"', "[]", "[1]", '["all"]', '["use", null]', "[[]]", "9" * 5000)
GRANTS = ("{}", "null", '"acme/*"', "[]", "[1]", '["acme"]', '["acme/*", null]', '["a b/*"]', "[[]]", "9" * 5000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


async def test_tokens_in_sqlite(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry, admission = SqliteRegistry(file), Admission([])
    for token in (GOOD, BAD):
        await registry.add_token(token)
    with edited(file) as db:
        loosen(db, "token")
        before = columns(db, "token")
    more = {"grants": (*JUNK, *GRANTS), "scopes": (*JUNK, *SCOPES)}
    for column, junk in {**dict.fromkeys(before, JUNK), **more}.items():
        for value in junk:
            if (column in ("created_us", "expires_us") and type(value) is int) or (
                (column, value) in (("name", "x"), ("name", "sha256:"), ("principal", "x"))
            ):
                continue
            if column in ("principal", "expires_us") and value is None:
                continue
            with edited(file) as db:
                put(db, "token", column, value, "rowid = 2")
            caplog.clear()
            for _ in range(3):
                tokens = await registry.tokens()
                assert tokens == (GOOD,), (column, value)
                admission.replace_stored(tokens)
            told = [record for record in caplog.records if record.getMessage() == "a row is left out"]
            assert len(told) <= 1, (column, value)
            with edited(file) as db:
                put(db, "token", column, before[column], "rowid = 2")
            assert await registry.tokens() == (BAD, GOOD)
    db.close()
    await registry.aclose()


async def test_registrations_in_sqlite(file: Path) -> None:
    registry = SqliteRegistry(file)
    for key in (A, B):
        await registry.begin_generation(key, after=0, owner="", at_us=1)
    with edited(file) as db:
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
            with edited(file) as db:
                put(db, "registration", column, value, "name = 'b'")
            assert [each.key for each in await registry.satellites()] == [A], (column, value)
            with pytest.raises(StoreError):
                await registry.begin_generation(B, after=7, owner="", at_us=1)
            assert (await registry.begin_generation(A, after=7, owner="", at_us=1)).key == A
            with edited(file) as db:
                put(db, "registration", column, before[column], "name = 'b'")
    assert [each.key for each in await registry.satellites()] == [A, B]
    db.close()
    await registry.aclose()


async def test_tokens_in_dynamodb(table: Table) -> None:
    registry = DynamoRegistry(table)
    for token in (GOOD, BAD):
        await registry.add_token(token)
    item = await table.get("TOKEN", "bad")
    more: list[Spoiling] = [
        ("grants", {"L": []}),
        ("grants", {"L": [{"N": "1"}]}),
        ("token_hash", {"S": "x"}),
        ("scopes", {"L": []}),
        ("scopes", {"L": [{"S": "all"}]}),
        ("principal", {"S": ""}),
    ]
    for name, value in [*spoilings(item), *more]:
        if name == "token_name" or (name in OPTIONAL and value is None):
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
    more: list[Spoiling] = [("generation", {"N": "1.5"}), ("generation", {"N": "-1"})]
    for name, value in [*spoilings(item), *more]:
        spoil(table, item, name, value)
        assert [each.key for each in await registry.satellites()] == [A], (name, value)
        with pytest.raises(StoreError):
            await registry.begin_generation(B, after=7, owner="", at_us=1)


async def test_accounts_in_sqlite(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SqliteAccountStore(file)
    good, bad = stored_key(5), stored_key(6)
    await store.put_org(StoredOrg("good", 1))
    await store.put_key(good)
    await store.put_revocation(StoredRevocation("rule:good", 1, None))
    whole = await store.accounts()
    await store.put_org(StoredOrg("worse", 1, 2))
    await store.put_key(bad)
    await store.put_revocation(StoredRevocation("rule:worse", 1, 2))
    for table, junk_key in (("org", "name"), ("signing_key", "key_id"), ("revocation", "subject")):
        with edited(file) as db:
            loosen(db, table)
            before = columns(db, table)
        for column in before:
            for value in JUNK:
                if (is_ours(value, before[column]) and type(value) is int) or (
                    value is None and column in ("revoked_us", "until_us") and table != "signing_key"
                ):
                    continue
                if table == "org" and column == "name" and value == "x":
                    continue
                with edited(file) as db:
                    put(db, table, column, value, "rowid = 2")
                caplog.clear()
                for _ in range(3):
                    found = await store.accounts()
                    assert getattr(found, FIELDS[table]) == getattr(whole, FIELDS[table]), (table, column, value)
                told = [record for record in caplog.records if record.getMessage() == "a row is left out"]
                assert len(told) == 1, (column, value)
                with edited(file) as db:
                    put(db, table, column, before[column], "rowid = 2")
                await store.accounts()
        with edited(file) as db:
            db.execute(f"DELETE FROM {table} WHERE {junk_key} != ''")
        db.close()
    await store.aclose()


FIELDS = {"org": "orgs", "signing_key": "keys", "revocation": "revocations"}


async def test_a_key_under_the_id_of_another_is_left_out(file: Path) -> None:
    store = SqliteAccountStore(file)
    one, other = stored_key(5), stored_key(6)
    await store.put_key(one)
    with edited(file) as db:
        db.execute("UPDATE signing_key SET public_pem = ?", (other.public_pem,))
    db.close()
    assert (await store.accounts()).keys == ()
    await store.aclose()


async def test_accounts_in_dynamodb(table: Table) -> None:
    store = DynamoAccountStore(table)
    await store.put_org(StoredOrg("good", 1))
    whole = await store.accounts()
    await store.put_org(StoredOrg("worse", 1, 2))
    await store.put_key(stored_key(6))
    await store.put_revocation(StoredRevocation("rule:worse", 1, 2))
    for item in await table.query("ACCOUNT"):
        if item["sk"]["S"] == "ORG#good":
            continue
        for name, value in spoilings(item):
            if value is None and name in ("revoked_us", "until_us") and not item["sk"]["S"].startswith("KEY#"):
                continue
            spoil(table, item, name, value)
            found = await store.accounts()
            await store.forget_ended(now_us=0)
            kind = item["sk"]["S"].partition("#")[0]
            field = {"ORG": "orgs", "KEY": "keys", "REVOKED": "revocations"}[kind]
            assert getattr(found, field) == getattr(whole, field), (name, value)
        spoil(table, item, "until_us", item.get("until_us"))
