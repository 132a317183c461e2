"""Opens an SQLite file of ours. Its function blocks, and needs no Trio: commands that only read start quickly by it."""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bentpipe.daemon.errors import StoreError, StoreUnusable
from bentpipe.daemon.private_file import OWNER_ONLY
from bentpipe.daemon.store.schema import version_of as version_of_store

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
"""For another process's lock. Readers hold none in WAL mode, so it is a backup, `bentpipe token` or a second daemon."""

_HOPELESS = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def open_to_write(path: Path, prepare: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    """Open the file, or make it for its owner alone. `prepare` brings it to its newest version.

    Raises what `prepare` raises, sqlite3.Error, OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    if is_new:  # it has the hashes of tokens; SQLite gives its journal's files the same mode
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, OWNER_ONLY))
    connection = _connect(path, "rwc")
    try:
        if is_new and os.geteuid() == 0:
            # Root makes the file for the daemon's user; SQLite does so itself with the files that it makes beside it.
            owner = path.parent.stat()
            os.chown(path, owner.st_uid, owner.st_gid)
        prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def open_to_read(path: Path, version_of: Callable[[sqlite3.Connection], int] = version_of_store) -> sqlite3.Connection:
    """Open a file that is there. Raises StoreUnusable if nothing is kept in it yet; sqlite3.Error, OSError."""
    connection = _connect(path, "ro")
    try:
        if not version_of(connection):
            raise StoreUnusable(f"{path}: nothing is kept there yet")
    except BaseException:
        connection.close()
        raise
    return connection


def read_once(path: Path, use: Callable[[sqlite3.Connection], T]) -> T:
    """Open the file, read, and close it. Raises StoreError or StoreUnusable, and no other exception."""
    try:
        with contextlib.closing(open_to_read(path)) as connection:
            return use(connection)
    except StoreError:
        raise
    except Exception as exc:
        raise store_error(path, exc) from exc


def store_error(path: Path, exc: Exception) -> StoreError:
    """What failed on the file, as a StoreError; a StoreUnusable if another attempt would fail too."""
    hopeless = isinstance(exc, sqlite3.Error) and getattr(exc, "sqlite_errorcode", 0) & 0xFF in _HOPELESS
    words = str(exc) if isinstance(exc, sqlite3.Error | OSError) else f"{type(exc).__name__}: {exc}"
    return (StoreUnusable if hopeless else StoreError)(f"{path}: {words}")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = _text
    return connection


def _text(raw: bytes) -> str | bytes:
    """Text as it is stored. Text that is not UTF-8 stays bytes, so that it spoils its own row and not the whole query."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
