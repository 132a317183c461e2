"""`IdentityStore` in the DynamoDB table: an item for each satellite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bentpipe.daemon.registry.identities import StoredIdentity, columns_of, stored_identity
from bentpipe.daemon.store.dynamodb_table import ConditionFailed, Table, given, given_number, key_of, text
from bentpipe.daemon.store.malformed import MalformedRows

if TYPE_CHECKING:
    from bentpipe.daemon.model import SatelliteKey
    from bentpipe.daemon.store.dynamodb_table import Item

IDENTITY = "IDENTITY"


class DynamoIdentityStore:
    """`IdentityStore` in the table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._malformed = MalformedRows("identity")

    async def identities(self) -> tuple[StoredIdentity, ...]:
        """See IdentityStore."""
        found = self._malformed.read(await self._table.query(IDENTITY), key_of, _identity)
        return tuple(sorted(found, key=lambda each: each.key))

    async def identity(self, key: SatelliteKey) -> StoredIdentity | None:
        """See IdentityStore."""
        item = await self._table.get(IDENTITY, str(key))
        return _identity(item) if item else None

    async def put(self, row: StoredIdentity) -> bool:
        """See IdentityStore."""
        expected, enrolled = columns_of(row)
        item: Item = {
            "pk": {"S": IDENTITY},
            "sk": {"S": str(row.key)},
            "version": {"N": str(row.version)},
            **({} if expected is None else {"expected": {"S": expected}}),
            **({} if enrolled is None else {"enrolled": {"S": enrolled}}),
        }
        # A version below 1 exists in no row, so that a new row needs a place without one.
        seen: Item = {":seen": {"N": str(row.version - 1)}}
        condition = "version = :seen" if row.version > 1 else "attribute_not_exists(pk) OR version = :seen"
        try:
            await self._table.transact([self._table.put(item, condition=condition, values=seen)])
        except ConditionFailed as exc:
            return exc.item == item  # an attempt whose answer was lost has written it
        return True

    async def aclose(self) -> None:
        """See IdentityStore."""


def _identity(item: Item) -> StoredIdentity:
    org, _, name = text(item, "sk").partition("/")
    expected, enrolled = (given(item, each) if each in item else None for each in ("expected", "enrolled"))
    return stored_identity(org, name, given_number(item, "version"), expected, enrolled)
