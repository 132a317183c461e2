"""`RegisteredStore` in the DynamoDB table: an item for each satellite, and one that counts the registrations.

Each registration decides by all items, and writes only if none has been written since it read them. Heartbeats do not
count: they change one attribute of one item, and a row that gives way to another is deleted only if it has had none since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.registry.registered import (
    NameTaken,
    RegisteredSatellite,
    RegistrationWish,
    place,
    registered_satellite,
)
from bentpipe.daemon.store.dynamodb_table import ConditionFailed, Table, given, given_number, key_of, number, text
from bentpipe.daemon.store.malformed import MalformedRows

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

    from bentpipe.daemon.store.dynamodb_table import Item

REGISTERED, VERSION, ALL, LAUNCHED = "REGISTERED", "REGISTERED-VERSION", "ALL", "LAUNCHED"
ATTEMPTS = 20
"""Between a look and a write another host may have registered a satellite: then both are done again. That is rare."""
NO: Item = {":no": {"N": "0"}}
"""No time and no count is less: `Table.put` wants a value in each condition."""
ABSENT = "attribute_not_exists(pk) OR created_us < :no"


class DynamoRegisteredStore:
    """`RegisteredStore` in the table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._malformed = MalformedRows("registered")

    async def satellites(self) -> tuple[RegisteredSatellite, ...]:
        """See RegisteredStore."""
        found = self._malformed.read(await self._table.query(REGISTERED), key_of, _satellite)
        return tuple(sorted(found, key=lambda each: each.key))

    async def register(self, wish: RegistrationWish) -> RegisteredSatellite:
        """See RegisteredStore."""
        key = str(wish.satellite.key)
        for _ in range(ATTEMPTS):
            seen = await self._table.get(VERSION, ALL)
            if await self._table.get(LAUNCHED, key):
                raise NameTaken(wish.satellite.key)
            placing = place(await self.satellites(), wish)
            writes = [
                self._next_version(seen),
                self._table.check(LAUNCHED, key, condition=ABSENT, values=NO),
                self._table.put(_item(placing.satellite)),
            ]
            if placing.evicted is not None:
                at: Item = {":at": {"N": str(placing.evicted.beat_us)}}
                writes.append(
                    self._table.remove(REGISTERED, str(placing.evicted.key), condition="beat_us = :at", values=at)
                )
            try:
                await self._table.transact(writes)
            except ConditionFailed:
                continue
            return placing.satellite
        raise StoreError("too many satellites register at once")

    async def beat(self, satellite: RegisteredSatellite, beat_us: int) -> bool:
        """See RegisteredStore."""
        values: Item = {":at": {"N": str(beat_us)}, ":hash": {"S": satellite.token_hash}}
        try:
            await self._table.update(
                *(REGISTERED, str(satellite.key), "SET beat_us = :at", values), condition="token_hash = :hash"
            )
        except ConditionFailed:
            return False
        return True

    async def remove(self, satellite: RegisteredSatellite) -> None:
        """See RegisteredStore."""
        this: Item = {":hash": {"S": satellite.token_hash}}
        try:
            await self._table.delete(REGISTERED, str(satellite.key), condition="token_hash = :hash", values=this)
        except ConditionFailed:
            return  # it is gone

    async def aclose(self) -> None:
        """See RegisteredStore."""

    def _next_version(self, seen: Item) -> TransactWriteItemTypeDef:
        """Count one more registration, unless there was one since the count was read."""
        item: Item = {
            "pk": {"S": VERSION},
            "sk": {"S": ALL},
            "registrations": {"N": str(number(seen, "registrations") + 1)},
        }
        if not seen:
            return self._table.put(item, condition="attribute_not_exists(pk) OR registrations < :no", values=NO)
        return self._table.put(item, condition="registrations = :seen", values={":seen": seen["registrations"]})


def _item(satellite: RegisteredSatellite) -> Item:
    return {
        "pk": {"S": REGISTERED},
        "sk": {"S": str(satellite.key)},
        "host": {"S": satellite.address.host},
        "port": {"N": str(satellite.address.port)},
        "platform": {"S": satellite.platform},
        "version": {"S": satellite.version},
        "root_ca": {"S": satellite.root_ca},
        "principal": {"S": satellite.principal},
        "token_hash": {"S": satellite.token_hash},
        "created_us": {"N": str(satellite.created_us)},
        "beat_us": {"N": str(satellite.beat_us)},
    }


def _satellite(item: Item) -> RegisteredSatellite:
    org, _, name = text(item, "sk").partition("/")
    texts = {name: given(item, name) for name in ("host", "platform", "version", "root_ca", "principal", "token_hash")}
    numbers = {name: given_number(item, name) for name in ("port", "created_us", "beat_us")}
    return registered_satellite({"org": org, "name": name, **texts, **numbers})
