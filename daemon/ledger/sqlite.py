"""`Ledger` in one SQLite file: the default, for one daemon."""

import contextlib
import json
import sqlite3
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from bentpipe.daemon.ledger import sqlite_days, sqlite_read
from bentpipe.daemon.ledger.chain import UNWATCHED, USED, Move, first_moves
from bentpipe.daemon.ledger.contract import (
    ENDED_BADLY,
    STOPPED,
    DaySums,
    Interval,
    LedgerSpan,
    LedgerTakenOver,
    RolledState,
    Stamp,
    StampedTransition,
    stamp_of,
)
from bentpipe.daemon.ledger.facts import write_facts
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.store.malformed import MalformedRows
from bentpipe.daemon.store.schema import transaction
from bentpipe.daemon.store.sqlite_file import SqliteFile

T = TypeVar("T")

NO_STAMP = Stamp(0, 0, "")
_STATES = {state.value: state for state in SatelliteState}


class SqliteLedger:
    """`Ledger` in the file at `path`. The first call makes the file; with `read_only` it must be there, to read only."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._file = SqliteFile(path, read_only=read_only)
        self._run = str(uuid.uuid4())

    async def begin(self, keys: Collection[SatelliteKey], at: Stamp, in_use: Collection[SatelliteKey] = ()) -> None:
        """See Ledger."""
        await self._call(lambda chains: chains.begin(keys, at, in_use))

    async def record(self, transitions: Sequence[StampedTransition]) -> None:
        """See Ledger."""
        await self._call(lambda chains: chains.record(transitions))

    async def beat(self, at: Stamp) -> None:
        """See Ledger."""
        await self._call(lambda chains: chains.beat(at))

    async def end(self, at: Stamp, in_use: Collection[SatelliteKey] = ()) -> None:
        """See Ledger."""
        await self._call(lambda chains: chains.end(at, in_use))

    async def intervals(self, since_us: int, until_us: int) -> list[Interval]:
        """See Ledger."""
        return await self._file.call(lambda connection: sqlite_read.intervals(connection, since_us, until_us))

    async def span(self, since_us: int, until_us: int) -> LedgerSpan:
        """See Ledger."""
        return await self._file.call(lambda connection: sqlite_read.span(connection, since_us, until_us))

    async def rolled(self) -> RolledState | None:
        """See RolledLedger."""
        return await self._file.call(sqlite_days.rolled)

    async def settled_us(self) -> int:
        """See RolledLedger."""
        return await self._file.call(sqlite_read.settled_us)

    async def day(self, day_us: int) -> list[Interval]:
        """See RolledLedger."""
        return await self._file.call(lambda connection: sqlite_read.day(connection, day_us))

    async def days(self, since_us: int, until_us: int) -> list[DaySums]:
        """See RolledLedger."""
        return await self._file.call(lambda connection: sqlite_days.days(connection, since_us, until_us))

    async def roll_up(self, day_us: int, sums: Mapping[SatelliteKey, str]) -> None:
        """See RolledLedger."""
        await self._file.call(lambda connection: sqlite_days.roll_up(connection, day_us, sums))

    async def forget_days(self, before_us: int) -> None:
        """See RolledLedger."""
        await self._file.call(lambda connection: sqlite_days.forget_days(connection, before_us))

    async def clear(self, until_us: int) -> None:
        """See RolledLedger."""
        await self._file.call(lambda connection: sqlite_days.clear(connection, until_us))

    async def next_parts(self) -> tuple[int, int, list[DaySums]] | None:
        """See RolledLedger."""
        return await self._file.call(sqlite_days.next_parts)

    async def add_run(self, days: int, begin_us: int, sums: Mapping[SatelliteKey, str]) -> None:
        """See RolledLedger."""
        await self._file.call(lambda connection: sqlite_days.add_run(connection, days, begin_us, sums))

    async def aclose(self) -> None:
        """See Ledger."""
        await self._file.aclose()

    async def _call(self, use: Callable[["_Chains"], T]) -> T:
        return await self._file.call(lambda connection: use(_Chains(connection, self._run)))


class _Chains:
    """The chains of intervals in SQL. Each call is one transaction."""

    def __init__(self, connection: sqlite3.Connection, run: str) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._run = run
        self._stamps = MalformedRows("ledger")

    def begin(self, keys: Collection[SatelliteKey], at: Stamp, in_use: Collection[SatelliteKey]) -> None:
        with transaction(self._connection):
            last = self._heartbeat()
            if last is not None:
                last = self._pull_back(last, at)
                for satellite in self._watched(in_use):
                    self._move(satellite, Move(SatelliteState.UNKNOWN, last, ENDED_BADLY))
            wanted = sorted({self._satellite(key) for key in keys})
            rows = self._execute("SELECT satellite, state FROM interval WHERE to_us IS NULL").fetchall()
            open_now = {satellite: _STATES.get(state) for satellite, state in rows}
            for satellite, move in first_moves(open_now, wanted, at):
                self._move(satellite, move)
            self._execute(
                "INSERT OR REPLACE INTO life VALUES (1, ?, 0, ?, ?, ?)", (self._run, at.wall_us, at.boot_us, at.boot_id)
            )

    def record(self, transitions: Sequence[StampedTransition]) -> None:
        with self._writing() as last:
            (serial,) = self._execute("SELECT serial FROM life").fetchone()
            serial = serial if isinstance(serial, int) else 0
            for each in transitions:
                if each.serial <= serial:
                    continue
                self._pull_back(last, each.at)
                self._move(self._satellite(each.transition.key), Move.of(each))
                serial, last = each.serial, each.at
            self._execute("UPDATE life SET serial = ?", (serial,))
            self._beat(last)

    def beat(self, at: Stamp) -> None:
        with self._writing() as last:
            self._pull_back(last, at)
            self._beat(at)

    def end(self, at: Stamp, in_use: Collection[SatelliteKey]) -> None:
        with self._writing() as last:
            self._pull_back(last, at)
            for satellite in self._watched(in_use):
                self._move(satellite, Move(SatelliteState.UNKNOWN, at, STOPPED))
            self._beat(at)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Stamp]:
        """A transaction of the run that may write; gives the last heartbeat. Raises LedgerTakenOver."""
        with transaction(self._connection):
            last = self._heartbeat()
            writer = self._execute("SELECT run FROM life").fetchone()
            if last is None or writer != (self._run,):
                raise LedgerTakenOver
            yield last

    def _heartbeat(self) -> Stamp | None:
        """The last one; NO_STAMP if it cannot be read: then it is unknown until when the daemon watched."""
        row = self._execute("SELECT wall_us, boot_us, boot_id FROM life").fetchone()
        if row is None:
            return None
        return next(iter(self._stamps.read([row], lambda row: "life", lambda row: stamp_of(*row))), NO_STAMP)

    def _beat(self, at: Stamp) -> None:
        self._execute("UPDATE life SET wall_us = ?, boot_us = ?, boot_id = ?", (at.wall_us, at.boot_us, at.boot_id))

    def _pull_back(self, last: Stamp, at: Stamp) -> Stamp:
        """If the wall clock has stepped back, move all that lies past `at` to `at`. Returns `last`, moved too."""
        if last.wall_us <= at.wall_us:
            return last
        self._execute(
            """UPDATE interval SET from_us = min(from_us, :at), to_us = min(to_us, :at)
               WHERE to_us > :at OR to_us IS NULL""",
            {"at": at.wall_us},
        )
        sqlite_days.take_back(self._connection, at.wall_us)
        return Stamp(at.wall_us, last.boot_us, last.boot_id)

    def _watched(self, in_use: Collection[SatelliteKey]) -> list[int]:
        """Satellites whose open interval has a state that the daemon watched, and that does not go on without it."""
        rows = self._execute(
            "SELECT satellite, state FROM interval WHERE to_us IS NULL AND state NOT IN (?, ?)",
            sorted(state.value for state in UNWATCHED),
        )
        used = {self._satellite(key) for key in in_use}
        return [found for found, state in rows.fetchall() if found not in used or _STATES.get(state) not in USED]

    def _satellite(self, key: SatelliteKey) -> int:
        self._execute("INSERT INTO satellite (org, name) VALUES (?, ?) ON CONFLICT DO NOTHING", (key.org, key.name))
        found = self._execute("SELECT id FROM satellite WHERE org = ? AND name = ?", (key.org, key.name)).fetchone()
        return int(found[0])

    def _began(self, row: tuple[object, ...], at: Stamp) -> Stamp:
        """When an open interval began. One that cannot be read is logged, and then begins at `at`: it has no length."""
        for began in self._stamps.read([row], lambda row: row[0], lambda row: stamp_of(*row[1:])):
            return began
        self._execute(
            "UPDATE interval SET from_us = ?, from_boot_us = ?, from_boot_id = ? WHERE id = ?",
            (at.wall_us, at.boot_us, at.boot_id, row[0]),
        )
        return at

    def _move(self, satellite: int, move: Move) -> None:
        """End the open interval, if there is one, and open the next."""
        at, wall_us = move.at, move.at.wall_us
        row = self._execute(
            "SELECT id, from_us, from_boot_us, from_boot_id FROM interval WHERE satellite = ? AND to_us IS NULL",
            (satellite,),
        ).fetchone()
        if row is not None:
            began = self._began(row, at)
            wall_us = max(wall_us, began.wall_us)
            self._execute(
                "UPDATE interval SET to_us = ?, elapsed_us = ?, facts = ? WHERE id = ?",
                (wall_us, began.until_us(at), json.dumps(write_facts(move.facts)), row[0]),
            )
        self._execute(
            """INSERT INTO interval (satellite, state, from_us, from_boot_us, from_boot_id, cause, who)
               VALUES (?, ?, ?, ?, ?, ?, ?)""",
            (satellite, move.state.value, wall_us, at.boot_us, at.boot_id, move.cause, move.who),
        )
