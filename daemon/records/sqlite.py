"""Records in an SQLite file of their own, beside the ledger: it can be deleted at any time, and nothing else is lost.

A power cut may lose the last second: the disk is not made to sync. Once `keep` rows are there, the oldest make room.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bentpipe.daemon.errors import StoreUnusable
from bentpipe.daemon.records.contract import StoredRecord, read_record
from bentpipe.daemon.store.malformed import MalformedRows
from bentpipe.daemon.store.schema import reading, transaction, write_ahead
from bentpipe.daemon.store.sqlite_file import SqliteFile

FILE_NAME = "connections.sqlite"
APPLICATION_ID = 0x62657463
"""Marks the file as ours: "betc"."""
VERSION = 1
TABLE = (
    """CREATE TABLE connection (
        serial INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        at_us INTEGER NOT NULL,
        host TEXT NOT NULL,
        satellite TEXT NOT NULL,
        principal TEXT NOT NULL,
        fields TEXT NOT NULL
    ) STRICT""",
    "CREATE INDEX connection_at ON connection (at_us)",
    "CREATE INDEX connection_of_satellite ON connection (satellite, serial)",
    "CREATE INDEX connection_of_principal ON connection (principal, serial)",
)
COLUMNS = "id, at_us, host, satellite, principal, fields"
WAL_BYTES = 4 << 20
"""To which the write-ahead log is cut back."""


def version_of(connection: sqlite3.Connection) -> int:
    """0 if the file is empty. Raises StoreUnusable if it is not ours, or newer than we are.

    All is read of one moment: a daemon may be making the file just now.
    """
    with contextlib.nullcontext() if connection.in_transaction else reading(connection):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if version > VERSION:
        raise StoreUnusable(f"the records have version {version}; this bentpipe knows only {VERSION}")
    if application != APPLICATION_ID and (tables or version):
        raise StoreUnusable("the file is an SQLite database of something else")
    return int(version)


def prepare(connection: sqlite3.Connection) -> None:
    """Make the table, if the file is new. Raises StoreUnusable, sqlite3.Error."""
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    write_ahead(connection)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    with transaction(connection):
        if version_of(connection) < VERSION:
            for statement in TABLE:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")


class SqliteRecords:
    """`RecordStore` in a file: `keep` records, none older than `keep_s`."""

    def __init__(
        self, path: Path, keep: int, keep_s: float, *, read_only: bool = False, wall: Callable[[], float] = time.time
    ) -> None:
        self._file = SqliteFile(path, read_only=read_only, prepare=prepare, version_of=version_of)
        self._keep = keep
        self._keep_us = int(keep_s * 1e6)
        self._wall = wall

    async def check(self) -> None:
        """See RecordStore."""
        await self._file.call(version_of)

    def bound(self, keep: int, keep_s: float) -> None:
        """See RecordStore."""
        self._keep, self._keep_us = keep, int(keep_s * 1e6)

    async def add(self, records: Sequence[StoredRecord]) -> None:
        """See RecordStore."""
        oldest_us, keep = int(self._wall() * 1e6) - self._keep_us, self._keep

        def write(connection: sqlite3.Connection) -> None:
            rows = [
                (each.id, each.at_us, each.host, each.satellite, each.principal, each.to_json()) for each in records
            ]
            with transaction(connection):
                connection.executemany(f"INSERT OR IGNORE INTO connection ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", rows)
                connection.execute(
                    "DELETE FROM connection WHERE serial <= (SELECT max(serial) FROM connection) - ?", (keep,)
                )
                connection.execute("DELETE FROM connection WHERE at_us < ?", (oldest_us,))

        await self._file.call(write)

    async def find(self, connection_id: str) -> StoredRecord | None:
        """See RecordStore."""
        found = await self._file.call(
            lambda connection: connection.execute(
                f"SELECT {COLUMNS} FROM connection WHERE id = ?", (connection_id,)
            ).fetchall()
        )
        return next(iter(_readable(found)), None)

    async def newest(self, most: int, *, satellite: str = "", principal: str = "") -> list[StoredRecord]:
        """See RecordStore."""
        wanted = [(name, value) for name, value in (("satellite", satellite), ("principal", principal)) if value]
        where = " AND ".join(f"{name} = ?" for name, _ in wanted) or "TRUE"
        found = await self._file.call(
            lambda connection: connection.execute(
                f"SELECT {COLUMNS} FROM connection WHERE {where} ORDER BY serial DESC LIMIT ?",
                (*(value for _, value in wanted), most),
            ).fetchall()
        )
        return _readable(found)

    async def aclose(self) -> None:
        """See RecordStore."""
        await self._file.aclose()


def _readable(rows: list[tuple[object, ...]]) -> list[StoredRecord]:
    return list(MalformedRows("record").read(rows, lambda row: row[0], read_record))
