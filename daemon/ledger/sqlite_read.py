"""Reads an SQLite ledger: intervals, and what a report needs of a span. Each function blocks, and needs no Trio."""

import json
import sqlite3
from collections.abc import Mapping

from bentpipe.daemon.ledger import sqlite_days
from bentpipe.daemon.ledger.contract import (
    DAY_US,
    SETTLE_US,
    Interval,
    LedgerSpan,
    Stretch,
    stamp_of,
)
from bentpipe.daemon.ledger.facts import read_facts
from bentpipe.daemon.model import Resume, SatelliteKey, SatelliteState, StateFacts
from bentpipe.daemon.store.malformed import MalformedRow, MalformedRows, text_of, whole_of
from bentpipe.daemon.store.schema import FACTS_VERSION, RESUME_VERSION, reading, version_of


def intervals(connection: sqlite3.Connection, since_us: int, until_us: int) -> list[Interval]:
    """See Ledger. Quick if few intervals end after `since_us`."""
    # Most intervals begin before the end of a span, so the index on their ends finds it: + keeps the other one out.
    return _select(
        connection,
        "+from_us <= :until AND (to_us >= :since OR (to_us IS NULL AND max(from_us, life.wall_us) >= :since))",
        {"since": since_us, "until": until_us},
    )


def settled_us(connection: sqlite3.Connection) -> int:
    """See RolledLedger."""
    found = connection.execute("SELECT wall_us FROM life").fetchone()
    return 0 if found is None else whole_of(found[0], "wall_us")


def day(connection: sqlite3.Connection, day_us: int) -> list[Interval]:
    """See RolledLedger."""
    until_us = day_us + DAY_US + SETTLE_US
    with reading(connection):
        state = sqlite_days.rolled(connection)
        if state is None or state.cleared_us < day_us:
            return intervals(connection, day_us - SETTLE_US, until_us)
        # Nothing older is left, so the index on their begins finds all.
        return _select(connection, "from_us <= :until", {"until": until_us})


def span(connection: sqlite3.Connection, since_us: int, until_us: int) -> LedgerSpan:
    """See Ledger."""
    with reading(connection):
        state = sqlite_days.rolled(connection)
        if state is None:
            return _detailed(connection, since_us, until_us)
        day_us = since_us // DAY_US * DAY_US
        is_cleared = since_us < state.cleared_us and bool(sqlite_days.days(connection, day_us, day_us + DAY_US))
        first_us = day_us if is_cleared else since_us
        days_us, end_us = -(-first_us // DAY_US) * DAY_US, min(state.until_us, until_us // DAY_US * DAY_US)
        if days_us >= end_us:
            return _detailed(connection, since_us, until_us)
        stretches = [(first_us, days_us), (end_us, until_us)]
        return LedgerSpan(
            first_us,
            until_us,
            tuple(_stretch(connection, begin_us, end_us) for begin_us, end_us in stretches if begin_us < end_us),
            sqlite_days.sums(connection, days_us, end_us),
            max(first_us, state.cleared_us),
        )


def _detailed(connection: sqlite3.Connection, since_us: int, until_us: int) -> LedgerSpan:
    return LedgerSpan(since_us, until_us, (_stretch(connection, since_us, until_us),), [], since_us)


def _stretch(connection: sqlite3.Connection, since_us: int, until_us: int) -> Stretch:
    return Stretch(since_us, until_us, intervals(connection, since_us - SETTLE_US, until_us + SETTLE_US))


def _select(connection: sqlite3.Connection, condition: str, values: Mapping[str, int]) -> list[Interval]:
    # A reader takes an older file as it is.
    version = version_of(connection)
    resume = "resume" if version >= RESUME_VERSION else f"'{Resume.UNKNOWN.value}'"
    facts = "facts" if version >= FACTS_VERSION else "'{}'"
    rows = connection.execute(
        f"""SELECT org, name, state, from_us, from_boot_us, from_boot_id, to_us, elapsed_us, cause, who,
                  life.wall_us, life.boot_us, life.boot_id,
                  {facts}, phases, clients, waited_s, waited_longest_s, {resume}
           FROM life CROSS JOIN interval CROSS JOIN satellite ON satellite.id = interval.satellite
           WHERE {condition}
           ORDER BY org, name, interval.id""",
        values,
    ).fetchall()
    return MalformedRows("interval").read(rows, lambda row: (*row[:2], row[3]), _interval)


def _interval(row: tuple[object, ...]) -> Interval:
    """Read a row, whatever its columns hold. Raises MalformedRow, or ValueError for a value that we never write."""
    org, name, state, from_us, boot_us, boot_id, to_us, elapsed_us, cause, who, *rest = row
    began = stamp_of(from_us, boot_us, boot_id)
    is_open = to_us is None
    if is_open:
        last = stamp_of(*rest[:3])
        to_us, elapsed_us = max(began.wall_us, last.wall_us), began.until_us(last)
    return Interval(
        SatelliteKey(text_of(org, "org"), text_of(name, "name")),
        SatelliteState(state),
        began.wall_us,
        whole_of(to_us, "to_us"),
        whole_of(elapsed_us, "elapsed_us"),
        text_of(cause, "cause"),
        text_of(who, "who"),
        is_open,
        _facts_of(*rest[3:]),
    )


def _facts_of(
    facts: object, phases: object, clients: object, waited_s: object, longest_s: object, resume: object
) -> StateFacts:
    """Read `facts`, or the columns that had them before FACTS_VERSION. Raises MalformedRow, ValueError."""
    found = json.loads(text_of(facts, "facts"))
    if not isinstance(found, dict):
        raise MalformedRow("facts is not a JSON object")
    if not found:
        waits = [clients, waited_s, longest_s]
        found = {"phases": json.loads(text_of(phases, "phases")), "waits": waits, "resume": resume}
    return read_facts(found)
