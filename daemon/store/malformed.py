"""Rows that cannot be read: each is left out and logged once, and the other rows count.

Older and newer daemons write to a store, and so may people and other programs. SQLite checks few types, and DynamoDB checks
none. So code that reads a row checks every column, and raises MalformedRow if it holds something that the daemon never
writes. A row that is left out has no effect: an unreadable token admits no client, and an unreadable interval is missing in
the report.
"""

import logging
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from bentpipe.daemon.errors import StoreError

log = logging.getLogger("bentpipe.store")

R = TypeVar("R")
T = TypeVar("T")

TOLD_ROWS = 20
"""How many rows are logged one by one in one reading. Of the others only their number is logged."""
KEY_CHARS = 200
WORDS_CHARS = 300


class MalformedRow(StoreError):
    """A column is missing, or has a type or form that the daemon never writes. The message names the column."""

    retryable = False


def text_of(value: object, column: str) -> str:
    """A column of text. Raises MalformedRow."""
    if not isinstance(value, str):
        raise MalformedRow(f"{column} is not text: {_shown(value)}")
    return value


def whole_of(value: object, column: str) -> int:
    """A column of whole numbers. Raises MalformedRow."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise MalformedRow(f"{column} is not a whole number: {_shown(value)}")
    return value


def number_of(value: object, column: str) -> float:
    """A column of numbers. Raises MalformedRow."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise MalformedRow(f"{column} is not a number: {_shown(value)}")
    return float(value)


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r}"[:WORDS_CHARS]


class MalformedRows:
    """Remembers which rows of one table were logged already. Only one thread at a time may use it."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._told: set[Hashable] = set()

    def read(self, rows: Iterable[R], key_of: Callable[[R], Hashable], parse: Callable[[R], T]) -> list[T]:
        """Parse all rows. A row for which `parse` raises an Exception is left out, and logged once until it can be read."""
        found: list[T] = []
        bad: set[Hashable] = set()
        news: list[tuple[str, str]] = []
        for row in rows:
            try:
                found.append(parse(row))
            except Exception as exc:
                key = _key_of(row, key_of)
                bad.add(key)
                if key not in self._told:
                    words = str(exc) if isinstance(exc, StoreError) else f"{type(exc).__name__}: {exc}"
                    news.append((str(key)[:KEY_CHARS], words[:WORDS_CHARS]))
        self._told = bad
        for shown, words in news[:TOLD_ROWS]:
            log.error("a row is left out", extra={"fields": {"table": self._table, "row": shown, "error": words}})
        if len(news) > TOLD_ROWS:
            log.error("rows are left out", extra={"fields": {"table": self._table, "more": len(news) - TOLD_ROWS}})
        return found


def _key_of(row: R, key_of: Callable[[R], Hashable]) -> Hashable:
    try:
        key = key_of(row)
        hash(key)
    except Exception:
        return repr(row)[:KEY_CHARS]
    return key
