"""`AccountStore` in the DynamoDB table: one partition for what hosts read every two seconds, another for used ids."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from bentpipe.daemon.registry.accounts import (
    StoredAccounts,
    StoredKey,
    StoredOrg,
    StoredRevocation,
    stored_key,
    stored_org,
    stored_revocation,
)
from bentpipe.daemon.registry.dynamodb import cut_item
from bentpipe.daemon.store.dynamodb_table import ConditionFailed, Table, given, given_number, key_of
from bentpipe.daemon.store.malformed import MalformedRow, MalformedRows

if TYPE_CHECKING:
    from bentpipe.daemon.store.dynamodb_table import Item

ACCOUNT, USED_ID = "ACCOUNT", "USED-ID"
ORG, KEY, REVOKED = "ORG#", "KEY#", "REVOKED#"
"""Beginnings of the sort keys in the partition ACCOUNT: one query reads all three."""
NONCE_BYTES = 8
"""Tells the caller of `use_once` from all others, through the repeats of its call."""


class DynamoAccountStore:
    """`AccountStore` in the table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._malformed = {
            ORG: MalformedRows("org"),
            KEY: MalformedRows("signing key"),
            REVOKED: MalformedRows("revocation"),
        }

    async def accounts(self) -> StoredAccounts:
        """See AccountStore."""
        items = await self._table.query(ACCOUNT)
        of = {begin: [item for item in items if item["sk"].get("S", "").startswith(begin)] for begin in self._malformed}
        return StoredAccounts(
            tuple(self._malformed[ORG].read(of[ORG], key_of, _org)),
            tuple(self._malformed[KEY].read(of[KEY], key_of, _key)),
            tuple(self._malformed[REVOKED].read(of[REVOKED], key_of, _revocation)),
        )

    async def put_org(self, org: StoredOrg, *, cut_at_us: int | None = None) -> None:
        """See AccountStore."""
        revoked: Item = {} if org.revoked_us is None else {"revoked_us": {"N": str(org.revoked_us)}}
        item: Item = {"created_us": {"N": str(org.created_us)}, **revoked}
        await self._put(ORG + org.name, item, f"org:{org.name}", cut_at_us)

    async def put_key(self, key: StoredKey) -> None:
        """See AccountStore."""
        item: Item = {"public_pem": {"S": key.public_pem}, "until_us": {"N": str(key.until_us)}}
        await self._put(KEY + key.key_id, item, "", None)

    async def put_revocation(self, revocation: StoredRevocation, *, cut_at_us: int | None = None) -> None:
        """See AccountStore."""
        until: Item = {} if revocation.until_us is None else {"until_us": {"N": str(revocation.until_us)}}
        item: Item = {"at_us": {"N": str(revocation.at_us)}, **until}
        await self._put(REVOKED + revocation.subject, item, revocation.subject, cut_at_us)

    async def use_once(self, used_id: str, *, until_us: int) -> bool:
        """See AccountStore."""
        # `Table` repeats a call whose answer was lost: the first attempt may have been written, and is then found here.
        values: Item = {":until": {"N": str(until_us)}, ":by": {"S": secrets.token_hex(NONCE_BYTES)}}
        change, condition = "SET until_us = :until, used_by = :by", "attribute_not_exists(pk) OR used_by = :by"
        try:
            await self._table.update(USED_ID, used_id, change, values, condition=condition)
        except ConditionFailed:
            return False
        return True

    async def forget_ended(self, *, now_us: int) -> None:
        """See AccountStore."""
        for partition in (ACCOUNT, USED_ID):
            for item in await self._table.query(partition):
                if "until_us" in item and _ended(item, now_us):
                    await self._table.delete(partition, given(item, "sk"))

    async def aclose(self) -> None:
        """See AccountStore."""

    async def _put(self, sort_key: str, body: Item, subject: str, cut_at_us: int | None) -> None:
        writes = [self._table.put({"pk": {"S": ACCOUNT}, "sk": {"S": sort_key}, **body})]
        if cut_at_us is not None:
            writes.append(self._table.put(cut_item(subject, cut_at_us)))
        await self._table.transact(writes)


def _ended(item: Item, now_us: int) -> bool:
    try:
        return given_number(item, "until_us") < now_us
    except MalformedRow:
        return False  # `accounts` tells it in the log; a used id that cannot be read stays used


def _name(item: Item, begin: str) -> str:
    return given(item, "sk").removeprefix(begin)


def _optional(item: Item, name: str) -> int | None:
    return given_number(item, name) if name in item else None


def _org(item: Item) -> StoredOrg:
    return stored_org(_name(item, ORG), given_number(item, "created_us"), _optional(item, "revoked_us"))


def _key(item: Item) -> StoredKey:
    return stored_key(_name(item, KEY), given(item, "public_pem"), given_number(item, "until_us"))


def _revocation(item: Item) -> StoredRevocation:
    return stored_revocation(_name(item, REVOKED), given_number(item, "at_us"), _optional(item, "until_us"))
