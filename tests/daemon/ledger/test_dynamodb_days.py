"""Past days of the ledger in DynamoDB: the suite that SQLite passes too, and what several hosts do at once."""

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import trio

from beds.contracts.ledger import ALWAYS, A, B, Clock, Writer
from beds.contracts.rolled import BEGIN_US, KEYS, Books, RolledContract, RunsContract, check_same, fill, stamp
from bentpipe.config.store import StoreSection
from bentpipe.daemon.ledger import dynamodb_days, dynamodb_read
from bentpipe.daemon.ledger.contract import DAY_US, SETTLE_US, Stamp, StampedTransition
from bentpipe.daemon.ledger.dynamodb import WHOLE_US, DynamoLedger
from bentpipe.daemon.ledger.dynamodb_days import ABSENT_US, DynamoDays
from bentpipe.daemon.model import SatelliteKey, SatelliteState, Transition
from bentpipe.daemon.report.summary import summarise
from bentpipe.daemon.service.rolling import roll_up_step
from bentpipe.daemon.store import dynamodb_table
from bentpipe.daemon.store.dynamodb_table import Table

S = SatelliteState
DAY_0 = BEGIN_US // DAY_US * DAY_US
KEEP_ALL = {"kind": "dynamodb", "table": "ledger"}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator copies all tables for each transaction, which takes seconds on a busy machine."""
    for name in ("CALL_DEADLINE_S", "DOUBTFUL_DEADLINE_S"):
        monkeypatch.setattr(dynamodb_table, name, 120.0)


@pytest.fixture
def books(tables: Callable[[str], Table]) -> Books:
    table = tables("days")
    return Books(lambda: DynamoLedger(table, "edge-1"), lambda: DynamoDays(table), KEEP_ALL, 36_000_000_000)


class TestDays(RolledContract):
    """The suite that every ledger with sums passes."""


@pytest.mark.slow
class TestRuns(RunsContract):
    """The same."""

    DAYS = 100


def moved(serial: int, at_us: int, before: SatelliteState, after: SatelliteState) -> StampedTransition:
    return StampedTransition(serial, stamp(at_us), Transition(A, before, after, 0.0, "test", who="ci"))


async def test_by_default_every_interval_stays(books: Books) -> None:
    end_us = await fill(books)
    before = await books.intervals()
    await books.roll_up(end_us + 40 * DAY_US, StoreSection.model_validate(KEEP_ALL))
    assert await books.intervals() == before
    assert len(await books.open_rolled().days(*ALWAYS)) > 10


async def test_hosts_that_add_up_at_once_count_nothing_twice(
    books: Books, tables: Callable[[str], Table], caplog: pytest.LogCaptureFixture
) -> None:
    end_us = await fill(books)
    exact = await books.report(DAY_0, end_us)
    steps = 0

    async def add_up() -> None:
        nonlocal steps
        rolled = DynamoDays(tables("days"))
        while await roll_up_step(rolled, books.section(detail_days=2), end_us):
            steps += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(add_up)
    days = await books.open_rolled().days(*ALWAYS)
    assert len({(each.key, each.day_us) for each in days}) == len(days)
    assert steps >= len({each.day_us for each in days})
    check_same(await books.report(DAY_0, end_us), exact)


async def test_a_host_that_comes_late_writes_nothing(books: Books) -> None:
    """It has read a day that another host has added up, taken back, and added up again meanwhile."""
    end_us = await fill(books)
    late, other = books.open_rolled(), books.open_rolled()
    assert await late.rolled() is not None
    await late.day(DAY_0)
    await other.day(DAY_0)
    await other.roll_up(DAY_0, {KEYS[0]: "first"})
    ledger = books.open()
    await ledger.begin(KEYS, Stamp(DAY_0 + 7_200_000_000, end_us, "boot"))
    await other.day(DAY_0)
    await other.roll_up(DAY_0, {KEYS[0]: "second"})
    await late.roll_up(DAY_0, {KEYS[0]: "late", KEYS[1]: "late"})
    assert [(each.key, each.sums) for each in await other.days(*ALWAYS)] == [(KEYS[0], "second")]


async def test_what_an_attempt_has_left_is_not_counted(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host dies after some items of a day; the next one does not see the same satellites any more."""
    await fill(books)
    dying = books.open_rolled()
    assert isinstance(dying, DynamoDays)
    await dying.rolled()

    async def die(*_: object) -> bool:
        raise RuntimeError("killed")

    monkeypatch.setattr(dying, "_change", die)
    with pytest.raises(RuntimeError):
        await dying.roll_up(DAY_0, {KEYS[0]: "left", KEYS[1]: "left"})
    rolled = books.open_rolled()
    assert await rolled.days(*ALWAYS) == []
    await rolled.roll_up(DAY_0, {KEYS[1]: "whole"})
    assert [(each.key, each.sums) for each in await rolled.days(*ALWAYS)] == [(KEYS[1], "whole")]


async def test_sums_are_those_of_all_hosts_together(tables: Callable[[str], Table]) -> None:
    """The same satellite, as two hosts saw it, is counted once."""
    one, two = (DynamoLedger(tables("both"), host) for host in ("one", "two"))
    books = Books(lambda: DynamoLedger(tables("both"), "reader"), lambda: DynamoDays(tables("both")), KEEP_ALL)
    for serial, ledger in enumerate((one, two)):
        await ledger.begin([A], stamp(BEGIN_US))
        moves = [(10, S.UNKNOWN, S.STARTING), (40, S.STARTING, S.OPERATIONAL), (3600, S.OPERATIONAL, S.SLEEP)]
        told = [moved(n, BEGIN_US + (at_s + serial) * 1_000_000, *states) for n, (at_s, *states) in enumerate(moves, 1)]
        await ledger.record(told)
    end_us = BEGIN_US + 3 * DAY_US
    for ledger in (one, two):
        await ledger.beat(stamp(end_us))
    exact = await books.report(DAY_0, end_us)
    assert exact.everything.wakes == 1
    await books.roll_up(end_us, books.section(detail_days=1))
    check_same(await books.report(DAY_0, end_us), exact)


async def test_a_day_waits_for_the_slowest_host_and_not_for_one_that_is_gone(tables: Callable[[str], Table]) -> None:
    slow, quick = (DynamoLedger(tables("slow"), host) for host in ("slow", "quick"))
    rolled = DynamoDays(tables("slow"))
    section = StoreSection.model_validate(KEEP_ALL)
    for ledger in (slow, quick):
        await ledger.begin([A], stamp(BEGIN_US))
    due_us = DAY_0 + DAY_US + SETTLE_US
    await quick.beat(stamp(due_us))
    await slow.beat(stamp(due_us - 1))
    assert not await roll_up_step(rolled, section, due_us + DAY_US)
    await quick.beat(stamp(due_us + ABSENT_US))
    assert await roll_up_step(rolled, section, due_us + 2 * DAY_US), "the slow one has been silent for a day"


async def test_a_host_that_comes_back_has_its_days_added_up_again(tables: Callable[[str], Table]) -> None:
    """Its clients have used the satellite all the while, which no other host knew."""
    away, there = (Writer(DynamoLedger(tables("back"), host), Clock()) for host in ("away", "there"))
    for writer in (away, there):
        await writer.ledger.begin([A] if writer is away else [B], writer.clock.now())
    await away.move(A, S.OPERATIONAL)
    books = Books(lambda: DynamoLedger(tables("back"), "reader"), lambda: DynamoDays(tables("back")), KEEP_ALL)
    began_us = there.clock.wall_us
    for writer in (away, there):
        writer.clock.advance(5 * 86_400)
    await there.ledger.beat(there.clock.now())
    section = StoreSection.model_validate(KEEP_ALL)
    await books.roll_up(there.clock.wall_us, section)
    before = await books.report(began_us, there.clock.wall_us)
    assert before.everything.awake_h < 1
    again = DynamoLedger(tables("back"), "away")
    await again.begin([A], away.clock.now(), [A])
    await again.beat(away.clock.now())
    assert await DynamoDays(tables("back")).days(began_us + DAY_US, there.clock.wall_us) == []
    await books.roll_up(there.clock.wall_us, section)
    after = await books.report(began_us, there.clock.wall_us)
    assert after.everything.awake_h == pytest.approx(5 * 24, abs=0.1)


async def test_a_clock_that_is_years_ahead_does_no_harm(tables: Callable[[str], Table]) -> None:
    """The wrong host adds up days that have not been yet; the others take them back with what they write."""
    good, wrong = (DynamoLedger(tables("ahead"), host) for host in ("good", "wrong"))
    rolled = DynamoDays(tables("ahead"))
    section = StoreSection.model_validate(KEEP_ALL)
    await good.begin([A], stamp(BEGIN_US))
    await wrong.begin([B], stamp(BEGIN_US))
    ahead_us = BEGIN_US + 3 * DAY_US
    await wrong.beat(stamp(ahead_us))
    while await roll_up_step(rolled, section, ahead_us):
        pass
    await good.record([moved(1, BEGIN_US + 60_000_000, S.UNKNOWN, S.OPERATIONAL)])
    state = await rolled.rolled()
    assert state is not None
    assert state.until_us == DAY_0
    await good.beat(stamp(ahead_us))
    books = Books(lambda: DynamoLedger(tables("ahead"), "reader"), lambda: DynamoDays(tables("ahead")), KEEP_ALL)
    exact = await books.report(DAY_0, ahead_us)
    await books.roll_up(ahead_us, section)
    check_same(await books.report(DAY_0, ahead_us), exact)


@pytest.mark.slow
async def test_a_year_is_reported_without_reading_its_intervals(
    tables: Callable[[str], Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in items: one satellite moves every four hours, another sleeps all the time."""
    days, hours = 24, 4
    ledger = DynamoLedger(tables("long"), "edge-1")
    await ledger.begin([A, B], stamp(BEGIN_US))
    states = itertools.cycle([S.STARTING, S.OPERATIONAL, S.SLEEP])
    before = S.UNKNOWN
    told = []
    for serial in range(1, days * 24 // hours):
        after = next(states)
        told.append(moved(serial, BEGIN_US + serial * hours * 3_600_000_000, before, after))
        before = after
    await ledger.record(told)
    end_us = BEGIN_US + days * DAY_US
    await ledger.beat(stamp(end_us))
    books = Books(lambda: DynamoLedger(tables("long"), "reader"), lambda: DynamoDays(tables("long")), KEEP_ALL)
    exact = await books.report(DAY_0, end_us)
    await books.roll_up(end_us, StoreSection.model_validate(KEEP_ALL))
    read = 0
    query = Table.query

    async def counted(table: Table, pk: str, **options: object) -> list[object]:
        nonlocal read
        found = await query(table, pk, **options)  # type: ignore[arg-type]
        read += len(found)
        return list(found)

    monkeypatch.setattr(Table, "query", counted)
    check_same(await books.report(DAY_0, end_us), exact)
    assert read < len(told) / 2
    read = 0
    within_us = DAY_0 + 5 * DAY_US + 1
    assert end_us - within_us > WHOLE_US
    report = await books.report(within_us, end_us)
    assert report.since_us == DAY_0 + 5 * DAY_US, "its first day counts whole"
    assert read < len(told) / 2


async def test_the_interval_over_a_days_end_is_looked_for_once(
    tables: Callable[[str], Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies behind everything that ended before it did; the next days remember it."""
    monkeypatch.setattr(dynamodb_read, "PAGE_ITEMS", 10)
    ledger = DynamoLedger(tables("over"), "edge-1")
    await ledger.begin([A, B], stamp(BEGIN_US))
    told, serial, before = [], itertools.count(1), S.UNKNOWN
    for hour in range(1, 6 * 24):
        after = S.SLEEP if before is S.OPERATIONAL else S.OPERATIONAL
        told.append(moved(next(serial), BEGIN_US + hour * 3_600_000_000, before, after))
        before = after
    # B is asleep from the first hour to the fifth day.
    for at_us, change in ((3_600_000_001, (S.UNKNOWN, S.SLEEP)), (5 * DAY_US, (S.SLEEP, S.STARTING))):
        told.append(StampedTransition(0, stamp(BEGIN_US + at_us), Transition(B, *change, 0.0, "test")))
    told.sort(key=lambda each: each.at.wall_us)
    numbered = [dataclasses.replace(each, serial=number) for number, each in enumerate(told, 1)]
    await ledger.record(numbered)
    end_us = BEGIN_US + 6 * DAY_US
    await ledger.beat(stamp(end_us))
    looked: list[set[SatelliteKey]] = []
    find_after = dynamodb_read._HostReader.find_after

    async def noted(reader: dynamodb_read._HostReader, at_us: int, wanted: set[SatelliteKey]) -> object:
        looked.append(set(wanted))
        return await find_after(reader, at_us, wanted)

    monkeypatch.setattr(dynamodb_read._HostReader, "find_after", noted)
    rolled, exact = DynamoDays(tables("over")), DynamoLedger(tables("over"), "reader")
    for day_us in range(DAY_0, DAY_0 + 4 * DAY_US, DAY_US):
        span = (day_us - SETTLE_US, day_us + DAY_US + SETTLE_US)
        assert await rolled.day(day_us) == await exact.intervals(*span)
    assert looked == [{A, B}, {A}, {A}, {A}]
    sleeps = await DynamoLedger(tables("over"), "reader").span(DAY_0, end_us)
    assert summarise(sleeps, None).everything.saved_h > 4 * 24


@pytest.mark.slow
async def test_deleting_goes_on_where_it_stopped(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few at a time: what is not deleted yet does not count any more."""
    monkeypatch.setattr(dynamodb_days, "CLEAR_ITEMS", 7)
    end_us = await fill(books)
    exact = await books.report(DAY_0, end_us)
    rolled, section = books.open_rolled(), books.section(detail_days=2)
    seen = set()
    while await roll_up_step(rolled, section, end_us):
        seen.add(len(await books.intervals()))
        check_same(await books.report(DAY_0, end_us), exact)
    assert len(seen) > 5
