"""`RegisteredStore` in the SQLite file that holds the ledger and the registry too."""

import sqlite3
from pathlib import Path

from bentpipe.daemon.registry.registered import (
    NameTaken,
    RegisteredSatellite,
    RegistrationWish,
    place,
    registered_satellite,
)
from bentpipe.daemon.store.malformed import MalformedRows
from bentpipe.daemon.store.schema import transaction
from bentpipe.daemon.store.sqlite_file import SqliteFile

NAMES = (
    "org",
    "name",
    "host",
    "port",
    "platform",
    "version",
    "root_ca",
    "principal",
    "token_hash",
    "created_us",
    "beat_us",
)
COLUMNS = ", ".join(NAMES)
THIS = "WHERE org = ? AND name = ? AND token_hash = ?"
ALL = f"SELECT {COLUMNS} FROM registered ORDER BY org, name"


class SqliteRegisteredStore:
    """`RegisteredStore` in the file at `path`. The first call makes the file if it is not there."""

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(path)
        self._malformed = MalformedRows("registered")

    async def satellites(self) -> tuple[RegisteredSatellite, ...]:
        """See RegisteredStore."""
        return tuple(self._read(await self._file.call(lambda db: db.execute(ALL).fetchall())))

    def _read(self, rows: list[tuple[object, ...]]) -> list[RegisteredSatellite]:
        return self._malformed.read(
            rows, lambda row: row[:2], lambda row: registered_satellite(dict(zip(NAMES, row, strict=True)))
        )

    async def register(self, wish: RegistrationWish) -> RegisteredSatellite:
        """See RegisteredStore."""
        key = wish.satellite.key

        def register(db: sqlite3.Connection) -> RegisteredSatellite:
            with transaction(db):
                if db.execute("SELECT 1 FROM launched WHERE org = ? AND name = ?", (key.org, key.name)).fetchone():
                    raise NameTaken(key)
                placing = place(self._read(db.execute(ALL).fetchall()), wish)
                if placing.evicted is not None:
                    db.execute(f"DELETE FROM registered {THIS}", _this(placing.evicted))
                # Also a row of the name that cannot be read: a caller that may register the name may replace it.
                db.execute("DELETE FROM registered WHERE org = ? AND name = ?", (key.org, key.name))
                db.execute(
                    f"INSERT INTO registered ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    _row(placing.satellite),
                )
                return placing.satellite

        return await self._file.call(register)

    async def beat(self, satellite: RegisteredSatellite, beat_us: int) -> bool:
        """See RegisteredStore."""
        values = (beat_us, *_this(satellite))
        changed = await self._file.call(
            lambda db: db.execute(f"UPDATE registered SET beat_us = ? {THIS}", values).rowcount
        )
        return changed > 0

    async def remove(self, satellite: RegisteredSatellite) -> None:
        """See RegisteredStore."""
        this = _this(satellite)
        await self._file.call(lambda db: db.execute(f"DELETE FROM registered {THIS}", this))

    async def aclose(self) -> None:
        """See RegisteredStore."""
        await self._file.aclose()


def _this(satellite: RegisteredSatellite) -> tuple[str, str, str]:
    return satellite.key.org, satellite.key.name, satellite.token_hash


def _row(satellite: RegisteredSatellite) -> tuple[str | int, ...]:
    key, address = satellite.key, satellite.address
    return (
        *(key.org, key.name, address.host, address.port, satellite.platform, satellite.version),
        *(satellite.root_ca, satellite.principal, satellite.token_hash, satellite.created_us, satellite.beat_us),
    )
