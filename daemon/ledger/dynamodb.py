"""The ledger in DynamoDB: each host records what it saw, and a reader gets one chain of all hosts' (see `merge`).

The item of a past interval changes only if the wall clock steps back. The item of an open interval changes with every
transition. Each write is one transaction together with the host's record, on the condition that no other run may write. What
does not fit into one transaction is split: each part is a beginning of the whole, and a repeated call writes the rest.
"""

from __future__ import annotations

import collections
import dataclasses
import uuid
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import trio

from bentpipe.daemon.ledger.chain import UNWATCHED, USED, Move, first_moves
from bentpipe.daemon.ledger.contract import (
    ENDED_BADLY,
    SETTLE_US,
    STOPPED,
    Interval,
    LedgerSpan,
    LedgerTakenOver,
    Stamp,
    StampedTransition,
    Stretch,
)
from bentpipe.daemon.ledger.dynamodb_items import (
    LIFE,
    OPEN,
    OPEN_END,
    PAST_END,
    HostRecord,
    OpenInterval,
    host_item,
    host_of,
    host_pk,
    interval_of,
    open_item,
    open_of,
    past_item,
    past_key,
)
from bentpipe.daemon.ledger.merge import merge
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.store.dynamodb_table import TRANSACTION_ITEMS, ConditionFailed, Table, given_number, key_of, text
from bentpipe.daemon.store.malformed import MalformedRows

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef, TransactWriteItemTypeDef

    from bentpipe.daemon.store.dynamodb_table import Item

MOVES_LIMIT = (TRANSACTION_ITEMS - 1) // 2
"""Transitions in one transaction: each ends an interval and begins one, and the host's record is written too."""


class DynamoLedger:
    """`Ledger` in the table, as `host` records it; `intervals` reads those of all hosts."""

    def __init__(self, table: Table, host: str) -> None:
        self._table = table
        self._host = host
        self._run = str(uuid.uuid4())
        self._chains: _HostChains | None = None
        self._one_at_a_time = trio.Lock()

    async def begin(self, keys: Collection[SatelliteKey], at: Stamp, in_use: Collection[SatelliteKey] = ()) -> None:
        """See Ledger."""
        async with self._one_at_a_time:
            self._chains = None
            chains, predecessor = await _HostChains.read(self._table, self._host), None
            if chains.record is None:
                chains.record = HostRecord(self._run, 0, at, 0)
            else:
                predecessor = chains.record.run
                chains.record.run = self._run
                last = await chains.pull_back(at, predecessor)
                for key in chains.watched(in_use):
                    chains.move(key, Move(SatelliteState.UNKNOWN, last, ENDED_BADLY))
            open_now = {key: each.state for key, each in chains.open.items()}
            for key, move in first_moves(open_now, sorted(set(keys)), at):
                chains.move(key, move)
            await chains.write(predecessor)
            chains.record.serial, chains.record.heartbeat = 0, at
            await chains.write(self._run)
            self._chains = chains

    async def record(self, transitions: Sequence[StampedTransition]) -> None:
        """See Ledger."""
        async with self._one_at_a_time:
            chains = await self._take_chains()
            record = chains.kept_record
            for each in transitions:
                if each.serial <= record.serial:
                    continue
                if each.at.wall_us < record.heartbeat.wall_us:
                    await chains.write(self._run)
                    await chains.pull_back(each.at, self._run)
                chains.move(each.transition.key, Move.of(each))
                record.serial, record.heartbeat = each.serial, each.at
                if chains.moves_to_write >= MOVES_LIMIT:
                    await chains.write(self._run)
            await chains.write(self._run)
            self._chains = chains

    async def beat(self, at: Stamp) -> None:
        """See Ledger."""
        async with self._one_at_a_time:
            chains = await self._take_chains()
            await chains.pull_back(at, self._run)
            chains.kept_record.heartbeat = at
            await chains.write(self._run)
            self._chains = chains

    async def end(self, at: Stamp, in_use: Collection[SatelliteKey] = ()) -> None:
        """See Ledger."""
        async with self._one_at_a_time:
            chains = await self._take_chains()
            await chains.pull_back(at, self._run)
            for key in chains.watched(in_use):
                chains.move(key, Move(SatelliteState.UNKNOWN, at, STOPPED))
            chains.kept_record.heartbeat = at
            await chains.write(self._run)
            self._chains = chains

    async def intervals(self, since_us: int, until_us: int) -> list[Interval]:
        """See Ledger."""
        chains: dict[SatelliteKey, list[list[Interval]]] = collections.defaultdict(list)
        for item in await self._table.query(LIFE):
            for key, chain in (await _read_chains(self._table, item, since_us, until_us)).items():
                chains[key].append(chain)
        return [each for key in sorted(chains) for each in _one_chain(chains[key])]

    async def span(self, since_us: int, until_us: int) -> LedgerSpan:
        """See Ledger."""
        intervals = await self.intervals(since_us - SETTLE_US, until_us)
        return LedgerSpan(since_us, until_us, (Stretch(since_us, until_us, intervals),), [], since_us)

    async def aclose(self) -> None:
        """See Ledger."""

    async def _take_chains(self) -> _HostChains:
        """The chains as the table has them, for one call to change. A call that fails leaves none, and the next reads."""
        chains, self._chains = self._chains, None
        if chains is None:
            chains = await _HostChains.read(self._table, self._host)
            if chains.record is None or chains.record.run != self._run:
                raise LedgerTakenOver
        return chains


class _HostChains:
    """One host's record and open intervals, and what of them is still to be written."""

    def __init__(
        self, table: Table, host: str, record: HostRecord | None, opened: dict[SatelliteKey, OpenInterval]
    ) -> None:
        self._table = table
        self._host = host
        self.record = record
        self.open = opened
        self._moved: dict[SatelliteKey, list[dict[str, AttributeValueTypeDef]]] = {}
        """Satellites whose open interval is to be written, each with the intervals that ended before it."""

    @classmethod
    async def read(cls, table: Table, host: str) -> _HostChains:
        item = await table.get(LIFE, host)
        items = await table.query(host_pk(host), at_least=OPEN, below=OPEN_END)
        found = MalformedRows("ledger").read(items, key_of, open_of)
        return cls(table, host, host_of(item) if item else None, {each.key: each for each in found})

    @property
    def kept_record(self) -> HostRecord:
        if self.record is None:
            raise AssertionError("begin was not called")
        return self.record

    @property
    def moves_to_write(self) -> int:
        return sum(1 + len(past) for past in self._moved.values())

    def watched(self, in_use: Collection[SatelliteKey]) -> list[SatelliteKey]:
        """Satellites whose open interval has a state that the daemon watched, and that does not go on without it."""
        return [
            key
            for key, each in self.open.items()
            if each.state not in UNWATCHED and not (each.state is USED and key in in_use)
        ]

    def move(self, key: SatelliteKey, move: Move) -> None:
        """End the open interval, if there is one, and open the next."""
        record, ends, at, began_us = self.kept_record, self.open.get(key), move.at, move.at.wall_us
        record.ended += 1
        past = self._moved.setdefault(key, [])
        if ends is not None:
            began_us = max(began_us, ends.began.wall_us)
            past.append(past_item(self._host, ends, began_us, ends.began.until_us(at), record.ended, move.facts))
        began = Stamp(began_us, at.boot_us, at.boot_id)
        self.open[key] = OpenInterval(key, move.state, began, move.cause, move.who, record.ended)

    async def write(self, run: str | None) -> None:
        """Write all that is to be written, if `run` may write (None: no run yet). Raises LedgerTakenOver, StoreError."""
        record = self.kept_record
        own = host_item(self._host, record)
        parts: list[list[TransactWriteItemTypeDef]] = [[]]
        for key, past in self._moved.items():
            # What ends and what begins at the same moment are in one transaction.
            puts = [self._table.put(item) for item in (*past, open_item(self._host, self.open[key]))]
            if len(parts[-1]) + len(puts) >= TRANSACTION_ITEMS:
                parts.append([])
            parts[-1] += puts
        for part in parts:
            await self._transact(part, run, own)
            run = record.run
        self._moved.clear()

    async def pull_back(self, at: Stamp, run: str) -> Stamp:
        """If the wall clock has stepped back, move all that lies past `at` to `at`. Returns the heartbeat, moved too."""
        record = self.kept_record
        if record.heartbeat.wall_us > at.wall_us:
            later = await self._table.query(host_pk(self._host), at_least=past_key(at.wall_us + 1, 0), below=PAST_END)
            readable = MalformedRows("ledger").read(
                later, key_of, lambda item: (item, given_number(item, "from_us"), given_number(item, "number"))
            )
            for item, from_us, number in readable:
                moved = dict(item)
                moved["from_us"] = {"N": str(min(from_us, at.wall_us))}
                moved["to_us"] = {"N": str(at.wall_us)}
                moved["sk"] = {"S": past_key(at.wall_us, number)}
                deleted = self._table.remove(text(item, "pk"), text(item, "sk"))
                await self._transact([deleted, self._table.put(moved)], run, None)
            for key, found in self.open.items():
                if found.began.wall_us > at.wall_us:
                    began = dataclasses.replace(found.began, wall_us=at.wall_us)
                    self.open[key] = dataclasses.replace(found, began=began)
                    self._moved.setdefault(key, [])
            record.heartbeat = dataclasses.replace(record.heartbeat, wall_us=at.wall_us)
        return record.heartbeat

    async def _transact(
        self, writes: list[TransactWriteItemTypeDef], run: str | None, own: dict[str, AttributeValueTypeDef] | None
    ) -> None:
        """Write together with the host's record, if that is given, on the condition that `run` or our own run may write.

        The condition holds for a repeated call too. Raises LedgerTakenOver, StoreError.
        """
        ours = self.kept_record.run
        values: Item = {":run": {"S": ours if run is None else run}, ":own": {"S": ours}}
        nobody = "attribute_not_exists(pk) OR " if run is None else ""
        condition = f"{nobody}#run = :run OR #run = :own"
        if own is not None:
            fence = self._table.put(own, condition=condition, values=values, names=["run"])
        else:
            fence = self._table.check(LIFE, self._host, condition=condition, values=values, names=["run"])
        try:
            await self._table.transact([*writes, fence])
        except ConditionFailed as exc:
            raise LedgerTakenOver from exc


async def _read_chains(table: Table, host: Item, since_us: int, until_us: int) -> dict[SatelliteKey, list[Interval]]:
    """One host's chains. Open intervals are read first: one that ends meanwhile must not be read twice."""
    pk, record = host_pk(text(host, "sk")), host_of(host)
    malformed = MalformedRows("ledger")
    now_open = await table.query(pk, at_least=OPEN, below=OPEN_END)
    opened = {each.key: each for each in malformed.read(now_open, key_of, open_of)}
    items = await table.query(pk, at_least=past_key(since_us, 0), below=PAST_END)
    past = malformed.read(items, key_of, lambda item: (given_number(item, "number"), interval_of(item)))
    chains: dict[SatelliteKey, list[Interval]] = collections.defaultdict(list)
    for number, interval in sorted(past, key=lambda each: each[0]):
        has_ended_since = number > opened[interval.key].number if interval.key in opened else True
        if interval.from_us <= until_us and not has_ended_since:
            chains[interval.key].append(interval)
    for each in opened.values():
        from_us, to_us = each.began.wall_us, max(each.began.wall_us, record.heartbeat.wall_us)
        if from_us <= until_us and to_us >= since_us:
            elapsed_us = each.began.until_us(record.heartbeat)
            chains[each.key].append(
                Interval(each.key, each.state, from_us, to_us, elapsed_us, each.cause, each.who, is_open=True)
            )
    return chains


def _one_chain(chains: list[list[Interval]]) -> list[Interval]:
    return chains[0] if len(chains) == 1 else merge(chains)
