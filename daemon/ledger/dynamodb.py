"""The ledger in DynamoDB: each host records what it saw, and a reader gets one chain of all hosts' (see `merge`).

The item of a past interval changes only if the wall clock steps back. The item of an open interval changes with every
transition. Each write is one transaction together with the host's record, on the condition that no other run may write. What
does not fit into one transaction is split: each part is a beginning of the whole, and a repeated call writes the rest.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import trio

from bentpipe.daemon.ledger.chain import UNWATCHED, USED, Move, first_moves
from bentpipe.daemon.ledger.contract import (
    DAY_US,
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
from bentpipe.daemon.ledger.dynamodb_days import DynamoDays
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
    open_item,
    open_of,
    past_item,
    past_key,
)
from bentpipe.daemon.ledger.dynamodb_read import read_intervals
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.store.dynamodb_table import TRANSACTION_ITEMS, ConditionFailed, Table, given_number, key_of, text
from bentpipe.daemon.store.malformed import MalformedRows

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef, TransactWriteItemTypeDef

    from bentpipe.daemon.store.dynamodb_table import Item

MOVES_LIMIT = (TRANSACTION_ITEMS - 1) // 2
"""Transitions in one transaction: each ends an interval and begins one, and the host's record is written too."""
WHOLE_US = 14 * DAY_US
"""A span that begins longer ago than this counts its first day whole, by the day's sums. An interval is found by its end, so
to read a part of a day takes all intervals since then."""


class DynamoLedger:
    """`Ledger` in the table, as `host` records it; `intervals` reads those of all hosts."""

    def __init__(self, table: Table, host: str) -> None:
        self._table = table
        self._host = host
        self._run = str(uuid.uuid4())
        self._chains: _HostChains | None = None
        self._one_at_a_time = trio.Lock()
        self._days = DynamoDays(table)
        """The sums of past days, which all hosts share."""

    async def begin(self, keys: Collection[SatelliteKey], at: Stamp, in_use: Collection[SatelliteKey] = ()) -> None:
        """See Ledger."""
        async with self._one_at_a_time:
            self._chains = None
            chains, predecessor = await _HostChains.read(self._table, self._host), None
            since_us = at.wall_us if chains.record is None else chains.record.heartbeat.wall_us
            took = await self._days.take_back(min(since_us, at.wall_us))
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
            await self._take_back_again(min(since_us, at.wall_us), took=took)
            self._chains = chains

    async def record(self, transitions: Sequence[StampedTransition]) -> None:
        """See Ledger."""
        async with self._one_at_a_time:
            chains = await self._take_chains()
            record = chains.kept_record
            new_us = (each.at.wall_us for each in transitions if each.serial > record.serial)
            since_us = min([record.heartbeat.wall_us, *new_us])
            took = await self._days.take_back(since_us)
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
            await self._take_back_again(since_us, took=took)
            self._chains = chains

    async def beat(self, at: Stamp) -> None:
        """See Ledger."""
        async with self._one_at_a_time:
            chains = await self._take_chains()
            since_us = min(chains.kept_record.heartbeat.wall_us, at.wall_us)
            took = await self._days.take_back(since_us)
            await chains.pull_back(at, self._run)
            chains.kept_record.heartbeat = at
            await chains.write(self._run)
            await self._take_back_again(since_us, took=took)
            self._chains = chains

    async def end(self, at: Stamp, in_use: Collection[SatelliteKey] = ()) -> None:
        """See Ledger."""
        async with self._one_at_a_time:
            chains = await self._take_chains()
            since_us = min(chains.kept_record.heartbeat.wall_us, at.wall_us)
            took = await self._days.take_back(since_us)
            await chains.pull_back(at, self._run)
            for key in chains.watched(in_use):
                chains.move(key, Move(SatelliteState.UNKNOWN, at, STOPPED))
            chains.kept_record.heartbeat = at
            await chains.write(self._run)
            await self._take_back_again(since_us, took=took)
            self._chains = chains

    async def intervals(self, since_us: int, until_us: int) -> list[Interval]:
        """See Ledger."""
        return await read_intervals(self._table, since_us, until_us)

    async def span(self, since_us: int, until_us: int) -> LedgerSpan:
        """See Ledger. Of a span that began long ago the first day counts whole: see WHOLE_US."""
        state = await self._days.state()
        if state is None:
            return await self._detailed(since_us, until_us)
        day_us = since_us // DAY_US * DAY_US
        is_old = since_us < max(state.cleared_us, state.until_us - WHOLE_US)
        first_us = day_us if is_old and state.kept_us <= day_us else since_us
        days_us, end_us = -(-first_us // DAY_US) * DAY_US, min(state.until_us, until_us // DAY_US * DAY_US)
        if days_us >= end_us:
            return await self._detailed(since_us, until_us)
        ends = [(end_us, until_us)] if is_old else [(first_us, days_us), (end_us, until_us)]
        stretches = [await self._stretch(begin, end) for begin, end in ends if begin < end]
        sums = await self._days.sums(state, days_us, end_us)
        return LedgerSpan(first_us, until_us, tuple(stretches), sums, max(first_us, state.cleared_us))

    async def _detailed(self, since_us: int, until_us: int) -> LedgerSpan:
        return LedgerSpan(since_us, until_us, (await self._stretch(since_us, until_us),), [], since_us)

    async def _stretch(self, since_us: int, until_us: int) -> Stretch:
        return Stretch(since_us, until_us, await self.intervals(since_us - SETTLE_US, until_us + SETTLE_US))

    async def aclose(self) -> None:
        """See Ledger."""

    async def _take_back_again(self, at_us: int, *, took: bool) -> None:
        """Days that another host has added up between the first `take_back` and the write do not have what was written."""
        if took:
            await self._days.take_back(at_us)

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
            if each.state not in UNWATCHED and not (each.state in USED and key in in_use)
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
            record.pulled += 1
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
