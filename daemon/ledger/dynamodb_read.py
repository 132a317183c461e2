"""Reads the ledger in DynamoDB: the intervals of all hosts as one chain for each satellite.

The item of a past interval is found by its end. So one that goes over the end of a span lies behind all intervals that ended
before it did. `DayReader` reads the days in their order, and remembers those that it had to look for.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING

from bentpipe.daemon.ledger.contract import DAY_US, SETTLE_US, Interval
from bentpipe.daemon.ledger.dynamodb_items import (
    LIFE,
    OPEN,
    OPEN_END,
    PAST,
    PAST_END,
    HostRecord,
    OpenInterval,
    host_of,
    host_pk,
    interval_of,
    open_of,
    past_key,
)
from bentpipe.daemon.ledger.merge import merge
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.store.dynamodb_table import given_number, key_of, text
from bentpipe.daemon.store.malformed import MalformedRows

if TYPE_CHECKING:
    from bentpipe.daemon.store.dynamodb_table import Item, Table

Chains = dict[SatelliteKey, list[list[Interval]]]
"""The chain of each satellite as each host saw it."""

PAGE_ITEMS = 1_000
"""Read at once while the end of an interval is looked for."""


async def read_intervals(table: Table, since_us: int, until_us: int) -> list[Interval]:
    """All intervals that touch the span, in the order of satellites. Reads all that have ended since its begin."""
    chains: Chains = collections.defaultdict(list)
    for item in await table.query(LIFE):
        reader = _HostReader(table, item, since_us, until_us)
        await reader.read_open()
        await reader.read_past(PAST_END)
        reader.add_to(chains)
    return merged(chains)


def merged(chains: Chains) -> list[Interval]:
    """One chain for each satellite, in the order of satellites."""
    found = ((key, chains[key]) for key in sorted(chains))
    return [each for _, seen in found for each in (seen[0] if len(seen) == 1 else merge(seen))]


async def heartbeats(table: Table) -> list[int]:
    """Until when each host has recorded what happened, in microseconds."""
    return [host_of(item).heartbeat.wall_us for item in await table.query(LIFE)]


async def first_begin_us(table: Table) -> int | None:
    """When the first interval of any host began; None if there is none. Reads every interval once."""
    found: list[int] = []
    for host in await table.query(LIFE):
        pk = host_pk(text(host, "sk"))
        opened = MalformedRows("ledger").read(await table.query(pk, at_least=OPEN, below=OPEN_END), key_of, open_of)
        found += [each.began.wall_us for each in opened]
        async with contextlib.aclosing(
            table.pages(pk, at_least=PAST, below=PAST_END, names=("from_us", "pk", "sk"))
        ) as pages:
            async for page in pages:
                begins = MalformedRows("interval").read(page, key_of, lambda item: given_number(item, "from_us"))
                found = [min(found + begins)] if found or begins else []
    return min(found, default=None)


class _HostReader:
    """Reads what one host saw of a span."""

    def __init__(self, table: Table, host: Item, since_us: int, until_us: int) -> None:
        self._table = table
        self._pk = host_pk(text(host, "sk"))
        self._since_us, self._until_us = since_us, until_us
        self.record: HostRecord = host_of(host)
        self.opened: dict[SatelliteKey, OpenInterval] = {}
        self._malformed = MalformedRows("ledger")
        self._past: list[tuple[int, Interval]] = []

    async def read_open(self) -> None:
        """Before all else: an interval that ends meanwhile must not be read twice."""
        now_open = await self._table.query(self._pk, at_least=OPEN, below=OPEN_END)
        self.opened = {each.key: each for each in self._malformed.read(now_open, key_of, open_of)}

    async def read_past(self, below: str) -> None:
        """Intervals that have ended since the span's begin, and before the sort key `below`."""
        items = await self._table.query(self._pk, at_least=past_key(self._since_us, 0), below=below)
        self._past += self._readable(items)

    async def find_after(
        self, at_us: int, wanted: Collection[SatelliteKey]
    ) -> dict[SatelliteKey, tuple[int, Interval]]:
        """Of each wanted satellite the first interval that ends after this moment. Reads until all are found."""
        found: dict[SatelliteKey, tuple[int, Interval]] = {}
        after = past_key(at_us + 1, 0)
        async with contextlib.aclosing(
            self._table.pages(self._pk, at_least=after, below=PAST_END, page_items=PAGE_ITEMS)
        ) as pages:
            async for page in pages:
                for number, interval in self._readable(page):
                    if interval.key in wanted:
                        found.setdefault(interval.key, (number, interval))
                if len(found) == len(wanted):
                    break
        return found

    def add(self, number: int, interval: Interval) -> None:
        """An interval that was found elsewhere."""
        self._past.append((number, interval))

    def add_to(self, chains: Chains) -> None:
        """Add each satellite's chain."""
        own: dict[SatelliteKey, list[Interval]] = collections.defaultdict(list)
        for number, interval in sorted(self._past, key=lambda each: each[0]):
            if interval.from_us <= self._until_us and not self.has_ended_since(number, interval):
                own[interval.key].append(interval)
        for each in self.opened.values():
            interval = _as_interval(each, self.record)
            if interval.from_us <= self._until_us and interval.to_us >= self._since_us:
                own[each.key].append(interval)
        for key, chain in own.items():
            chains[key].append(chain)

    def has_ended_since(self, number: int, interval: Interval) -> bool:
        """Whether it was open when the open intervals were read."""
        return interval.key in self.opened and number > self.opened[interval.key].number

    def _readable(self, items: list[Item]) -> list[tuple[int, Interval]]:
        return self._malformed.read(items, key_of, lambda item: (given_number(item, "number"), interval_of(item)))


def _as_interval(each: OpenInterval, record: HostRecord) -> Interval:
    """An open interval, which ends at the host's last heartbeat."""
    from_us, to_us = each.began.wall_us, max(each.began.wall_us, record.heartbeat.wall_us)
    elapsed_us = each.began.until_us(record.heartbeat)
    return Interval(each.key, each.state, from_us, to_us, elapsed_us, each.cause, each.who, is_open=True)


@dataclasses.dataclass(slots=True)
class _Ahead:
    """What was found behind the end of a host's last day."""

    pulled: int
    """How often its wall clock had stepped back by then: a further step changes intervals."""
    found: dict[SatelliteKey, tuple[int, Interval]] = dataclasses.field(default_factory=dict)
    """Of each satellite the first interval that ends after that day."""


class DayReader:
    """Reads days, best one after the other. It remembers one interval of each satellite and host."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._ahead: dict[str, _Ahead] = {}

    async def day(self, day_us: int) -> list[Interval]:
        """The intervals that touch the day, or begin or end up to SETTLE_US before or after it."""
        chains: Chains = collections.defaultdict(list)
        since_us, until_us = day_us - SETTLE_US, day_us + DAY_US + SETTLE_US
        for item in await self._table.query(LIFE):
            reader = _HostReader(self._table, item, since_us, until_us)
            await reader.read_open()
            await reader.read_past(past_key(until_us + 1, 0))
            for number, interval in (await self._over_the_end(text(item, "sk"), reader, until_us)).values():
                reader.add(number, interval)
            reader.add_to(chains)
        return merged(chains)

    async def _over_the_end(
        self, host: str, reader: _HostReader, until_us: int
    ) -> dict[SatelliteKey, tuple[int, Interval]]:
        """Of each satellite that is not seen in the same state ever since, the first interval that ends after the day."""
        ahead = self._ahead.get(host)
        if ahead is None or ahead.pulled != reader.record.pulled:
            ahead = self._ahead[host] = _Ahead(reader.record.pulled)
        ahead.found = {key: each for key, each in ahead.found.items() if each[1].to_us > until_us}
        missing = {key for key, each in reader.opened.items() if each.began.wall_us > until_us} - ahead.found.keys()
        if missing:
            ahead.found |= await reader.find_after(until_us, missing)
        return ahead.found
