"""`AccountStore` in the SQLite file that holds the ledger and the registry too."""

import sqlite3
from pathlib import Path

from bentpipe.daemon.registry.accounts import (
    StoredAccounts,
    StoredKey,
    StoredOrg,
    StoredRevocation,
    stored_key,
    stored_org,
    stored_revocation,
)
from bentpipe.daemon.registry.sqlite import note_cut
from bentpipe.daemon.store.malformed import MalformedRows
from bentpipe.daemon.store.schema import reading, transaction
from bentpipe.daemon.store.sqlite_file import SqliteFile

Row3 = tuple[object, object, object]


class SqliteAccountStore:
    """`AccountStore` in the file at `path`. The first call makes the file if it is not there."""

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(path)
        self._to_write = SqliteFile(path)
        """A connection of its own: a write waits for another process's lock, and reads must not wait behind it."""
        self._malformed_orgs = MalformedRows("org")
        self._malformed_keys = MalformedRows("signing_key")
        self._malformed_revocations = MalformedRows("revocation")

    async def accounts(self) -> StoredAccounts:
        """See AccountStore."""

        def select(db: sqlite3.Connection) -> tuple[list[Row3], list[Row3], list[Row3]]:
            with reading(db):
                return (
                    db.execute("SELECT name, created_us, revoked_us FROM org ORDER BY name").fetchall(),
                    db.execute("SELECT key_id, public_pem, until_us FROM signing_key ORDER BY key_id").fetchall(),
                    db.execute("SELECT subject, at_us, until_us FROM revocation ORDER BY subject").fetchall(),
                )

        orgs, keys, revocations = await self._file.call(select)
        return StoredAccounts(
            tuple(self._malformed_orgs.read(orgs, lambda row: row[0], lambda row: stored_org(*row))),
            tuple(self._malformed_keys.read(keys, lambda row: row[0], lambda row: stored_key(*row))),
            tuple(
                self._malformed_revocations.read(revocations, lambda row: row[0], lambda row: stored_revocation(*row))
            ),
        )

    async def put_org(self, org: StoredOrg, *, cut_at_us: int | None = None) -> None:
        """See AccountStore."""
        row = (org.name, org.created_us, org.revoked_us)
        await self._put("org", row, f"org:{org.name}", cut_at_us)

    async def put_key(self, key: StoredKey) -> None:
        """See AccountStore."""
        await self._put("signing_key", (key.key_id, key.public_pem, key.until_us), "", None)

    async def put_revocation(self, revocation: StoredRevocation, *, cut_at_us: int | None = None) -> None:
        """See AccountStore."""
        row = (revocation.subject, revocation.at_us, revocation.until_us)
        await self._put("revocation", row, revocation.subject, cut_at_us)

    async def use_once(self, used_id: str, *, until_us: int) -> bool:
        """See AccountStore."""

        def use(db: sqlite3.Connection) -> bool:
            done = db.execute("INSERT INTO used_id VALUES (?, ?) ON CONFLICT DO NOTHING", (used_id, until_us))
            return done.rowcount > 0

        return await self._to_write.call(use)

    async def forget_ended(self, *, now_us: int) -> None:
        """See AccountStore."""

        def forget(db: sqlite3.Connection) -> None:
            with transaction(db):
                for table in ("signing_key", "revocation", "used_id"):
                    db.execute(f"DELETE FROM {table} WHERE until_us < ?", (now_us,))

        await self._to_write.call(forget)

    async def aclose(self) -> None:
        """See AccountStore."""
        await self._file.aclose()
        await self._to_write.aclose()

    async def _put(
        self, table: str, row: tuple[str, int | str, int | None], subject: str, cut_at_us: int | None
    ) -> None:
        def put(db: sqlite3.Connection) -> None:
            with transaction(db):
                db.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", row)
                if cut_at_us is not None:
                    note_cut(db, subject, cut_at_us)

        await self._to_write.call(put)
