"""`IdentityStore` in the SQLite file that holds the ledger and the registry too."""

import sqlite3
from pathlib import Path

from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.registry.identities import StoredIdentity, columns_of, stored_identity
from bentpipe.daemon.store.malformed import MalformedRows
from bentpipe.daemon.store.schema import transaction
from bentpipe.daemon.store.sqlite_file import SqliteFile

COLUMNS = "org, name, version, expected, enrolled"


class SqliteIdentityStore:
    """`IdentityStore` in the file at `path`. The first call makes the file if it is not there."""

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(path)
        self._malformed = MalformedRows("identity")

    async def identities(self) -> tuple[StoredIdentity, ...]:
        """See IdentityStore."""
        query = f"SELECT {COLUMNS} FROM identity ORDER BY org, name"
        rows = await self._file.call(lambda db: db.execute(query).fetchall())
        return tuple(self._malformed.read(rows, lambda row: row[:2], lambda row: stored_identity(*row)))

    async def identity(self, key: SatelliteKey) -> StoredIdentity | None:
        """See IdentityStore."""
        query = f"SELECT {COLUMNS} FROM identity WHERE org = ? AND name = ?"
        row = await self._file.call(lambda db: db.execute(query, (key.org, key.name)).fetchone())
        return None if row is None else stored_identity(*row)

    async def put(self, row: StoredIdentity) -> bool:
        """See IdentityStore."""
        key = (row.key.org, row.key.name)
        values = (row.version, *columns_of(row))

        def put(db: sqlite3.Connection) -> bool:
            with transaction(db):
                if row.version == 1:
                    done = db.execute(
                        "INSERT INTO identity VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", key + values
                    )
                else:
                    change = "UPDATE identity SET version = ?, expected = ?, enrolled = ?"
                    this = "WHERE org = ? AND name = ? AND version = ?"
                    done = db.execute(f"{change} {this}", (*values, *key, row.version - 1))
            return done.rowcount > 0

        return await self._file.call(put)

    async def aclose(self) -> None:
        """See IdentityStore."""
        await self._file.aclose()
