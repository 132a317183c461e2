"""`Registry` in the SQLite file that holds the ledger too."""

import json
import sqlite3
from pathlib import Path

from bentpipe.daemon.model import MachineId, SatelliteKey
from bentpipe.daemon.registry.contract import (
    CUT_KEPT_S,
    AttemptOver,
    GenerationOver,
    StoredAttempt,
    StoredCut,
    StoredSatellite,
    StoredToken,
    TokenExists,
    stored_cut,
    stored_satellite,
    stored_token,
)
from bentpipe.daemon.store.malformed import MalformedRows, text_of
from bentpipe.daemon.store.schema import transaction
from bentpipe.daemon.store.sqlite_file import SqliteFile


class SqliteRegistry:
    """`Registry` in the file at `path`. The first call makes the file if it is not there."""

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(path)
        self._malformed_cuts = MalformedRows("cut")
        self._malformed_tokens = MalformedRows("token")
        self._malformed_satellites = MalformedRows("registration")

    async def tokens(self) -> tuple[StoredToken, ...]:
        """See Registry."""
        columns = "name, hash, grants, created_us, scopes, principal, expires_us"
        rows = await self._file.call(lambda db: db.execute(f"SELECT {columns} FROM token ORDER BY name").fetchall())
        return tuple(self._malformed_tokens.read(rows, lambda row: row[0], _token))

    async def add_token(self, token: StoredToken) -> None:
        """See Registry."""
        scopes = json.dumps(token.scopes)
        row = (token.name, token.token_hash, json.dumps(token.grants), token.created_us, scopes, token.principal)

        def add(db: sqlite3.Connection) -> None:
            with transaction(db):
                if db.execute("SELECT 1 FROM token WHERE name = ? OR hash = ?", row[:2]).fetchone() is not None:
                    raise TokenExists(token.name)
                db.execute("INSERT INTO token VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, token.expires_us))

        await self._file.call(add)

    async def revoke_token(self, name: str, *, cut_at_us: int | None = None) -> bool:
        """See Registry."""

        def revoke(db: sqlite3.Connection) -> bool:
            with transaction(db):
                found = db.execute("DELETE FROM token WHERE name = ?", (name,)).rowcount > 0
                if found and cut_at_us is not None:
                    note_cut(db, name, cut_at_us)
            return found

        return await self._file.call(revoke)

    async def cuts(self) -> tuple[StoredCut, ...]:
        """See Registry."""
        rows = await self._file.call(lambda db: db.execute("SELECT name, at_us FROM cut ORDER BY name").fetchall())
        return tuple(self._malformed_cuts.read(rows, lambda row: row[0], lambda row: stored_cut(*row)))

    async def satellites(self) -> tuple[StoredSatellite, ...]:
        """See Registry."""
        rows = await self._file.call(lambda db: _select(db, "WHERE NOT forgotten ORDER BY org, name", ()))
        return tuple(self._malformed_satellites.read(rows, lambda row: row[:2], lambda row: stored_satellite(*row)))

    async def begin_generation(self, key: SatelliteKey, *, after: int, owner: str, at_us: int) -> StoredSatellite:
        """See Registry."""

        def begin(db: sqlite3.Connection) -> StoredSatellite:
            with transaction(db):
                db.execute(
                    """INSERT INTO registration VALUES (?, ?, ?, ?, NULL, ?, FALSE) ON CONFLICT DO UPDATE
                       SET owner = excluded.owner, generation = registration.generation + 1, machine = NULL,
                           created_us = excluded.created_us, forgotten = FALSE
                       WHERE forgotten OR generation = ?""",
                    (key.org, key.name, owner, after + 1, at_us, after),
                )
                (newest,) = _select(db, "WHERE org = ? AND name = ?", (key.org, key.name))
                return stored_satellite(*newest)

        return await self._file.call(begin)

    async def set_machine(self, key: SatelliteKey, generation: int, machine_id: MachineId) -> None:
        """See Registry."""

        def note(db: sqlite3.Connection) -> None:
            done = db.execute(
                "UPDATE registration SET machine = ? WHERE org = ? AND name = ? AND generation = ? AND NOT forgotten",
                (machine_id, key.org, key.name, generation),
            )
            if not done.rowcount:
                raise GenerationOver(key, generation)

        await self._file.call(note)

    async def set_attempt(
        self, key: SatelliteKey, generation: int, *, after: StoredAttempt | None, attempt: StoredAttempt | None
    ) -> None:
        """See Registry."""
        this = (key.org, key.name)

        def replace(db: sqlite3.Connection) -> None:
            with transaction(db):
                found = _select(db, "WHERE NOT forgotten AND org = ? AND name = ?", this)
                known = stored_satellite(*found[0]) if found else None
                if known is None or known.generation != generation or known.attempt not in (after, attempt):
                    raise AttemptOver(key, generation)
                if attempt is None:
                    db.execute("DELETE FROM attempt WHERE org = ? AND name = ?", this)
                else:
                    row = (*this, generation, attempt.alternative, attempt.at_us)
                    db.execute("INSERT OR REPLACE INTO attempt VALUES (?, ?, ?, ?, ?)", row)

        await self._file.call(replace)

    async def forget(self, key: SatelliteKey, *, generation: int) -> None:
        """See Registry."""

        def forget(db: sqlite3.Connection) -> None:
            this = key.org, key.name
            with transaction(db):
                newer = "SELECT 1 FROM registration WHERE org = ? AND name = ? AND generation > ?"
                if db.execute(newer, (*this, generation)).fetchone() is not None:
                    return
                db.execute("UPDATE registration SET forgotten = TRUE, machine = NULL WHERE org = ? AND name = ?", this)
                db.execute("DELETE FROM identity WHERE org = ? AND name = ?", this)

        await self._file.call(forget)

    async def aclose(self) -> None:
        """See Registry."""
        await self._file.aclose()


def note_cut(db: sqlite3.Connection, name: str, at_us: int) -> None:
    """Keep the cut, and none that is older than CUT_KEPT_S. Call it within a transaction."""
    db.execute("DELETE FROM cut WHERE at_us < ?", (at_us - int(CUT_KEPT_S * 1e6),))
    db.execute("INSERT OR REPLACE INTO cut VALUES (?, ?)", (name, at_us))


def _token(row: tuple[object, ...]) -> StoredToken:
    name, digest, grants, created_us, scopes, principal, expires_us = row
    granted, may = json.loads(text_of(grants, "grants")), json.loads(text_of(scopes, "scopes"))
    return stored_token(name, digest, granted, created_us, may, principal, expires_us)


def _select(
    db: sqlite3.Connection, where: str, arguments: tuple[str, ...]
) -> list[tuple[object, object, object, object, object, object, object, object]]:
    columns = "org, name, owner, generation, machine, created_us, attempt.alternative, attempt.at_us"
    return db.execute(
        f"SELECT {columns} FROM registration LEFT JOIN attempt USING (org, name, generation) {where}", arguments
    ).fetchall()
