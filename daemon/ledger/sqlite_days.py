"""Past days of an SQLite ledger: their sums, and which intervals are left. Each function is one transaction, and blocks."""

import sqlite3
from collections.abc import Mapping

from bentpipe.daemon.ledger.contract import DAY_US, DaySums, RolledState
from bentpipe.daemon.ledger.spans import RUN_DAYS, RUN_PARTS, Run, run_begin_us, runs_within
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.store.malformed import MalformedRows, text_of, whole_of
from bentpipe.daemon.store.schema import DAYS_VERSION, RUNS_VERSION, transaction, version_of

FIRST_US = """
SELECT min(from_us) FROM (
    SELECT from_us FROM interval WHERE id = (SELECT min(id) FROM interval)
    UNION ALL SELECT min(from_us) FROM interval WHERE to_us IS NULL
)
"""
"""Rows are written in the order of time: the oldest is the first one, or is still open."""


def rolled(connection: sqlite3.Connection) -> RolledState | None:
    """See RolledLedger. A reader takes an older file as it is."""
    version = version_of(connection)
    if version >= DAYS_VERSION:
        cleared = "cleared_us" if version >= RUNS_VERSION else "until_us"
        found = connection.execute(f"SELECT until_us, {cleared} FROM rolled").fetchone()
        if found is not None:
            return RolledState(whole_of(found[0], "until_us"), whole_of(found[1], "cleared_us"))
    (first_us,) = connection.execute(FIRST_US).fetchone()
    if first_us is None:
        return None
    day_us = whole_of(first_us, "from_us") // DAY_US * DAY_US
    return RolledState(day_us, day_us)


def days(connection: sqlite3.Connection, since_us: int, until_us: int) -> list[DaySums]:
    """See RolledLedger."""
    if version_of(connection) < DAYS_VERSION:
        return []
    rows = connection.execute(
        """SELECT org, name, day_us, sums FROM day JOIN satellite ON satellite.id = day.satellite
           WHERE day_us >= ? AND day_us < ? ORDER BY org, name, day_us""",
        (since_us, until_us),
    ).fetchall()
    return MalformedRows("day").read(rows, lambda row: row[:3], _sums_of)


def sums(connection: sqlite3.Connection, since_us: int, until_us: int) -> list[DaySums]:
    """The sums that make up the span of whole days, of as many days at once as there are."""
    found: list[DaySums] = []
    known = _known_runs(connection)
    for run in runs_within(since_us, until_us, known):
        found += _run(connection, run) if run.days > 1 else days(connection, run.begin_us, run.end_us)
    return found


def roll_up(connection: sqlite3.Connection, day_us: int, sums: Mapping[SatelliteKey, str]) -> None:
    """See RolledLedger."""
    with transaction(connection):
        state = rolled(connection)
        if state is None or state.until_us != day_us:
            return
        for key, text in sums.items():
            connection.execute(
                "INSERT INTO day SELECT id, ?, ? FROM satellite WHERE org = ? AND name = ?",
                (day_us, text, key.org, key.name),
            )
        connection.execute("INSERT OR REPLACE INTO rolled VALUES (1, ?, ?)", (day_us + DAY_US, state.cleared_us))


def clear(connection: sqlite3.Connection, until_us: int) -> None:
    """See RolledLedger."""
    with transaction(connection):
        state = rolled(connection)
        if state is None or min(until_us, state.until_us) <= state.cleared_us:
            return
        until_us = min(until_us, state.until_us)
        connection.execute("DELETE FROM interval WHERE to_us <= ?", (until_us,))
        connection.execute("UPDATE rolled SET cleared_us = ?", (until_us,))


def next_parts(connection: sqlite3.Connection) -> tuple[int, int, list[DaySums]] | None:
    """See RolledLedger."""
    until_us = connection.execute("SELECT until_us FROM rolled").fetchone()
    (first_us,) = connection.execute("SELECT min(day_us) FROM day").fetchone()
    if until_us is None or first_us is None:
        return None
    known = _known_runs(connection)
    for length in reversed(RUN_DAYS):
        begin_us = known[length][1] if length in known else run_begin_us(length, whole_of(first_us, "day_us"))
        run = Run(length, begin_us)
        if run.end_us <= whole_of(until_us[0], "until_us"):
            return length, begin_us, _parts(connection, run)
    return None


def add_run(connection: sqlite3.Connection, days: int, begin_us: int, sums: Mapping[SatelliteKey, str]) -> None:
    """See RolledLedger."""
    run = Run(days, begin_us)
    with transaction(connection):
        found = connection.execute("SELECT until_us FROM added WHERE days = ?", (days,)).fetchone()
        if found is not None and found[0] != begin_us:
            return
        for key, text in sums.items():
            connection.execute(
                "INSERT INTO run SELECT ?, ?, id, ? FROM satellite WHERE org = ? AND name = ?",
                (days, begin_us, text, key.org, key.name),
            )
        connection.execute("INSERT OR REPLACE INTO added VALUES (?, ?)", (days, run.end_us))


def forget_days(connection: sqlite3.Connection, before_us: int) -> None:
    """See RolledLedger."""
    with transaction(connection):
        connection.execute("DELETE FROM day WHERE day_us < ?", (before_us,))
        connection.execute("DELETE FROM run WHERE begin_us < ?", (before_us,))


def take_back(connection: sqlite3.Connection, at_us: int) -> None:
    """The wall clock has stepped back to `at_us`: what was added up of later days is deleted, to be added up again.

    Days whose intervals are deleted stay as they are. Call it within a transaction.
    """
    state = rolled(connection)
    if state is None:
        return
    until_us = max(at_us // DAY_US * DAY_US, state.cleared_us)
    if until_us >= state.until_us:
        return
    connection.execute("DELETE FROM day WHERE day_us >= ?", (until_us,))
    connection.execute("DELETE FROM run WHERE begin_us + days * ? > ?", (DAY_US, until_us))
    connection.execute("UPDATE rolled SET until_us = ?", (until_us,))
    for length in RUN_DAYS:
        connection.execute(
            "UPDATE added SET until_us = min(until_us, ?) WHERE days = ?", (run_begin_us(length, until_us), length)
        )


def _known_runs(connection: sqlite3.Connection) -> dict[int, tuple[int, int]]:
    """For each length from when until when there are runs."""
    if version_of(connection) < RUNS_VERSION:
        return {}
    known = {}
    for length in RUN_DAYS:
        (from_us,) = connection.execute("SELECT min(begin_us) FROM run WHERE days = ?", (length,)).fetchone()
        until = connection.execute("SELECT until_us FROM added WHERE days = ?", (length,)).fetchone()
        if until is not None:
            until_us = whole_of(until[0], "until_us")
            known[length] = (until_us if from_us is None else whole_of(from_us, "begin_us"), until_us)
    return known


def _parts(connection: sqlite3.Connection, run: Run) -> list[DaySums]:
    part_days = run.days // RUN_PARTS
    if part_days == 1:
        return days(connection, run.begin_us, run.end_us)
    begins = range(run.begin_us, run.end_us, part_days * DAY_US)
    return [each for begin_us in begins for each in _run(connection, Run(part_days, begin_us))]


def _run(connection: sqlite3.Connection, run: Run) -> list[DaySums]:
    rows = connection.execute(
        """SELECT org, name, begin_us, sums FROM run JOIN satellite ON satellite.id = run.satellite
           WHERE days = ? AND begin_us = ? ORDER BY org, name""",
        (run.days, run.begin_us),
    ).fetchall()
    return MalformedRows("run").read(rows, lambda row: row[:3], _sums_of)


def _sums_of(row: tuple[object, ...]) -> DaySums:
    org, name, day_us, sums = row
    return DaySums(
        SatelliteKey(text_of(org, "org"), text_of(name, "name")), whole_of(day_us, "day_us"), text_of(sums, "sums")
    )
