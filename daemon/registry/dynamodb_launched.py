"""`LaunchedStore` in the DynamoDB table: an item for each satellite, and one for each org that counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.registry.dynamodb_registered import ABSENT, LAUNCHED, NO, REGISTERED
from bentpipe.daemon.registry.launched import (
    LaunchedSatellite,
    OrgFull,
    SatelliteChange,
    launched_satellite,
    satellite_change,
)
from bentpipe.daemon.registry.registered import NameTaken
from bentpipe.daemon.store.dynamodb_table import ConditionFailed, Table, given, given_number, key_of, number, text
from bentpipe.daemon.store.malformed import MalformedRows

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef, TransactWriteItemTypeDef

    from bentpipe.daemon.store.dynamodb_table import Item

COUNT = "LAUNCHED-COUNT"
ATTEMPTS = 20
"""Between a look and a write another host may have changed the org's count: then both are done again. Launches are rare."""


class DynamoLaunchedStore:
    """`LaunchedStore` in the table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._malformed = MalformedRows("launched")

    async def satellites(self) -> tuple[LaunchedSatellite, ...]:
        """See LaunchedStore."""
        found = self._malformed.read(await self._table.query(LAUNCHED), key_of, _satellite)
        return tuple(sorted(found, key=lambda each: each.key))

    async def add(self, satellite: LaunchedSatellite, *, most: int) -> LaunchedSatellite:
        """See LaunchedStore."""
        org = satellite.key.org
        for _ in range(ATTEMPTS):
            # An attempt whose answer was lost may have written it: then it is found here.
            known = await self._table.get(LAUNCHED, str(satellite.key))
            if known:
                return _satellite(known)
            if await self._table.get(REGISTERED, str(satellite.key)):
                raise NameTaken(satellite.key)
            counted = await self._table.get(COUNT, org)
            count = number(counted, "satellites")
            if count >= most:
                if await self._table.get(LAUNCHED, str(satellite.key)):
                    continue  # another has just taken the name, and the org's last place with it
                raise OrgFull(org, most)
            put = self._table.put(_item(satellite), condition=ABSENT, values=NO)
            unregistered = self._table.check(REGISTERED, str(satellite.key), condition=ABSENT, values=NO)
            try:
                await self._table.transact([put, unregistered, self._count(org, counted, count + 1)])
            except ConditionFailed:
                continue
            return satellite
        raise StoreError(f"too many changes of {org}'s satellites at once")

    async def find(self, key: SatelliteKey) -> LaunchedSatellite | None:
        """See LaunchedStore."""
        known = await self._table.get(LAUNCHED, str(key))
        return _satellite(known) if known else None

    async def begin_removal(self, satellite: LaunchedSatellite) -> None:
        """See LaunchedStore."""
        this: Item = {":yes": {"BOOL": True}, ":at": {"N": str(satellite.created_us)}}
        removing = "SET removing = :yes REMOVE becoming"
        try:
            await self._table.update(LAUNCHED, str(satellite.key), removing, this, condition="created_us = :at")
        except ConditionFailed:
            return  # it is gone

    async def begin_change(self, satellite: LaunchedSatellite, change: SatelliteChange) -> LaunchedSatellite | None:
        """See LaunchedStore."""
        condition = "created_us = :at AND #size = :size AND platform = :platform AND attribute_not_exists(removing)"
        values: Item = {
            ":at": {"N": str(satellite.created_us)},
            ":size": {"S": satellite.size},
            ":platform": {"S": satellite.platform},
            ":change": _change_value(change),
        }
        try:
            made = await self._table.update(
                *(LAUNCHED, str(satellite.key), "SET becoming = :change", values),
                condition=f"{condition} AND (attribute_not_exists(becoming) OR becoming = :change)",
                names=("size",),
            )
        except ConditionFailed as exc:
            return _satellite(exc.item) if exc.item else None
        return _satellite(made)

    async def end_change(self, satellite: LaunchedSatellite, change: SatelliteChange, *, done: bool) -> bool:
        """See LaunchedStore."""
        values: Item = {":at": {"N": str(satellite.created_us)}, ":change": _change_value(change)}
        becomes = "REMOVE becoming"
        if done:
            becomes = f"SET #size = :size, platform = :platform {becomes}"
            values = {**values, ":size": {"S": change.size}, ":platform": {"S": change.platform}}
        try:
            await self._table.update(
                *(LAUNCHED, str(satellite.key), becomes, values),
                condition="created_us = :at AND becoming = :change",
                names=("size",) if done else (),
            )
        except ConditionFailed:
            return False
        return True

    async def remove(self, satellite: LaunchedSatellite) -> None:
        """See LaunchedStore."""
        org, at = satellite.key.org, str(satellite.created_us)
        for _ in range(ATTEMPTS):
            known = await self._table.get(LAUNCHED, str(satellite.key))
            if not known or known.get("created_us", {}).get("N") != at:
                return
            counted = await self._table.get(COUNT, org)
            gone = self._table.remove(
                LAUNCHED, str(satellite.key), condition="created_us = :at", values={":at": {"N": at}}
            )
            try:
                await self._table.transact([gone, self._count(org, counted, number(counted, "satellites") - 1)])
            except ConditionFailed:
                continue
            return
        raise StoreError(f"too many changes of {org}'s satellites at once")

    async def aclose(self) -> None:
        """See LaunchedStore."""

    def _count(self, org: str, seen: Item, count: int) -> TransactWriteItemTypeDef:
        """Write the org's count, unless it has changed since it was seen."""
        item: Item = {"pk": {"S": COUNT}, "sk": {"S": org}, "satellites": {"N": str(max(count, 0))}}
        if not seen:
            return self._table.put(item, condition="attribute_not_exists(pk) OR satellites < :no", values=NO)
        return self._table.put(item, condition="satellites = :seen", values={":seen": seen["satellites"]})


def _item(satellite: LaunchedSatellite) -> Item:
    return {
        "pk": {"S": LAUNCHED},
        "sk": {"S": str(satellite.key)},
        "size": {"S": satellite.size},
        "platform": {"S": satellite.platform},
        "principal": {"S": satellite.principal},
        "created_us": {"N": str(satellite.created_us)},
    }


def _satellite(item: Item) -> LaunchedSatellite:
    org, _, name = text(item, "sk").partition("/")
    return launched_satellite(
        *(org, name, given(item, "size"), given(item, "platform"), given(item, "principal")),
        *(given_number(item, "created_us"), "removing" in item, _change(item)),
    )


def _change(item: Item) -> SatelliteChange | None:
    if "becoming" not in item:
        return None
    change = item["becoming"].get("M", {})
    return satellite_change(
        *(given(change, "size"), given(change, "platform"), "replace" in change, given_number(change, "at_us"))
    )


def _change_value(change: SatelliteChange) -> AttributeValueTypeDef:
    replace: Item = {"replace": {"BOOL": True}} if change.replace else {}
    size, platform, at_us = {"S": change.size}, {"S": change.platform}, {"N": str(change.at_us)}
    return {"M": {"size": size, "platform": platform, "at_us": at_us, **replace}}
