"""A store's SQLite file, changed behind the daemon's back."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def edited(path: Path, timeout_s: float = 5.0) -> Iterator[sqlite3.Connection]:
    """Open the file; commit and close it at the end. sqlite3's own context manager leaves it open."""
    with contextlib.closing(sqlite3.connect(path, timeout=timeout_s)) as db, db:
        yield db
