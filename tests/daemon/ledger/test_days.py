"""Days of the ledger of which only the sums are left: a report says the same as before, and nothing is counted twice."""

import json
import random
import sqlite3
from pathlib import Path

import pytest

from beds.contracts.rolled import BEGIN_US, Books, RolledContract, fill
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.report.days import read_day, write_day
from bentpipe.daemon.report.durations import Durations
from bentpipe.daemon.store.malformed import MalformedRow


@pytest.fixture
def books(tmp_path: Path) -> Books:
    path = tmp_path / "ledger.sqlite"
    return Books(lambda: SqliteLedger(path), lambda: SqliteLedger(path), {"path": str(path)})


class TestSqlite(RolledContract):
    """The suite that every ledger with sums passes."""


async def test_sums_that_cannot_be_read_are_left_out(books: Books, caplog: pytest.LogCaptureFixture) -> None:
    end_us = await fill(books)
    await books.roll_up(end_us, books.section(detail_days=1))
    whole = await books.report(BEGIN_US, end_us)
    with sqlite3.connect(books.settings["path"]) as connection:
        connection.execute("UPDATE day SET sums = '{\"wake\": 3}' WHERE day_us = (SELECT min(day_us) FROM day)")
    connection.close()
    spoiled = await books.report(BEGIN_US, end_us)
    assert 0 < spoiled.everything.awake_h < whole.everything.awake_h
    assert "a row is left out" in caplog.text


def test_a_day_is_read_as_it_was_written() -> None:
    found = read_day(write_day(read_day(json.dumps({"awake_s": 1.5, "later": 1, "wake": {"total": [9.0, 1, 2]}}))))
    assert (found.awake_s, len(found.wake["total"]), found.wake["total"].longest_s) == (1.5, 2, 9.0)


@pytest.mark.parametrize(
    "plain_form", [[], [1.0, 2], ["x"], [1.0, 1, 0], [1.0, 1, -1], [1.0, 10**6, 1], {}, None, [True]]
)
def test_durations_that_are_never_written_are_refused(plain_form: object) -> None:
    with pytest.raises(MalformedRow):
        Durations.of_plain(plain_form)


def test_counted_durations_are_at_most_1_percent_off() -> None:
    chance = random.Random(3)
    exact = Durations([chance.lognormvariate(2, 2) for _ in range(5000)])
    counted = Durations.of_plain(json.loads(json.dumps(exact.to_plain())))
    there, here = exact.spread(), counted.spread()
    assert here.count == there.count
    assert here.longest_s == pytest.approx(there.longest_s, abs=1e-6)
    assert here.p50_s == pytest.approx(there.p50_s, rel=0.0101)
    assert here.p95_s == pytest.approx(there.p95_s, rel=0.0101)
    assert counted.shortfall_s(10) == pytest.approx(exact.shortfall_s(10), rel=0.01)
