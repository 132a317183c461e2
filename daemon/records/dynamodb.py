"""Records in the DynamoDB table that the hosts of a fleet share: each host finds the records of all.

A record is one item. Its partition is a stretch of some 17 minutes, by the beginning of its id, and its sort key is the id.
The table removes an item at its time `expires` (DynamoDB's time to live), which `bentpipe store init` turns on. Nothing is
written to a table that would never remove it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bentpipe.daemon.errors import StoreUnusable
from bentpipe.daemon.records.contract import StoredRecord, read_record
from bentpipe.daemon.records.ids import EPOCH_S, IdMaker
from bentpipe.daemon.store.dynamodb_table import EXPIRES, Table, given, given_number, key_of
from bentpipe.daemon.store.malformed import MalformedRows

if TYPE_CHECKING:
    from bentpipe.daemon.store.dynamodb_table import Item

PARTITION_CHARS = 4
"""Of the id's six characters of time: 1,024 s."""
PARTITION_S = 1 << 5 * (6 - PARTITION_CHARS)
PARTITIONS_READ = 32
"""By `newest`: nine hours back."""


def _partition(connection_id: str) -> str:
    return f"CONNECTION#{connection_id[:PARTITION_CHARS]}"


class DynamoRecords:
    """`RecordStore` in the table: records stay for `keep_s` seconds."""

    def __init__(self, table: Table, keep_s: float, *, wall: Callable[[], float] = time.time) -> None:
        self._table = table
        self._keep_s = keep_s
        self._wall = wall
        self._expires = False

    async def check(self) -> None:
        """See RecordStore: a table without time to live would keep records for ever."""
        if not self._expires:
            if not await self._table.expires():
                raise StoreUnusable(
                    f"DynamoDB table {self._table.name} has no time to live, so records of connections would stay for ever: "
                    "`bentpipe store init` turns it on"
                )
            self._expires = True

    def bound(self, keep: int, keep_s: float) -> None:
        """See RecordStore. Records that are kept already stay as long as they were to."""
        self._keep_s = keep_s

    async def add(self, records: Sequence[StoredRecord]) -> None:
        """See RecordStore."""
        await self.check()
        await self._table.put_all([self._item(each) for each in records])

    async def find(self, connection_id: str) -> StoredRecord | None:
        """See RecordStore."""
        item = await self._table.get(_partition(connection_id), connection_id)
        return next(iter(self._readable([item] if item else [])), None)

    async def newest(self, most: int, *, satellite: str = "", principal: str = "") -> list[StoredRecord]:
        """See RecordStore."""
        found: list[StoredRecord] = []
        now_s = self._wall()
        for back in range(PARTITIONS_READ):
            at_s = max(EPOCH_S, now_s - back * PARTITION_S)
            items = await self._table.query(_partition(IdMaker("", lambda at_s=at_s: at_s).make()))  # type: ignore[misc]
            read = self._readable(items)
            found += [
                each
                for each in sorted(read, key=lambda each: each.at_us, reverse=True)
                if satellite in ("", each.satellite) and principal in ("", each.principal)
            ]
            if len(found) >= most:
                break
        return found[:most]

    async def aclose(self) -> None:
        """See RecordStore."""

    def _item(self, record: StoredRecord) -> Item:
        return {
            "pk": {"S": _partition(record.id)},
            "sk": {"S": record.id},
            "at_us": {"N": str(record.at_us)},
            "host": {"S": record.host},
            "satellite": {"S": record.satellite},
            "principal": {"S": record.principal},
            "fields": {"S": record.to_json()},
            EXPIRES: {"N": str(int(self._wall() + self._keep_s))},
        }

    @staticmethod
    def _readable(items: Sequence[Item]) -> list[StoredRecord]:
        def parse(item: Item) -> StoredRecord:
            texts = {name: given(item, name) for name in ("sk", "host", "satellite", "principal", "fields")}
            at_us = given_number(item, "at_us")
            return read_record(
                (texts["sk"], at_us, *(texts[name] for name in ("host", "satellite", "principal", "fields")))
            )

        return MalformedRows("record").read(items, key_of, parse)
