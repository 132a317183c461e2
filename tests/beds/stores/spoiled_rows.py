"""Rows with a column that holds anything at all, in SQLite's file and in DynamoDB's table."""

import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bentpipe.daemon.store.dynamodb_table import Table

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef

    from bentpipe.daemon.store.dynamodb_table import Item

    Spoiling = tuple[str, AttributeValueTypeDef | None]
    """An attribute, and what it holds instead; None if it is missing."""

NOT_UTF8 = object()
"""Text in the file that is none."""
JUNK = (None, b"\xff\xfe", -1, 1 << 62, 1.5, "", "x", "sha256:", NOT_UTF8)


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


def is_ours(value: object, before: object) -> bool:
    """Junk that this column may well hold."""
    return value is not NOT_UTF8 and type(value) is type(before) and value != ""


WRONG: "tuple[AttributeValueTypeDef | None, ...]" = (
    None,
    {"S": ""},
    {"S": "x"},
    {"N": "1.5"},
    {"N": "-1"},
    {"B": b"\xff"},
    {"BOOL": True},
    {"NULL": True},
    {"L": []},
    {"L": [{"N": "1"}]},
    {"L": [{"S": "acme"}]},
    {"M": {}},
    {"SS": ["x"]},
)


def spoil(table: Table, item: "Item", name: str, value: "AttributeValueTypeDef | None") -> None:
    spoilt = {key: each for key, each in {**item, name: value}.items() if each is not None}
    table._use(lambda client: client.put_item(TableName=table.name, Item=spoilt))


def spoilings(item: "Item") -> Iterator["Spoiling"]:
    for name, before in item.items():
        for value in WRONG if name not in ("pk", "sk") else ():
            if value is None or value.keys() != before.keys():
                yield name, value
