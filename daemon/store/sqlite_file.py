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
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from bentpipe.daemon.errors import StoreError, StoreUnusable
from bentpipe.daemon.private_file import OWNER_ONLY
from bentpipe.daemon.store.schema import migrate, version_of

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
"""For another process's lock. Readers hold none in WAL mode, so it is a backup, `bentpipe token` or a second daemon."""

CALL_DEADLINE_S = 10.0
"""For a call and its time in the queue: the busy timeout, and as much again for a slow disk."""
CLOSE_DEADLINE_S = 2.0
"""For closing the connection. If the disk hangs, the daemon ends without closing it."""

ANOTHER_FILE = "the file was deleted or replaced: put it back, or restart the daemon to begin with what is there"

_HOPELESS = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


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
            hopeless = isinstance(exc, sqlite3.Error) and getattr(exc, "sqlite_errorcode", 0) & 0xFF in _HOPELESS
            words = str(exc) if isinstance(exc, sqlite3.Error | OSError) else f"{type(exc).__name__}: {exc}"
            raise (StoreUnusable if hopeless else StoreError)(f"{self._path}: {words}") from exc

    def _identity_now(self) -> tuple[int, int] | None:
        """None if there is no such file. Raises OSError."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _open(self) -> sqlite3.Connection:
        mode = "ro" if self._read_only else "rwc"
        if not self._read_only:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self._read_only and not self._path.exists()
        if is_new:  # it has the hashes of tokens; SQLite gives its journal's files the same mode
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, OWNER_ONLY))
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.text_factory = _text
        try:
            if is_new:
                self._give_to_the_folders_owner()
            if not self._read_only:
                self._prepare(connection)
            elif not self._version_of(connection):
                raise StoreUnusable(f"{self._path}: nothing is kept there yet")
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_to_the_folders_owner(self) -> None:
        """Let root make the file for the daemon's user; SQLite does so itself with the files that it makes beside it."""
        if os.geteuid() == 0:
            owner = self._path.parent.stat()
            os.chown(self._path, owner.st_uid, owner.st_gid)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()


def _text(raw: bytes) -> str | bytes:
    """Text as it is stored. Text that is not UTF-8 stays bytes, so that it spoils its own row and not the whole query."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
