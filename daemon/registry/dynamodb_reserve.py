"""`ReserveStore` in the DynamoDB table: an item for each place that has a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bentpipe.daemon.ids import reserve_place
from bentpipe.daemon.registry.reserve import ReservePlace, StoredSpare, facts_of, stored_spare
from bentpipe.daemon.store.dynamodb_table import ConditionFailed, Table, given, given_number, key_of, text
from bentpipe.daemon.store.malformed import MalformedRow, MalformedRows

if TYPE_CHECKING:
    from bentpipe.daemon.store.dynamodb_table import Item

RESERVE = "RESERVE"


class DynamoReserveStore:
    """`ReserveStore` in the table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._malformed = MalformedRows("reserve")

    async def spares(self) -> tuple[StoredSpare, ...]:
        """See ReserveStore."""
        found = self._malformed.read(await self._table.query(RESERVE), key_of, _spare)
        return tuple(sorted(found, key=lambda each: each.place))

    async def ids(self) -> frozenset[str]:
        """See ReserveStore."""
        return frozenset(text(each, "spare") for each in await self._table.query(RESERVE))

    async def put(self, row: StoredSpare) -> bool:
        """See ReserveStore."""
        item: Item = {
            "pk": {"S": RESERVE},
            "sk": {"S": _sort_key(row.place)},
            "spare": {"S": row.spare},
            "version": {"N": str(row.version)},
            "facts": {"S": facts_of(row)},
        }
        seen: Item = {":seen": {"N": str(row.version - 1)}, ":spare": {"S": row.spare}}
        # A version below 1 exists in no row, so that a new row needs a place without one.
        same = "version = :seen AND spare = :spare"
        condition = same if row.version > 1 else f"attribute_not_exists(pk) OR ({same})"
        try:
            await self._table.transact([self._table.put(item, condition=condition, values=seen)])
        except ConditionFailed as exc:
            return exc.item == item  # an attempt whose answer was lost has written it
        return True

    async def remove(self, row: StoredSpare) -> bool:
        """See ReserveStore."""
        seen: Item = {":seen": {"N": str(row.version)}, ":spare": {"S": row.spare}}
        condition = "attribute_not_exists(pk) OR (version = :seen AND spare = :spare)"
        try:
            await self._table.delete(RESERVE, _sort_key(row.place), condition=condition, values=seen)
        except ConditionFailed:
            return False
        return True

    async def aclose(self) -> None:
        """See ReserveStore."""


def _sort_key(place: ReservePlace) -> str:
    return reserve_place(place.size, place.platform, place.number)


def _spare(item: Item) -> StoredSpare:
    size, _, rest = text(item, "sk").partition("/")
    platform, _, number = rest.rpartition("/")
    if not number.isascii() or not number.isdigit():
        raise MalformedRow("sk does not end with the number of a place")
    return stored_spare(
        size, platform, int(number), given(item, "spare"), given_number(item, "version"), given(item, "facts")
    )
