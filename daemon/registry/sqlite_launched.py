"""`LaunchedStore` in the SQLite file that holds the ledger and the registry too."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.registry.launched import (
    LaunchedSatellite,
    OrgFull,
    SatelliteChange,
    launched_satellite,
    satellite_change,
)
from bentpipe.daemon.registry.registered import NameTaken
from bentpipe.daemon.store.malformed import MalformedRows
from bentpipe.daemon.store.schema import transaction
from bentpipe.daemon.store.sqlite_file import SqliteFile

COLUMNS = (
    "org, name, launched.size, launched.platform, principal, created_us, removing, "
    "change.size, change.platform, change.replace, change.at_us"
)
ALL = f"SELECT {COLUMNS} FROM launched LEFT JOIN change USING (org, name, created_us)"
THIS = "WHERE org = ? AND name = ? AND created_us = ?"


class SqliteLaunchedStore:
    """`LaunchedStore` in the file at `path`. The first call makes the file if it is not there."""

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(path)
        self._malformed = MalformedRows("launched")

    async def satellites(self) -> tuple[LaunchedSatellite, ...]:
        """See LaunchedStore."""
        rows = await self._file.call(lambda db: db.execute(f"{ALL} ORDER BY org, name").fetchall())
        return tuple(self._malformed.read(rows, lambda row: row[:2], _satellite))

    async def find(self, key: SatelliteKey) -> LaunchedSatellite | None:
        """See LaunchedStore."""
        return await self._file.call(lambda db: _find(db, key))

    async def add(self, satellite: LaunchedSatellite, *, most: int) -> LaunchedSatellite:
        """See LaunchedStore."""
        key = satellite.key
        kind = (satellite.size, satellite.platform, satellite.principal)
        row = (key.org, key.name, *kind, satellite.created_us, satellite.removing)

        def add(db: sqlite3.Connection) -> LaunchedSatellite:
            with transaction(db):
                known = _find(db, key)
                if known is not None:
                    return known
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

        def begin(db: sqlite3.Connection) -> None:
            with transaction(db):
                db.execute(f"UPDATE launched SET removing = TRUE {THIS}", this)
                db.execute(f"DELETE FROM change {THIS}", this)

        await self._file.call(begin)

    async def remove(self, satellite: LaunchedSatellite) -> None:
        """See LaunchedStore."""
        this = _this(satellite)

        def remove(db: sqlite3.Connection) -> None:
            with transaction(db):
                db.execute(f"DELETE FROM launched {THIS}", this)
                db.execute(f"DELETE FROM change {THIS}", this)

        await self._file.call(remove)

    async def begin_change(self, satellite: LaunchedSatellite, change: SatelliteChange) -> LaunchedSatellite | None:
        """See LaunchedStore."""
        row = (*_this(satellite), change.size, change.platform, change.replace, change.at_us)

        def begin(db: sqlite3.Connection) -> LaunchedSatellite | None:
            with transaction(db):
                if _find(db, satellite.key) == satellite:
                    db.execute("INSERT OR REPLACE INTO change VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                return _find(db, satellite.key)

        return await self._file.call(begin)

    async def end_change(self, satellite: LaunchedSatellite, change: SatelliteChange, *, done: bool) -> bool:
        """See LaunchedStore."""
        this = _this(satellite)

        def end(db: sqlite3.Connection) -> bool:
            with transaction(db):
                if not db.execute(f"DELETE FROM change {THIS} AND at_us = ?", (*this, change.at_us)).rowcount:
                    return False
                if done:
                    kind = (change.size, change.platform)
                    db.execute(f"UPDATE launched SET size = ?, platform = ? {THIS}", (*kind, *this))
                return True

        return await self._file.call(end)

    async def aclose(self) -> None:
        """See LaunchedStore."""
        await self._file.aclose()


def _this(satellite: LaunchedSatellite) -> tuple[str, str, int]:
    return satellite.key.org, satellite.key.name, satellite.created_us


def _find(db: sqlite3.Connection, key: SatelliteKey) -> LaunchedSatellite | None:
    found = db.execute(f"{ALL} WHERE org = ? AND name = ?", (key.org, key.name)).fetchone()
    return None if found is None else _satellite(found)


def _satellite(row: Sequence[object]) -> LaunchedSatellite:
    becoming_size, becoming_platform, replace, at_us = row[7:]
    change = None if at_us is None else satellite_change(becoming_size, becoming_platform, replace, at_us)
    org, name, size, platform, principal, created_us, removing = row[:7]
    return launched_satellite(org, name, size, platform, principal, created_us, removing, change)
