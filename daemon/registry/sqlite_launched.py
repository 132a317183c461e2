"""`LaunchedStore` in the SQLite file that holds the ledger and the registry too."""

import sqlite3
from pathlib import Path

from bentpipe.daemon.registry.launched import LaunchedSatellite, OrgFull, launched_satellite
from bentpipe.daemon.registry.registered import NameTaken
from bentpipe.daemon.store.malformed import MalformedRows
from bentpipe.daemon.store.schema import transaction
from bentpipe.daemon.store.sqlite_file import SqliteFile

COLUMNS = "org, name, size, platform, principal, created_us, removing"
THIS = "WHERE org = ? AND name = ? AND created_us = ?"


class SqliteLaunchedStore:
    """`LaunchedStore` in the file at `path`. The first call makes the file if it is not there."""

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(path)
        self._malformed = MalformedRows("launched")

    async def satellites(self) -> tuple[LaunchedSatellite, ...]:
        """See LaunchedStore."""
        query = f"SELECT {COLUMNS} FROM launched ORDER BY org, name"
        rows = await self._file.call(lambda db: db.execute(query).fetchall())
        return tuple(self._malformed.read(rows, lambda row: row[:2], lambda row: launched_satellite(*row)))

    async def add(self, satellite: LaunchedSatellite, *, most: int) -> LaunchedSatellite:
        """See LaunchedStore."""
        key = satellite.key
        kind = (satellite.size, satellite.platform, satellite.principal)
        row = (key.org, key.name, *kind, satellite.created_us, satellite.removing)

        def add(db: sqlite3.Connection) -> LaunchedSatellite:
            query = f"SELECT {COLUMNS} FROM launched WHERE org = ? AND name = ?"
            with transaction(db):
                known = db.execute(query, (key.org, key.name)).fetchone()
                if known is not None:
                    return launched_satellite(*known)
                if db.execute("SELECT 1 FROM registered WHERE org = ? AND name = ?", (key.org, key.name)).fetchone():
                    raise NameTaken(key)
                (count,) = db.execute("SELECT count(*) FROM launched WHERE org = ?", (key.org,)).fetchone()
                if count >= most:
                    raise OrgFull(key.org, most)
                db.execute("INSERT INTO launched VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                return satellite

        return await self._file.call(add)

    async def begin_removal(self, satellite: LaunchedSatellite) -> None:
        """See LaunchedStore."""
        this = _this(satellite)
        await self._file.call(lambda db: db.execute(f"UPDATE launched SET removing = TRUE {THIS}", this))

    async def remove(self, satellite: LaunchedSatellite) -> None:
        """See LaunchedStore."""
        this = _this(satellite)
        await self._file.call(lambda db: db.execute(f"DELETE FROM launched {THIS}", this))

    async def aclose(self) -> None:
        """See LaunchedStore."""
        await self._file.aclose()


def _this(satellite: LaunchedSatellite) -> tuple[str, str, int]:
    return satellite.key.org, satellite.key.name, satellite.created_us
