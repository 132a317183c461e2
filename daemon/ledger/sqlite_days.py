"""The days of an SQLite ledger of which only the sums are left. Each function is one transaction, and blocks."""

import sqlite3
from collections.abc import Mapping

from bentpipe.daemon.ledger.contract import DAY_US, DaySums
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.store.malformed import MalformedRows, text_of, whole_of
from bentpipe.daemon.store.schema import DAYS_VERSION, transaction, version_of

FIRST_US = """
SELECT min(from_us) FROM (
    SELECT from_us FROM interval WHERE id = (SELECT min(id) FROM interval)
    UNION ALL SELECT min(from_us) FROM interval WHERE to_us IS NULL
)
"""
"""Rows are written in the order of time: the oldest is the first one, or is still open."""


def rolled_until_us(connection: sqlite3.Connection) -> int | None:
    """See RolledLedger. A reader takes an older file as it is."""
    if version_of(connection) >= DAYS_VERSION:
        found = connection.execute("SELECT until_us FROM rolled").fetchone()
        if found is not None:
            return whole_of(found[0], "until_us")
    (first_us,) = connection.execute(FIRST_US).fetchone()
    return None if first_us is None else whole_of(first_us, "from_us") // DAY_US * DAY_US


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


def roll_up(connection: sqlite3.Connection, day_us: int, sums: Mapping[SatelliteKey, str]) -> None:
    """See RolledLedger."""
    with transaction(connection):
        if rolled_until_us(connection) != day_us:
            return
        for key, text in sums.items():
            connection.execute(
                "INSERT INTO day SELECT id, ?, ? FROM satellite WHERE org = ? AND name = ?",
                (day_us, text, key.org, key.name),
            )
        until_us = day_us + DAY_US
        connection.execute("INSERT OR REPLACE INTO rolled VALUES (1, ?)", (until_us,))
        connection.execute("DELETE FROM interval WHERE to_us <= ?", (until_us,))


def forget_days(connection: sqlite3.Connection, before_us: int) -> None:
    """See RolledLedger."""
    with transaction(connection):
        connection.execute("DELETE FROM day WHERE day_us < ?", (before_us,))


def _sums_of(row: tuple[object, ...]) -> DaySums:
    org, name, day_us, sums = row
    return DaySums(
        SatelliteKey(text_of(org, "org"), text_of(name, "name")), whole_of(day_us, "day_us"), text_of(sums, "sums")
    )
