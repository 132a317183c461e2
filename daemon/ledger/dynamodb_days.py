"""Past days of the ledger in DynamoDB: their sums, and which intervals are left. Any host of the fleet may add them up.

One item, ROLLED, says of which days there are sums; other items with sums are as if they were not there. Every write of
sums is one transaction with the condition that ROLLED is as it was when the intervals were read. So two hosts that add up
the same day write the same items, and one of them closes the day. A host that comes late writes nothing.

If a host changes what lies before the end of the sums, it first takes them back (`take_back`): its wall clock has stepped
back, it comes back after a long absence, or another host's clock is ahead. `epoch` then rises, and what was read before is
not written any more.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.ledger.contract import DAY_US, DaySums, Interval, RolledState
from bentpipe.daemon.ledger.dynamodb_items import LIFE, PAST, host_pk, past_key
from bentpipe.daemon.ledger.dynamodb_read import DayReader, first_begin_us, heartbeats
from bentpipe.daemon.ledger.spans import RUN_DAYS, RUN_PARTS, Run, run_begin_us, runs_within
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.store.dynamodb_table import (
    TRANSACTION_ITEMS,
    ConditionFailed,
    Table,
    given,
    given_number,
    key_of,
    number,
    text,
)
from bentpipe.daemon.store.malformed import MalformedRows

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

    from bentpipe.daemon.store.dynamodb_table import Item

ROLLED, STATE = "ROLLED", "STATE"
ABSENT_US = 86_400_000_000
"""A host whose last heartbeat is older than the newest one by more than this is not waited for."""
CLEAR_ITEMS = 1_000
"""Intervals that one call of `clear` deletes of a host: some 40 requests."""
ATTEMPTS = 5
"""To change ROLLED while other hosts change it, too."""
DAY_SHIFT = 1 << 32
"""Added to a day's number, so that no key has a sign."""


@dataclasses.dataclass(frozen=True, slots=True)
class RolledItem:
    """The item ROLLED. Times are microseconds since the epoch, all of them begins of days."""

    first_us: int
    """The ledger's first day."""
    until_us: int
    """Days before this have sums."""
    cleared_us: int = 0
    """Of intervals that ended by then only sums count."""
    deleted_us: int = 0
    """Intervals that ended by then are deleted."""
    forgotten_us: int = 0
    """Sums of days before this are deleted."""
    epoch: int = 0
    added: Mapping[int, int] = dataclasses.field(default_factory=dict)
    """For each length of runs: until when there are runs."""

    @property
    def kept_us(self) -> int:
        """From here on there are sums of days."""
        return max(self.first_us, self.forgotten_us)

    def runs(self) -> dict[int, tuple[int, int]]:
        """For each length from when until when there are runs."""
        return {days: (self._first_run_us(days), until_us) for days, until_us in self.added.items()}

    def _first_run_us(self, days: int) -> int:
        if self.forgotten_us <= self.first_us:
            return run_begin_us(days, self.first_us)
        return run_begin_us(days, self.forgotten_us + days * DAY_US - 1)

    def next_run(self) -> Run | None:
        """The shortest run that can be added up and is not yet."""
        for days in reversed(RUN_DAYS):
            run = Run(days, self.added.get(days, run_begin_us(days, self.kept_us)))
            if run.end_us <= self.until_us:
                return run
        return None

    def taken_back(self, at_us: int) -> RolledItem | None:
        """As it is when what lies after `at_us` is to be added up again; None if it stays as it is."""
        until_us = max(at_us // DAY_US * DAY_US, self.cleared_us, self.first_us)
        if until_us >= self.until_us:
            return None
        added = {days: min(end_us, run_begin_us(days, until_us)) for days, end_us in self.added.items()}
        return dataclasses.replace(self, until_us=until_us, epoch=self.epoch + 1, added=added)

    def item(self) -> Item:
        """As it is kept."""
        plain = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "added"}
        plain |= {f"added_{days}": end_us for days, end_us in self.added.items()}
        return {
            "pk": {"S": ROLLED},
            "sk": {"S": STATE},
            **{name: {"N": str(value)} for name, value in plain.items()},
        }


def rolled_of(item: Item) -> RolledItem:
    """Reverse of `RolledItem.item`. Raises MalformedRow."""
    return RolledItem(
        given_number(item, "first_us"),
        given_number(item, "until_us"),
        cleared_us=number(item, "cleared_us"),
        deleted_us=number(item, "deleted_us"),
        forgotten_us=number(item, "forgotten_us"),
        epoch=number(item, "epoch"),
        added={days: number(item, f"added_{days}") for days in RUN_DAYS if f"added_{days}" in item},
    )


class DynamoDays:
    """The `RolledLedger` of the table, for `DynamoLedger`."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._reader = DayReader(table)
        self._read: dict[Run, RolledItem] = {}
        """What ROLLED was when the parts of a day or of a run were read that are being added up."""

    # -- what there is -------------------------------------------------------------------------------------------------

    async def state(self) -> RolledItem | None:
        """ROLLED; None if there is none, or it cannot be read. Raises StoreError."""
        item = await self._table.get(ROLLED, STATE)
        return next(iter(MalformedRows("rolled").read([item] if item else [], key_of, rolled_of)), None)

    async def rolled(self) -> RolledState | None:
        """See RolledLedger. Here intervals are deleted a few at a time: `cleared_us` says until when that is done."""
        state = await self.state() or await self._begin()
        return None if state is None else RolledState(state.until_us, max(state.deleted_us, state.first_us))

    async def _begin(self) -> RolledItem | None:
        """Make ROLLED, unless there is no interval."""
        first_us = await first_begin_us(self._table)
        if first_us is None:
            return None
        day_us = first_us // DAY_US * DAY_US
        made = RolledItem(day_us, day_us, cleared_us=day_us, deleted_us=day_us)
        try:
            await self._table.transact([self._table.put(made.item(), condition="attribute_not_exists(pk)")])
        except ConditionFailed:
            return await self.state()
        return made

    async def settled_us(self) -> int:
        """See RolledLedger: the oldest of the hosts' last heartbeats, without hosts that have been absent for long."""
        beats = await heartbeats(self._table)
        newest_us = max(beats, default=0)
        return min((each for each in beats if each >= newest_us - ABSENT_US), default=0)

    async def days(self, since_us: int, until_us: int) -> list[DaySums]:
        """See RolledLedger."""
        state = await self.state()
        if state is None:
            return []
        begin_us, end_us = max(since_us, state.kept_us), min(until_us, state.until_us)
        return await self._rows(1, begin_us, end_us)

    async def sums(self, state: RolledItem, begin_us: int, end_us: int) -> list[DaySums]:
        """The sums that make up the span of whole days, of as many days at once as there are."""
        runs = runs_within(begin_us, end_us, state.runs())
        found: list[DaySums] = []
        for days, group in itertools.groupby(runs, key=operator.attrgetter("days")):
            same = list(group)
            found += await self._rows(days, same[0].begin_us, same[-1].end_us)
        return found

    async def day(self, day_us: int) -> list[Interval]:
        """See RolledLedger."""
        state = await self.state()
        if state is not None:
            self._read[Run(1, day_us)] = state
        return await self._reader.day(day_us)

    async def next_parts(self) -> tuple[int, int, list[DaySums]] | None:
        """See RolledLedger."""
        state = await self.state()
        run = None if state is None else state.next_run()
        if state is None or run is None:
            return None
        self._read[run] = state
        return run.days, run.begin_us, await self._rows(run.days // RUN_PARTS, run.begin_us, run.end_us)

    async def _rows(self, days: int, begin_us: int, end_us: int) -> list[DaySums]:
        """The sums of all runs of so many days that begin in the span, in the order of satellites."""
        if begin_us >= end_us:
            return []
        items = await self._table.query(_sums_pk(days), at_least=_sums_key(begin_us), below=_sums_key(end_us))
        found = MalformedRows("day").read(items, key_of, _sums_of)
        return sorted(found, key=lambda each: (each.key.org, each.key.name, each.day_us))

    # -- what changes them ---------------------------------------------------------------------------------------------

    async def roll_up(self, day_us: int, sums: Mapping[SatelliteKey, str]) -> None:
        """See RolledLedger."""
        run = Run(1, day_us)
        state = self._read.pop(run, None) or await self.state()
        if state is not None and state.until_us == day_us and await self._write_sums(run, sums, state):
            await self._change(state, dataclasses.replace(state, until_us=run.end_us))

    async def add_run(self, days: int, begin_us: int, sums: Mapping[SatelliteKey, str]) -> None:
        """See RolledLedger."""
        run = Run(days, begin_us)
        state = self._read.pop(run, None) or await self.state()
        if state is None or state.added.get(days, begin_us) != begin_us or run.end_us > state.until_us:
            return
        if await self._write_sums(run, sums, state):
            await self._change(state, dataclasses.replace(state, added={**state.added, days: run.end_us}))

    async def clear(self, until_us: int) -> None:
        """See RolledLedger. First they do not count any more, then they are deleted, CLEAR_ITEMS of a host in one call."""
        state = await self.state()
        if state is None:
            return
        cleared_us = min(until_us, state.until_us)
        if cleared_us > state.cleared_us:
            after = dataclasses.replace(state, cleared_us=cleared_us)
            if not await self._change(state, after):
                return
            state = after
        if state.deleted_us < state.cleared_us and await self._delete_past(state.cleared_us):
            await self._change(state, dataclasses.replace(state, deleted_us=state.cleared_us))

    async def forget_days(self, before_us: int) -> None:
        """See RolledLedger."""
        state = await self.state()
        forgotten_us = -(-before_us // DAY_US) * DAY_US
        if state is None or forgotten_us <= state.kept_us:
            return
        if await self._change(state, dataclasses.replace(state, forgotten_us=forgotten_us)):
            for days in (1, *RUN_DAYS):
                old = await self._table.query(_sums_pk(days), below=_sums_key(forgotten_us), names=("pk", "sk"))
                await self._table.delete_all(old)

    async def take_back(self, at_us: int) -> bool:
        """What lies after `at_us` changes: days from there on are to be added up again. Returns whether there were any.

        Days whose intervals are deleted stay as they are.
        """
        for _ in range(ATTEMPTS):
            state = await self.state()
            after = None if state is None else state.taken_back(at_us)
            if state is None or after is None:
                return False
            if await self._change(state, after):
                return True
        raise StoreError(f"DynamoDB table {self._table.name}: other hosts keep changing {ROLLED}")

    async def _write_sums(self, run: Run, sums: Mapping[SatelliteKey, str], state: RolledItem) -> bool:
        """Write a run's sums, and remove what an earlier attempt left. Returns False if ROLLED has changed meanwhile."""
        key, end = _sums_key(run.begin_us), _sums_key(run.begin_us + DAY_US)
        there = await self._table.query(_sums_pk(run.days), at_least=key, below=end, names=("pk", "sk"))
        wanted = [_sums_item(run, satellite, words) for satellite, words in sums.items()]
        left = {text(item, "sk") for item in there} - {text(item, "sk") for item in wanted}
        writes = [
            *(self._table.put(item) for item in wanted),
            *(self._table.remove(_sums_pk(run.days), sk) for sk in sorted(left)),
        ]
        condition, values = _unchanged(state)
        fence = self._table.check(ROLLED, STATE, condition=condition, values=values)
        try:
            for some in _batches(writes, TRANSACTION_ITEMS - 1):
                await self._table.transact([*some, fence])
        except ConditionFailed:
            return False
        return True

    async def _change(self, before: RolledItem, after: RolledItem) -> bool:
        """Write ROLLED, if nobody else has meanwhile. Returns whether it is written."""
        condition, values = _unchanged(before)
        try:
            await self._table.transact([self._table.put(after.item(), condition=condition, values=values)])
        except ConditionFailed:  # perhaps by our own call, which was repeated
            return False
        return True

    async def _delete_past(self, until_us: int) -> bool:
        """Delete some intervals that have ended by then. Returns whether none is left."""
        is_done = True
        for host in await self._table.query(LIFE):
            old = await self._table.query(
                host_pk(text(host, "sk")),
                at_least=PAST,
                below=past_key(until_us + 1, 0),
                most=CLEAR_ITEMS,
                names=("pk", "sk"),
            )
            await self._table.delete_all(old)
            is_done = is_done and len(old) < CLEAR_ITEMS
        return is_done


def _unchanged(state: RolledItem) -> tuple[str, Item]:
    """The condition that ROLLED is as it was."""
    item = state.item()
    values = {f":{name}": value for name, value in item.items() if name not in ("pk", "sk")}
    there = [f"{name[1:]} = {name}" for name in values]
    missing = [f"attribute_not_exists(added_{days})" for days in RUN_DAYS if days not in state.added]
    return " AND ".join([*there, *missing]), values


def _batches(writes: Sequence[TransactWriteItemTypeDef], most: int) -> Iterator[Sequence[TransactWriteItemTypeDef]]:
    for at in range(0, len(writes), most):
        yield writes[at : at + most]


def _sums_pk(days: int) -> str:
    return f"SUMS#{days}"


def _sums_key(begin_us: int) -> str:
    """Where the sums of a run's satellites begin."""
    return f"{begin_us // DAY_US + DAY_SHIFT:010d}#"


def _sums_item(run: Run, key: SatelliteKey, sums: str) -> Item:
    return {
        "pk": {"S": _sums_pk(run.days)},
        "sk": {"S": f"{_sums_key(run.begin_us)}{key}"},
        "satellite": {"S": str(key)},
        "day_us": {"N": str(run.begin_us)},
        "sums": {"S": sums},
    }


def _sums_of(item: Item) -> DaySums:
    org, _, name = given(item, "satellite").partition("/")
    return DaySums(SatelliteKey(org, name), given_number(item, "day_us"), given(item, "sums"))
