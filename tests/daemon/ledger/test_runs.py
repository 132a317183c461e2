"""Runs of days that are added up at once: a report of many days says the same by them as day by day."""

import itertools
import json
import sqlite3
from pathlib import Path

import pytest

from beds.contracts.rolled import FIRST_US, Books, RunsContract
from bentpipe.config.store import StoreSection
from bentpipe.daemon.ledger.contract import DAY_US
from bentpipe.daemon.ledger.spans import RUN_DAYS, Run, runs_within
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.report.summary import summarise
from bentpipe.daemon.service.ledger_reading import read_span
from bentpipe.daemon.store.schema import APPLICATION_ID, MIGRATIONS, RUNS_VERSION


def books_at(path: Path) -> Books:
    return Books(lambda: SqliteLedger(path), lambda: SqliteLedger(path), {"path": str(path)})


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return books_at(tmp_path / "ledger.sqlite")


class TestSqlite(RunsContract):
    """The suite that every ledger with sums passes, and what is SQLite's own."""

    async def test_a_file_of_the_version_before_is_read_and_brought_up_to_date(self, tmp_path: Path) -> None:
        """Its days have no intervals any more, and there are no runs of days."""
        path, newer = tmp_path / "older.sqlite", tmp_path / "newer.sqlite"
        await self.fill(books_at(newer))
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
        span = (FIRST_US, FIRST_US + self.DAYS * DAY_US)
        wanted = summarise(read_span(StoreSection(path=newer), *span), None)
        assert summarise(read_span(StoreSection(path=path), *span), None) == wanted
        await self.add_runs(books_at(path))
        assert summarise(read_span(StoreSection(path=path), *span), None) == wanted
        assert len(read_span(StoreSection(path=path), *span).sums) < 50

    async def test_sums_of_a_run_that_cannot_be_read_are_left_out(
        self, books: Books, caplog: pytest.LogCaptureFixture
    ) -> None:
        await self.fill(books)
        await self.add_runs(books)
        with sqlite3.connect(books.settings["path"]) as connection:
            connection.execute("UPDATE run SET sums = ? WHERE days = 64", (json.dumps({"wake": 3}),))
        connection.close()
        found = await books.report(*self.spans()[0], None)
        assert 0 < found.everything.wakes < self.DAYS
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
