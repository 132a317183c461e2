"""`Rows` in the DynamoDB table: each step is one conditional write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bentpipe.daemon.coordination.rows import Row, Written
from bentpipe.daemon.ids import row_key
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.store.dynamodb_table import ConditionFailed, Table, given, key_of, number, strings, text
from bentpipe.daemon.store.malformed import MalformedRow, MalformedRows

if TYPE_CHECKING:
    from bentpipe.daemon.store.dynamodb_table import Item

SK = "ROW"
STAY = "STAY"
"""Incarnations are called stays in the table, as the first version did."""

UNSEEN = "attribute_not_exists(version)"
SEEN = "version = :seen"


class DynamoRows:
    """`Rows` in the table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._malformed = MalformedRows("stay")

    async def read(self, key: SatelliteKey) -> Row:
        """See Rows."""
        return _row(await self._table.get(row_key(key), SK))

    async def take(self, key: SatelliteKey, *, owner: str, seen: str, version: str) -> Written:
        """See Rows."""
        values: Item = {
            ":owner": {"S": owner},
            ":version": {"S": version},
            ":one": {"N": "1"},
            **({":seen": {"S": seen}} if seen else {}),
        }
        change = "SET held_by = :owner, version = :version REMOVE closing ADD epoch :one"
        return await self._step(key, change, values, SEEN if seen else UNSEEN, version)

    async def renew(self, key: SatelliteKey, *, seen: str, version: str) -> Written:
        """See Rows."""
        values: Item = {":seen": {"S": seen}, ":version": {"S": version}}
        return await self._step(key, "SET version = :version", values, SEEN, version)

    async def close(self, key: SatelliteKey, *, seen: str, version: str, incarnation: str) -> Written:
        """See Rows."""
        values: Item = {
            ":seen": {"S": seen},
            ":version": {"S": version},
            ":closing": {"BOOL": True},
            ":stay": {"S": incarnation},
            ":one": {"N": "1"},
        }
        nobody = "attribute_not_exists(stays) OR (size(stays) = :one AND contains(stays, :stay))"
        change = "SET version = :version, closing = :closing REMOVE stays"
        return await self._step(key, change, values, f"{SEEN} AND ({nobody})", version)

    async def release(self, key: SatelliteKey, *, seen: str) -> Written:
        """See Rows."""
        return await self._step(key, "REMOVE held_by, version, closing", {":seen": {"S": seen}}, SEEN, None)

    async def enter(self, key: SatelliteKey, incarnation: str) -> Written:
        """See Rows."""
        return await self._step(
            key, "ADD stays :stay", {":stay": {"SS": [incarnation]}}, "attribute_not_exists(closing)", None
        )

    async def leave(self, key: SatelliteKey, incarnations: frozenset[str]) -> None:
        """See Rows."""
        await self._table.update(row_key(key), SK, "DELETE stays :stays", {":stays": {"SS": sorted(incarnations)}})

    async def begin_incarnation(self, incarnation: str, version: str) -> None:
        """See Rows."""
        await self._table.update(STAY, incarnation, "SET version = :version", {":version": {"S": version}})

    async def beat(self, incarnation: str, version: str) -> bool:
        """See Rows."""
        try:
            change = "SET version = :version"
            values: Item = {":version": {"S": version}}
            await self._table.update(STAY, incarnation, change, values, condition="attribute_exists(version)")
        except ConditionFailed:
            return False
        return True

    async def incarnations(self) -> dict[str, str]:
        """See Rows."""
        # One whose version cannot be read counts as alive, for ever: no satellite that it has entered is put to sleep.
        items = await self._table.query(STAY)
        self._malformed.read(items, key_of, lambda item: given(item, "version"))
        return {text(item, "sk"): text(item, "version") for item in items}

    async def expire(self, incarnation: str, seen: str) -> bool:
        """See Rows."""
        try:
            await self._table.delete(STAY, incarnation, condition=f"{UNSEEN} OR {SEEN}", values={":seen": {"S": seen}})
        except ConditionFailed:
            return False
        return True

    async def _step(self, key: SatelliteKey, change: str, values: Item, condition: str, version: str | None) -> Written:
        """Carry out a step that makes the row's version `version`. If it is that already, an earlier attempt has done it."""
        try:
            return Written(True, _row(await self._table.update(row_key(key), SK, change, values, condition=condition)))
        except ConditionFailed as exc:
            row = _row(exc.item)
            return Written(version is not None and row.version == version, row)


def _row(item: Item) -> Row:
    """Read a satellite's row. Raises MalformedRow: then no host takes the turn, and the satellite is not put to sleep."""
    for name, kind in (("held_by", "S"), ("version", "S"), ("epoch", "N"), ("closing", "BOOL"), ("stays", "SS")):
        if name in item and kind not in item[name]:
            raise MalformedRow(f"{key_of(item)}: {name} is of another type: {item[name]}")
    return Row(
        text(item, "held_by"),
        text(item, "version"),
        number(item, "epoch"),
        item.get("closing", {}).get("BOOL", False),
        strings(item, "stays"),
    )
