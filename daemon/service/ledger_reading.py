"""Reads the ledger for a command, with or without a running daemon. SQLite is read without Trio, which starts quickly."""

import functools
from pathlib import Path

from bentpipe.config.store import LEDGER_NAME, StoreSection
from bentpipe.daemon.errors import StoreUnusable
from bentpipe.daemon.ledger import sqlite_read
from bentpipe.daemon.ledger.contract import Interval, LedgerSpan
from bentpipe.daemon.store.sqlite_open import read_once

SERVICE_LEDGER = Path("/var/lib/bentpipe") / LEDGER_NAME
"""Where the unit's StateDirectory= puts it; an operator's shell has no STATE_DIRECTORY."""


def read_span(section: StoreSection, since_us: int, until_us: int) -> LedgerSpan:
    """What the ledger has of the span; times in microseconds since the epoch. Raises StoreError, StoreUnusable."""
    path = _file(section)
    if path is not None:
        return read_once(path, lambda connection: sqlite_read.span(connection, since_us, until_us))
    import trio

    return trio.run(functools.partial(_read_shared_span, section, since_us, until_us))


def read_intervals(section: StoreSection, since_us: int, until_us: int) -> list[Interval]:
    """The intervals that touch the span, as `Ledger.intervals`. Raises StoreError, StoreUnusable."""
    path = _file(section)
    if path is not None:
        return read_once(path, lambda connection: sqlite_read.intervals(connection, since_us, until_us))
    import trio

    return trio.run(functools.partial(_read_shared_intervals, section, since_us, until_us))


def _file(section: StoreSection) -> Path | None:
    """The SQLite file; None if the ledger is in DynamoDB. Raises StoreUnusable if there is no ledger."""
    if section.kind == "dynamodb":
        return None
    path = section.ledger_path() or SERVICE_LEDGER
    if section.kind == "none" or not path.exists():
        raise StoreUnusable(f"no ledger at {path}; [store] path in the configuration says where one is kept")
    return path


async def _read_shared_span(section: StoreSection, since_us: int, until_us: int) -> LedgerSpan:
    from bentpipe.daemon.service.stores import shared_ledger

    return await shared_ledger(section).span(since_us, until_us)


async def _read_shared_intervals(section: StoreSection, since_us: int, until_us: int) -> list[Interval]:
    from bentpipe.daemon.service.stores import shared_ledger

    return await shared_ledger(section).intervals(since_us, until_us)
