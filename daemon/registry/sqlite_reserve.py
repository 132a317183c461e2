"""`ReserveStore` in the SQLite file that holds the ledger and the registry too."""

import sqlite3
from pathlib import Path

from bentpipe.daemon.registry.reserve import StoredSpare, facts_of, stored_spare
from bentpipe.daemon.store.malformed import MalformedRows
from bentpipe.daemon.store.schema import transaction
from bentpipe.daemon.store.sqlite_file import SqliteFile

COLUMNS = "size, platform, number, spare, version, facts"
THIS = "WHERE size = ? AND platform = ? AND number = ? AND spare = ? AND version = ?"


class SqliteReserveStore:
    """`ReserveStore` in the file at `path`. The first call makes the file if it is not there."""

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(path)
        self._malformed = MalformedRows("reserve")

    async def spares(self) -> tuple[StoredSpare, ...]:
        """See ReserveStore."""
        query = f"SELECT {COLUMNS} FROM reserve ORDER BY size, platform, number"
        rows = await self._file.call(lambda db: db.execute(query).fetchall())
        return tuple(self._malformed.read(rows, lambda row: row[:3], lambda row: stored_spare(*row)))

    async def ids(self) -> frozenset[str]:
        """See ReserveStore."""
        rows = await self._file.call(lambda db: db.execute("SELECT spare FROM reserve").fetchall())
        return frozenset(str(each[0]) for each in rows)

    async def put(self, row: StoredSpare) -> bool:
        """See ReserveStore."""
        place = (row.place.size, row.place.platform, row.place.number)
        values = (row.version, facts_of(row))

        def put(db: sqlite3.Connection) -> bool:
            with transaction(db):
                if row.version == 1:
                    done = db.execute(
                        "INSERT INTO reserve VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                        (*place, row.spare, *values),
                    )
                else:
                    change = "UPDATE reserve SET version = ?, facts = ?"
                    done = db.execute(f"{change} {THIS}", (*values, *place, row.spare, row.version - 1))
            return done.rowcount > 0

        return await self._file.call(put)

    async def remove(self, row: StoredSpare) -> bool:
        """See ReserveStore."""
        this = (row.place.size, row.place.platform, row.place.number, row.spare, row.version)

        def remove(db: sqlite3.Connection) -> bool:
            with transaction(db):
                return db.execute(f"DELETE FROM reserve {THIS}", this).rowcount > 0

        return await self._file.call(remove)

    async def aclose(self) -> None:
        """See ReserveStore."""
        await self._file.aclose()
