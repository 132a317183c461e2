"""`Registry` in the DynamoDB table: an item for each token, token hash, cut and satellite."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bentpipe.daemon.model import MachineId, SatelliteKey
from bentpipe.daemon.registry.contract import (
    CUT_KEPT_S,
    AttemptOver,
    GenerationOver,
    StoredAttempt,
    StoredCut,
    StoredSatellite,
    StoredToken,
    TokenExists,
    TokenReplaced,
    stored_cut,
    stored_satellite,
    stored_token,
)
from bentpipe.daemon.registry.dynamodb_identities import IDENTITY
from bentpipe.daemon.store.dynamodb_table import ConditionFailed, Table, given, given_number, key_of, text
from bentpipe.daemon.store.malformed import MalformedRow, MalformedRows

if TYPE_CHECKING:
    from bentpipe.daemon.store.dynamodb_table import Item

SATELLITE = "SATELLITE"
TOKEN = "TOKEN"
TOKEN_HASH = "TOKEN-HASH"
CUT = "CUT"


class DynamoRegistry:
    """`Registry` in the table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._malformed_cuts = MalformedRows("cut")
        self._malformed_tokens = MalformedRows("token")
        self._malformed_satellites = MalformedRows("registration")

    async def tokens(self) -> tuple[StoredToken, ...]:
        """See Registry."""
        return tuple(self._malformed_tokens.read(await self._table.query(TOKEN), key_of, _token))

    async def add_token(self, token: StoredToken) -> None:
        """See Registry."""
        if any(known == token for known in await self.tokens()):
            raise TokenExists(token.name)
        at: Item = {":at": {"N": str(token.created_us)}}
        body: Item = {
            "token_hash": {"S": token.token_hash},
            "created_us": {"N": str(token.created_us)},
            "grants": {"L": [{"S": grant} for grant in token.grants]},
            "token_name": {"S": token.name},
            "scopes": {"L": [{"S": scope} for scope in token.scopes]},
            **({} if token.principal is None else {"principal": {"S": token.principal}}),
            **({} if token.expires_us is None else {"expires_us": {"N": str(token.expires_us)}}),
        }
        # If an answer was lost and the call is repeated, the token that is there may be this very one.
        by_name = self._table.put(
            {"pk": {"S": TOKEN}, "sk": {"S": token.name}, **body},
            condition="attribute_not_exists(pk) OR (token_hash = :hash AND created_us = :at)",
            values={":hash": {"S": token.token_hash}, **at},
        )
        by_hash = self._table.put(
            {"pk": {"S": TOKEN_HASH}, "sk": {"S": token.token_hash}, **body},
            condition="attribute_not_exists(pk) OR (token_name = :name AND created_us = :at)",
            values={":name": {"S": token.name}, **at},
        )
        try:
            await self._table.transact([by_name, by_hash])
        except ConditionFailed as exc:
            raise TokenExists(token.name) from exc

    async def revoke_token(self, name: str, *, cut_at_us: int | None = None) -> bool:
        """See Registry."""
        found = await self._table.get(TOKEN, name)
        if not found:
            return False
        # Delete the token that was found, not another one that has taken its name meanwhile.
        # A malformed row that lacks the time is deleted as well.
        same: Item = {":at": found.get("created_us", {"N": "0"})}
        condition = "attribute_not_exists(pk) OR attribute_not_exists(created_us) OR created_us = :at"
        rows = [(TOKEN, name)]
        with contextlib.suppress(MalformedRow):  # a malformed row does not say which hash is its own
            given_number(found, "created_us")
            rows.append((TOKEN_HASH, given(found, "token_hash")))
        writes = [self._table.remove(pk, sk, condition=condition, values=same) for pk, sk in rows]
        if cut_at_us is not None:
            await self._forget_cuts(before_us=cut_at_us - int(CUT_KEPT_S * 1e6))
            writes.append(self._table.put(cut_item(name, cut_at_us)))
        try:
            await self._table.transact(writes)
        except ConditionFailed as exc:
            raise TokenReplaced(name) from exc
        return True

    async def cuts(self) -> tuple[StoredCut, ...]:
        """See Registry."""
        return tuple(self._malformed_cuts.read(await self._table.query(CUT), key_of, _cut))

    async def _forget_cuts(self, *, before_us: int) -> None:
        for cut in await self.cuts():
            if cut.at_us < before_us:
                await self._table.delete(CUT, cut.name)

    async def satellites(self) -> tuple[StoredSatellite, ...]:
        """See Registry."""
        items = [item for item in await self._table.query(SATELLITE) if "forgotten" not in item]
        return tuple(sorted(self._malformed_satellites.read(items, key_of, _satellite), key=lambda each: each.key))

    async def begin_generation(self, key: SatelliteKey, *, after: int, owner: str, at_us: int) -> StoredSatellite:
        """See Registry."""
        known = await self._table.get(SATELLITE, str(key))
        if known and "forgotten" not in known and given_number(known, "generation") != after:
            return _satellite(known)
        generation = given_number(known, "generation") + 1 if known else after + 1
        seen = "generation = :seen" if known else "attribute_not_exists(generation)"
        values: Item = {
            ":generation": {"N": str(generation)},
            ":owner": {"S": owner},
            ":at": {"N": str(at_us)},
            **({":seen": known["generation"]} if known else {}),
        }
        change = "SET generation = :generation, owned_by = :owner, created_us = :at REMOVE machine, forgotten, attempt"
        try:
            made = await self._table.update(SATELLITE, str(key), change, values, condition=seen)
        except ConditionFailed as exc:
            return _satellite(exc.item)
        return _satellite(made)

    async def set_machine(self, key: SatelliteKey, generation: int, machine_id: MachineId) -> None:
        """See Registry."""
        values: Item = {":machine": {"S": machine_id}, ":generation": {"N": str(generation)}}
        condition = "generation = :generation AND attribute_not_exists(forgotten)"
        try:
            await self._table.update(SATELLITE, str(key), "SET machine = :machine", values, condition=condition)
        except ConditionFailed as exc:
            raise GenerationOver(key, generation) from exc

    async def set_attempt(
        self, key: SatelliteKey, generation: int, *, after: StoredAttempt | None, attempt: StoredAttempt | None
    ) -> None:
        """See Registry."""
        named = {name: each for name, each in ((":after", after), (":attempt", attempt)) if each is not None}
        holds = [f"attempt = {name}" for name in named]
        if len(named) < 2:
            holds.append("attribute_not_exists(attempt)")
        values: Item = {
            ":generation": {"N": str(generation)},
            **{
                name: {"M": {"alternative": {"S": each.alternative}, "at_us": {"N": str(each.at_us)}}}
                for name, each in named.items()
            },
        }
        change = "REMOVE attempt" if attempt is None else "SET attempt = :attempt"
        condition = f"generation = :generation AND attribute_not_exists(forgotten) AND ({' OR '.join(holds)})"
        try:
            await self._table.update(SATELLITE, str(key), change, values, condition=condition)
        except ConditionFailed as exc:
            raise AttemptOver(key, generation) from exc

    async def forget(self, key: SatelliteKey, *, generation: int) -> None:
        """See Registry."""
        change = "SET forgotten = :yes REMOVE machine, attempt"
        values: Item = {":yes": {"BOOL": True}, ":generation": {"N": str(generation)}}
        try:
            await self._table.update(SATELLITE, str(key), change, values, condition="generation <= :generation")
        except ConditionFailed as failed:
            if failed.item:
                return  # a newer machine
        await self._table.delete(IDENTITY, str(key))

    async def aclose(self) -> None:
        """See Registry."""


def cut_item(name: str, at_us: int) -> Item:
    """The item of a cut."""
    return {"pk": {"S": CUT}, "sk": {"S": name}, "at_us": {"N": str(at_us)}}


def _token(item: Item) -> StoredToken:
    # A token of an older daemon has only the first four.
    return stored_token(
        text(item, "sk"),
        given(item, "token_hash"),
        _strings(item, "grants"),
        given_number(item, "created_us"),
        _strings(item, "scopes") if "scopes" in item else ("use",),
        given(item, "principal") if "principal" in item else None,
        given_number(item, "expires_us") if "expires_us" in item else None,
    )


def _strings(item: Item, name: str) -> list[str | None]:
    return [each.get("S") for each in item.get(name, {}).get("L", ())]


def _cut(item: Item) -> StoredCut:
    return stored_cut(given(item, "sk"), given_number(item, "at_us"))


def _satellite(item: Item) -> StoredSatellite:
    org, _, name = text(item, "sk").partition("/")
    machine = given(item, "machine") if "machine" in item else None
    generation, created_us = given_number(item, "generation"), given_number(item, "created_us")
    attempt = item.get("attempt", {}).get("M", {})
    tried = (given(attempt, "alternative"), given_number(attempt, "at_us")) if "attempt" in item else ()
    return stored_satellite(org, name, given(item, "owned_by"), generation, machine, created_us, *tried)
