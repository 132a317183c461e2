"""One SQLite file. Threads open and use it, one call at a time, so that its connection is never shared.

The first call opens the file. After an error the connection is dropped, so that the next call opens the file again. It must
be the same file: SQLite goes on to read and write a file that was deleted or replaced, and no other program would see what
is written there. That is an error until the file is back or the daemon is restarted.

A call that hangs, because the disk does not answer, is given up after CALL_DEADLINE_S. It keeps its thread and connection:
until the disk answers, each later call waits for its own deadline. The hanging call may still do its work before theirs, so
every call must be one that can be repeated.
"""

import contextlib
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.store.schema import migrate, version_of
from bentpipe.daemon.store.sqlite_open import BUSY_TIMEOUT_S, open_to_read, open_to_write, store_error

T = TypeVar("T")

CALL_DEADLINE_S = 2 * BUSY_TIMEOUT_S
"""For a call and its time in the queue: the busy timeout, and as much again for a slow disk."""
CLOSE_DEADLINE_S = 2.0
"""For closing the connection. If the disk hangs, the daemon ends without closing it."""

ANOTHER_FILE = "the file was deleted or replaced: put it back, or restart the daemon to begin with what is there"


class SqliteFile:
    """The file at `path`. The first call makes it if it is not there; with `read_only` it must be there."""

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        prepare: Callable[[sqlite3.Connection], None] = migrate,
        version_of: Callable[[sqlite3.Connection], int] = version_of,
    ) -> None:
        """`prepare` brings a file that is opened to write to its newest version; `version_of` says which one it has, 0 if
        it is empty. Both raise StoreUnusable for a file that is not ours."""
        self._path = path
        self._prepare = prepare
        self._version_of = version_of
        self._read_only = read_only
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        """Device and inode of the file that was opened first."""
        # Only commands read, and their user decides how long they may take.
        self._deadline_s = math.inf if read_only else CALL_DEADLINE_S
        self._one_at_a_time = trio.CapacityLimiter(1)

    async def call(self, use: Callable[[sqlite3.Connection], T]) -> T:
        """Run `use` in a thread. Raises StoreError or StoreUnusable, and no other exception."""
        with trio.move_on_after(self._deadline_s):
            try:
                return await trio.to_thread.run_sync(
                    self._use, use, limiter=self._one_at_a_time, abandon_on_cancel=True
                )
            except StoreError:
                raise
            except Exception as exc:  # no thread could be started
                raise StoreError(f"{self._path}: {type(exc).__name__}: {exc}") from exc
        raise StoreError(f"{self._path}: no answer within {self._deadline_s:g} s: the disk hangs")

    def __del__(self) -> None:
        """Close the connection of a store that nobody has closed: Python 3.13 warns of each one left open."""
        self._drop()

    async def aclose(self) -> None:
        """Close the connection, if the disk answers."""
        with trio.move_on_after(CLOSE_DEADLINE_S), contextlib.suppress(Exception):
            await trio.to_thread.run_sync(self._drop, limiter=self._one_at_a_time, abandon_on_cancel=True)

    def _use(self, use: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._identity is not None and self._identity_now() != self._identity:
                raise StoreError(f"{self._path}: {ANOTHER_FILE}")
            if self._connection is None:
                self._connection = self._open()
                self._identity = self._identity_now()
            return use(self._connection)
        except StoreError:
            self._drop()
            raise
        except Exception as exc:
            self._drop()
            raise store_error(self._path, exc) from exc

    def _identity_now(self) -> tuple[int, int] | None:
        """None if there is no such file. Raises OSError."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _open(self) -> sqlite3.Connection:
        if self._read_only:
            return open_to_read(self._path, self._version_of)
        return open_to_write(self._path, self._prepare)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()
