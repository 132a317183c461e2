"""The ledger in DynamoDB: each host keeps the books of what it saw, and who reads gets one chain of all (see `merge`).

A closed interval is an item that is never changed, but if the wall clock is stepped back; an open one is changed with
every change of state. Each write is one transaction with the host's life, whose condition is that nobody else keeps its
books; what does not fit into one is split, each part a beginning of the whole, which a repeated call completes.
"""

from __future__ import annotations

import collections
import dataclasses
import uuid
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import trio

from bentpipe.daemon.errors import StoreUnusable
from bentpipe.daemon.ledger.contract import ENDED_BADLY, NOT_CONFIGURED, STOPPED, Change, Interval, Stamp, storable
from bentpipe.daemon.ledger.dynamodb_items import (
    LIFE,
    OPEN,
    OPEN_END,
    PAST_END,
    Life,
    Open,
    books_pk,
    interval_of,
    life_item,
    life_of,
    open_item,
    open_of,
    past_item,
    past_key,
)
from bentpipe.daemon.ledger.merge import merge
from bentpipe.daemon.model import NO_WAITS, SatelliteKey, SatelliteState
from bentpipe.daemon.store.dynamodb_table import TRANSACTION_ITEMS, ConditionFailed, Table, given_number, key_of, text
from bentpipe.daemon.store.malformed import MalformedRows

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef, TransactWriteItemTypeDef

    from bentpipe.daemon.store.dynamodb_table import Item

MOVES_LIMIT = (TRANSACTION_ITEMS - 1) // 2
"""Changes a transaction: each is an interval that ends and one that begins, and there is the host's life."""

_UNWATCHED = (SatelliteState.UNKNOWN, SatelliteState.OFFLINE)


class DynamoLedger:
    """`Ledger` in the table, as `host` keeps it; `intervals` is of all hosts."""

    def __init__(self, table: Table, host: str) -> None:
        self._table = table
        self._host = host
        self._run = str(uuid.uuid4())
        self._books: _Books | None = None
        self._one_at_a_time = trio.Lock()

    async def begin(self, keys: Collection[SatelliteKey], at: Stamp) -> None:
        """See Ledger."""
        async with self._one_at_a_time:
            self._books = None
            books = await _Books.read(self._table, self._host)
            had_life = books.life is not None
            if books.life is None:
                books.life = Life(self._run, 0, at, 0)
            predecessor, last = books.life.run, books.life.stamp
            books.life.run = self._run
            if had_life:
                last = await books.draw_in(at, predecessor)
                for key in books.watched():
                    books.move(key, SatelliteState.UNKNOWN, last, ENDED_BADLY)
            for key in sorted(set(keys)):
                found = books.open.get(key)
                if found is None or found.state is SatelliteState.OFFLINE:
                    books.move(key, SatelliteState.UNKNOWN, at, "not looked at yet")
            for key, found in list(books.open.items()):
                if key not in keys and found.state is not SatelliteState.OFFLINE:
                    books.move(key, SatelliteState.OFFLINE, at, NOT_CONFIGURED)
            await books.write(predecessor if had_life else None)
            books.life.serial, books.life.stamp = 0, at
            await books.write(self._run)
            self._books = books

    async def record(self, changes: Sequence[Change]) -> None:
        """See Ledger."""
        async with self._one_at_a_time:
            books = await self._take_books()
            life = books.kept_life
            for change in changes:
                if change.serial > life.serial:
                    if change.at.wall_us < life.stamp.wall_us:
                        await books.write(self._run)
                        await books.draw_in(change.at, self._run)
                    books.move(change.key, change.state, change.at, change.cause, change)
                    life.serial, life.stamp = change.serial, change.at
                    if books.moves_to_write >= MOVES_LIMIT:
                        await books.write(self._run)
            await books.write(self._run)
            self._books = books

    async def beat(self, at: Stamp) -> None:
        """See Ledger."""
        async with self._one_at_a_time:
            books = await self._take_books()
            await books.draw_in(at, self._run)
            books.kept_life.stamp = at
            await books.write(self._run)
            self._books = books

    async def end(self, at: Stamp) -> None:
        """See Ledger."""
        async with self._one_at_a_time:
            books = await self._take_books()
            await books.draw_in(at, self._run)
            for key in books.watched():
                books.move(key, SatelliteState.UNKNOWN, at, STOPPED)
            books.kept_life.stamp = at
            await books.write(self._run)
            self._books = books

    async def intervals(self, since_us: int, until_us: int) -> list[Interval]:
        """See Ledger."""
        chains: dict[SatelliteKey, list[list[Interval]]] = collections.defaultdict(list)
        for life in await self._table.query(LIFE):
            for key, chain in (await _read_chains(self._table, life, since_us, until_us)).items():
                chains[key].append(chain)
        return [each for key in sorted(chains) for each in _one_chain(chains[key])]

    async def aclose(self) -> None:
        """See Ledger."""

    async def _take_books(self) -> _Books:
        """The books as they are in the table, ours to change: whoever fails leaves none, and the next reads them again."""
        books, self._books = self._books, None
        if books is None:
            books = await _Books.read(self._table, self._host)
            if books.life is None or books.life.run != self._run:
                raise StoreUnusable(TAKEN_OVER)
        return books


TAKEN_OVER = "another daemon keeps this ledger now"


class _Books:
    """One host's open intervals and life, and what is still to be written of them."""

    def __init__(self, table: Table, host: str, life: Life | None, opened: dict[SatelliteKey, Open]) -> None:
        self._table = table
        self._host = host
        self.life = life
        self.open = opened
        self._moved: dict[SatelliteKey, list[dict[str, AttributeValueTypeDef]]] = {}
        """Satellites whose open interval is to be written, each with the intervals that ended before it."""

    @classmethod
    async def read(cls, table: Table, host: str) -> _Books:
        life = await table.get(LIFE, host)
        items = await table.query(books_pk(host), at_least=OPEN, below=OPEN_END)
        found = MalformedRows("ledger").read(items, key_of, open_of)
        return cls(table, host, life_of(life) if life else None, {each.key: each for each in found})

    @property
    def kept_life(self) -> Life:
        if self.life is None:
            raise AssertionError("books that were not begun")
        return self.life

    @property
    def moves_to_write(self) -> int:
        return sum(1 + len(past) for past in self._moved.values())

    def watched(self) -> list[SatelliteKey]:
        """Satellites whose open interval says more than that nobody watches."""
        return [key for key, each in self.open.items() if each.state not in _UNWATCHED]

    def move(
        self, key: SatelliteKey, state: SatelliteState, at: Stamp, cause: str, change: Change | None = None
    ) -> None:
        """End the open interval, if there is one, and open the next at the same moment."""
        life, ends, began_us = self.kept_life, self.open.get(key), at.wall_us
        life.moves += 1
        past = self._moved.setdefault(key, [])
        if ends is not None:
            began_us = max(began_us, ends.began.wall_us)
            past.append(past_item(self._host, ends, began_us, ends.began.until_us(at), life.moves, change))
        who = change.who if change else ""
        self.open[key] = Open(
            key, state, Stamp(began_us, at.boot_us, at.boot_id), storable(cause), storable(who), life.moves
        )

    async def write(self, run: str | None) -> None:
        """Write all that is to be written, if `run` keeps the books (None: nobody yet). Raises StoreUnusable, StoreError."""
        life = self.kept_life
        own = life_item(self._host, life)
        parts: list[list[TransactWriteItemTypeDef]] = [[]]
        for key, past in self._moved.items():
            # What ends and what begins at the same moment are in one transaction.
            puts = [self._table.put(item) for item in (*past, open_item(self._host, self.open[key]))]
            if len(parts[-1]) + len(puts) >= TRANSACTION_ITEMS:
                parts.append([])
            parts[-1] += puts
        for part in parts:
            await self._transact(part, run, own)
            run = life.run
        self._moved.clear()

    async def draw_in(self, at: Stamp, run: str) -> Stamp:
        """If the wall clock has stepped back, move what lies past `at` to it. Returns the last sign of life, moved too."""
        life = self.kept_life
        if life.stamp.wall_us > at.wall_us:
            later = await self._table.query(books_pk(self._host), at_least=past_key(at.wall_us + 1, 0), below=PAST_END)
            readable = MalformedRows("ledger").read(
                later, key_of, lambda item: (item, given_number(item, "from_us"), given_number(item, "number"))
            )
            for item, from_us, moves in readable:
                moved = dict(item)
                moved["from_us"] = {"N": str(min(from_us, at.wall_us))}
                moved["to_us"] = {"N": str(at.wall_us)}
                moved["sk"] = {"S": past_key(at.wall_us, moves)}
                deleted = self._table.remove(text(item, "pk"), text(item, "sk"))
                await self._transact([deleted, self._table.put(moved)], run, None)
            for key, found in self.open.items():
                if found.began.wall_us > at.wall_us:
                    began = dataclasses.replace(found.began, wall_us=at.wall_us)
                    self.open[key] = dataclasses.replace(found, began=began)
                    self._moved.setdefault(key, [])
            life.stamp = dataclasses.replace(life.stamp, wall_us=at.wall_us)
        return life.stamp

    async def _transact(
        self, writes: list[TransactWriteItemTypeDef], run: str | None, life: dict[str, AttributeValueTypeDef] | None
    ) -> None:
        """With the host's life, which is written too if it is given. Its condition holds for a repeated call as well."""
        values: Item = {":run": {"S": self.kept_life.run if run is None else run}, ":own": {"S": self.kept_life.run}}
        nobody = "attribute_not_exists(pk) OR " if run is None else ""
        condition = f"{nobody}#run = :run OR #run = :own"
        if life is not None:
            own = self._table.put(life, condition=condition, values=values, names=["run"])
        else:
            own = self._table.check(LIFE, self._host, condition=condition, values=values, names=["run"])
        try:
            await self._table.transact([*writes, own])
        except ConditionFailed as exc:
            raise StoreUnusable(TAKEN_OVER) from exc


async def _read_chains(
    table: Table, life_item: Item, since_us: int, until_us: int
) -> dict[SatelliteKey, list[Interval]]:
    """One host's chains. What was open is read first: what ended since is not wanted twice."""
    pk, life = books_pk(text(life_item, "sk")), life_of(life_item)
    malformed = MalformedRows("ledger")
    now_open = await table.query(pk, at_least=OPEN, below=OPEN_END)
    opened = {each.key: each for each in malformed.read(now_open, key_of, open_of)}
    items = await table.query(pk, at_least=past_key(since_us, 0), below=PAST_END)
    past = malformed.read(items, key_of, lambda item: (given_number(item, "number"), interval_of(item)))
    chains: dict[SatelliteKey, list[Interval]] = collections.defaultdict(list)
    for number, interval in sorted(past, key=lambda each: each[0]):
        is_since = number > opened[interval.key].since if interval.key in opened else True
        if interval.from_us <= until_us and not is_since:
            chains[interval.key].append(interval)
    for each in opened.values():
        to_us = max(each.began.wall_us, life.stamp.wall_us)
        if each.began.wall_us <= until_us and to_us >= since_us:
            elapsed_us = each.began.until_us(life.stamp)
            chains[each.key].append(
                Interval(
                    *(each.key, each.state, each.began.wall_us, to_us, elapsed_us, each.cause, each.who),
                    *((), NO_WAITS, True),
                )
            )
    return chains


def _one_chain(chains: list[list[Interval]]) -> list[Interval]:
    return chains[0] if len(chains) == 1 else merge(chains)
