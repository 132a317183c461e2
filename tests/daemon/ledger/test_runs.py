"""Runs of days that are added up at once: a report of many days says the same by them as day by day."""

import itertools
import json
import sqlite3
from pathlib import Path

import pytest

from beds.contracts.ledger import ALWAYS
from bentpipe.config.model import StoreSection
from bentpipe.daemon.ledger.contract import DAY_US, Stamp
from bentpipe.daemon.ledger.spans import RUN_DAYS, Run, runs_within
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.report.days import write_day
from bentpipe.daemon.report.durations import Durations
from bentpipe.daemon.report.summary import summarise
from bentpipe.daemon.report.tally import TOTAL, Tally
from bentpipe.daemon.service.ledger_reading import read_span
from bentpipe.daemon.service.rolling import roll_up_step
from bentpipe.daemon.store.schema import APPLICATION_ID, MIGRATIONS, RUNS_VERSION

KEYS = [SatelliteKey("acme", "a"), SatelliteKey("acme", "b")]
FIRST_US = 20_003 * DAY_US
"""A day with which no run of days begins."""
DAYS = 300


async def fill(path: Path) -> None:
    """A ledger of which only the sums of days are left, each different."""
    ledger = SqliteLedger(path)
    await ledger.begin(KEYS, Stamp(FIRST_US, FIRST_US, "boot"))
    await ledger.beat(Stamp(FIRST_US + DAYS * DAY_US, DAYS * DAY_US, "boot"))
    for number in range(DAYS):
        keys = KEYS if number % 3 else KEYS[:1]
        tally = Tally(awake_s=number + 0.25, failed=number % 2, wake={TOTAL: Durations([1.0 + number])})
        await ledger.roll_up(FIRST_US + number * DAY_US, {key: write_day(tally) for key in keys})
    await ledger.clear(FIRST_US + DAYS * DAY_US)
    await ledger.aclose()


async def add_runs(path: Path) -> None:
    ledger = SqliteLedger(path)
    while await roll_up_step(ledger, StoreSection(detail=0), FIRST_US + DAYS * DAY_US):
        pass
    await ledger.aclose()


def spans() -> list[tuple[int, int]]:
    whole = [(0, DAYS), (0, 1), (1, 5), (13, 214), (61, 61 + 64), (299, 300), (5, 299)]
    return [(FIRST_US + begin * DAY_US, FIRST_US + end * DAY_US) for begin, end in whole]


async def test_runs_say_the_same_as_days(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    await fill(path)
    section = StoreSection(path=path)
    before = [summarise(read_span(section, *span), None) for span in spans()]
    rows = [len(read_span(section, *span).sums) for span in spans()]
    await add_runs(path)
    for span, report in zip(spans(), before, strict=True):
        assert summarise(read_span(section, *span), None) == report
    assert len(read_span(section, *spans()[0]).sums) < 50 < rows[0]


async def test_days_that_are_forgotten_leave_what_is_kept(tmp_path: Path) -> None:
    """A run of which some days are forgotten is not used; its other days are."""
    path = tmp_path / "ledger.sqlite"
    await fill(path)
    await add_runs(path)
    forgotten_us = FIRST_US + 7 * DAY_US
    ledger = SqliteLedger(path)
    await ledger.forget_days(forgotten_us)
    by_day = await ledger.days(*ALWAYS)
    await ledger.aclose()
    end_us = FIRST_US + DAYS * DAY_US
    found = summarise(read_span(StoreSection(path=path), FIRST_US, end_us), None)
    assert found.everything.wakes == len(by_day)


async def test_a_file_of_the_version_before_is_read_and_brought_up_to_date(tmp_path: Path) -> None:
    """Its days have no intervals any more, and there are no runs of days."""
    path, newer = tmp_path / "older.sqlite", tmp_path / "newer.sqlite"
    await fill(newer)
    with sqlite3.connect(path) as connection:
        for statements in MIGRATIONS[: RUNS_VERSION - 1]:
            for statement in statements:
                connection.execute(statement)
        connection.execute("ATTACH ? AS newer", (str(newer),))
        for table in ("satellite", "interval", "life", "day"):
            connection.execute(f"INSERT INTO {table} SELECT * FROM newer.{table}")
        connection.execute("INSERT INTO rolled SELECT id, until_us FROM newer.rolled")
        connection.execute(f"PRAGMA user_version = {RUNS_VERSION - 1}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.close()
    span = (FIRST_US, FIRST_US + DAYS * DAY_US)
    wanted = summarise(read_span(StoreSection(path=newer), *span), None)
    assert summarise(read_span(StoreSection(path=path), *span), None) == wanted
    await add_runs(path)
    assert summarise(read_span(StoreSection(path=path), *span), None) == wanted
    assert len(read_span(StoreSection(path=path), *span).sums) < 50


async def test_sums_of_a_run_that_cannot_be_read_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ledger.sqlite"
    await fill(path)
    await add_runs(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE run SET sums = ? WHERE days = 64", (json.dumps({"wake": 3}),))
    connection.close()
    found = summarise(read_span(StoreSection(path=path), *spans()[0]), None)
    assert 0 < found.everything.wakes < DAYS
    assert "a row is left out" in caplog.text


def test_the_fewest_runs_make_up_a_span() -> None:
    known = dict.fromkeys(RUN_DAYS, (0, 4096 * DAY_US))
    for begin, end in [(0, 1), (3, 70), (1, 366), (64, 128), (63, 129), (5, 5)]:
        runs = runs_within(begin * DAY_US, end * DAY_US, known)
        assert sum(run.days for run in runs) == end - begin
        assert all(one.end_us == other.begin_us for one, other in itertools.pairwise(runs))
        assert len(runs) <= 23
    assert runs_within(0, 64 * DAY_US, known) == [Run(64, 0)]
    assert len(runs_within(0, 64 * DAY_US, {})) == 64
    assert len(runs_within(0, 64 * DAY_US, {64: (DAY_US, 4096 * DAY_US)})) == 64
