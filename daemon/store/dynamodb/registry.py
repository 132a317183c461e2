"""The registry in DynamoDB: see `bentpipe.daemon.store.registry`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bentpipe.daemon.model import MachineId, SatelliteKey
from bentpipe.daemon.store.dynamodb.table import ConditionFailed, Table, number, text
from bentpipe.daemon.store.registry import Registration, StoreConflict, StoredToken

if TYPE_CHECKING:
    from bentpipe.daemon.store.dynamodb.table import Item

SATELLITE = "SATELLITE"
TOKEN = "TOKEN"
TOKEN_HASH = "TOKEN-HASH"


class DynamoRegistry:
    """`Registry` in the table."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def tokens(self) -> tuple[StoredToken, ...]:
        """See Registry."""
        return tuple(_token(item) for item in await self._table.query(TOKEN))

    async def add_token(self, token: StoredToken) -> None:
        """See Registry."""
        # Repeated after a lost answer it finds itself: what is there may be the very same.
        ours = "attribute_not_exists(pk) OR (token_hash = :hash AND created_us = :at)"
        values: Item = {":hash": {"S": token.token_hash}, ":at": {"N": str(token.created_us)}}
        body: Item = {
            "token_hash": {"S": token.token_hash},
            "created_us": {"N": str(token.created_us)},
            "grants": {"L": [{"S": grant} for grant in token.grants]},
            "token_name": {"S": token.name},
        }
        if any(known == token for known in await self.tokens()):
            raise StoreConflict(f"there is a token {token.name!r} already")
        try:
            await self._table.transact(
                [
                    {
                        "Put": {
                            "TableName": self._table.name,
                            "Item": {"pk": {"S": pk}, "sk": {"S": sk}, **body},
                            "ConditionExpression": condition,
                            "ExpressionAttributeValues": used,
                        }
                    }
                    for pk, sk, condition, used in (
                        (TOKEN, token.name, ours, values),
                        (
                            *(TOKEN_HASH, token.token_hash),
                            "attribute_not_exists(pk) OR (token_name = :name AND created_us = :at)",
                            {":name": {"S": token.name}, ":at": values[":at"]},
                        ),
                    )
                ]
            )
        except ConditionFailed as exc:
            raise StoreConflict(f"there is a token {token.name!r} already") from exc

    async def revoke_token(self, name: str) -> bool:
        """See Registry."""
        found = await self._table.get(TOKEN, name)
        if not found:
            return False
        # Of the token that was found, and not of another that has taken its name meanwhile.
        same = {":at": found["created_us"]}
        condition = "attribute_not_exists(pk) OR created_us = :at"
        try:
            await self._table.transact(
                [
                    {
                        "Delete": {
                            "TableName": self._table.name,
                            "Key": {"pk": {"S": pk}, "sk": {"S": sk}},
                            "ConditionExpression": condition,
                            "ExpressionAttributeValues": same,
                        }
                    }
                    for pk, sk in ((TOKEN, name), (TOKEN_HASH, text(found, "token_hash")))
                ]
            )
        except ConditionFailed as exc:
            raise StoreConflict(f"another token has taken the name {name!r} meanwhile") from exc
        return True

    async def satellites(self) -> tuple[Registration, ...]:
        """See Registry."""
        items = await self._table.query(SATELLITE)
        return tuple(sorted((_registration(i) for i in items if "forgotten" not in i), key=lambda each: each.key))

    async def begin_generation(self, key: SatelliteKey, *, after: int, owner: str, at_us: int) -> Registration:
        """See Registry."""
        known = await self._table.get(SATELLITE, str(key))
        if known and "forgotten" not in known and number(known, "generation") != after:
            return _registration(known)
        generation = number(known, "generation") + 1 if known else after + 1
        seen = "generation = :seen" if known else "attribute_not_exists(generation)"
        values: Item = {
            ":generation": {"N": str(generation)},
            ":owner": {"S": owner},
            ":at": {"N": str(at_us)},
            **({":seen": known["generation"]} if known else {}),
        }
        change = "SET generation = :generation, owned_by = :owner, created_us = :at REMOVE machine, forgotten"
        try:
            made = await self._table.update(SATELLITE, str(key), change, values, condition=seen)
        except ConditionFailed as exc:
            return _registration(exc.item)
        return _registration(made)

    async def set_machine(self, key: SatelliteKey, generation: int, machine_id: MachineId) -> None:
        """See Registry."""
        values: Item = {":machine": {"S": machine_id}, ":generation": {"N": str(generation)}}
        condition = "generation = :generation AND attribute_not_exists(forgotten)"
        try:
            await self._table.update(SATELLITE, str(key), "SET machine = :machine", values, condition=condition)
        except ConditionFailed as exc:
            raise StoreConflict(f"generation {generation} of {key} is over") from exc

    async def forget(self, key: SatelliteKey) -> None:
        """See Registry."""
        change = "SET forgotten = :yes REMOVE machine"
        values: Item = {":yes": {"BOOL": True}}
        try:
            await self._table.update(SATELLITE, str(key), change, values, condition="attribute_exists(generation)")
        except ConditionFailed:
            return  # there is none

    async def aclose(self) -> None:
        """See Registry."""


def _token(item: Item) -> StoredToken:
    grants = tuple(grant.get("S", "") for grant in item.get("grants", {}).get("L", ()))
    return StoredToken(text(item, "sk"), text(item, "token_hash"), grants, number(item, "created_us"))


def _registration(item: Item) -> Registration:
    org, _, name = text(item, "sk").partition("/")
    machine = text(item, "machine")
    return Registration(
        SatelliteKey(org, name),
        text(item, "owned_by"),
        number(item, "generation"),
        MachineId(machine) if machine else None,
        number(item, "created_us"),
    )
