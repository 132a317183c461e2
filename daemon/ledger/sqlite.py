"""The ledger in one SQLite file: the default, for one daemon."""

import contextlib
import json
import sqlite3
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from bentpipe.daemon.errors import StoreUnusable
from bentpipe.daemon.ledger.contract import (
    ENDED_BADLY,
    NOT_CONFIGURED,
    STOPPED,
    Change,
    Interval,
    Stamp,
    phases_of,
    stamp_of,
    storable,
)
from bentpipe.daemon.model import NO_WAITS, Resume, SatelliteKey, SatelliteState, Waits
from bentpipe.daemon.store.malformed import MalformedRows, number_of, text_of, whole_of
from bentpipe.daemon.store.schema import RESUME_VERSION, transaction, version_of
from bentpipe.daemon.store.sqlite_file import SqliteFile

T = TypeVar("T")

NO_STAMP = Stamp(0, 0, "")
_UNWATCHED = (SatelliteState.UNKNOWN.value, SatelliteState.OFFLINE.value)


class SqliteLedger:
    """`Ledger` in the file at `path`, which is made if need be; with `read_only` for `intervals` alone."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._file = SqliteFile(path, read_only=read_only)
        self._run = str(uuid.uuid4())

    async def begin(self, keys: Collection[SatelliteKey], at: Stamp) -> None:
        """See Ledger."""
        await self._call(lambda books: books.begin(keys, at))

    async def record(self, changes: Sequence[Change]) -> None:
        """See Ledger."""
        await self._call(lambda books: books.record(changes))

    async def beat(self, at: Stamp) -> None:
        """See Ledger."""
        await self._call(lambda books: books.beat(at))

    async def end(self, at: Stamp) -> None:
        """See Ledger."""
        await self._call(lambda books: books.end(at))

    async def intervals(self, since_us: int, until_us: int) -> list[Interval]:
        """See Ledger."""
        return await self._call(lambda books: books.intervals(since_us, until_us))

    async def aclose(self) -> None:
        """See Ledger."""
        await self._file.aclose()

    async def _call(self, use: Callable[["_Books"], T]) -> T:
        return await self._file.call(lambda connection: use(_Books(connection, self._run)))


class _Books:
    """The chain of intervals in SQL: one call, one transaction."""

    def __init__(self, connection: sqlite3.Connection, run: str) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._run = run
        self._stamps = MalformedRows("ledger")

    def begin(self, keys: Collection[SatelliteKey], at: Stamp) -> None:
        with transaction(self._connection):
            last = self._sign_of_life()
            if last is not None:
                last = self._draw_in(last, at)
                for satellite in self._watched():
                    self._move(satellite, SatelliteState.UNKNOWN, last, ENDED_BADLY)
            wanted = {self._satellite(key) for key in keys}
            offline = SatelliteState.OFFLINE.value
            open_now = dict(self._execute("SELECT satellite, state FROM interval WHERE to_us IS NULL").fetchall())
            for satellite in wanted:
                if open_now.get(satellite, offline) == offline:
                    self._move(satellite, SatelliteState.UNKNOWN, at, "not looked at yet")
            for satellite, state in open_now.items():
                if satellite not in wanted and state != offline:
                    self._move(satellite, SatelliteState.OFFLINE, at, NOT_CONFIGURED)
            self._execute(
                "INSERT OR REPLACE INTO life VALUES (1, ?, 0, ?, ?, ?)", (self._run, at.wall_us, at.boot_us, at.boot_id)
            )

    def record(self, changes: Sequence[Change]) -> None:
        with self._keeping() as last:
            (serial,) = self._execute("SELECT serial FROM life").fetchone()
            serial = serial if isinstance(serial, int) else 0
            for change in changes:
                if change.serial <= serial:
                    continue
                self._draw_in(last, change.at)
                self._move(self._satellite(change.key), change.state, change.at, change.cause, change)
                serial, last = change.serial, change.at
            self._execute("UPDATE life SET serial = ?", (serial,))
            self._live(last)

    def beat(self, at: Stamp) -> None:
        with self._keeping() as last:
            self._draw_in(last, at)
            self._live(at)

    def end(self, at: Stamp) -> None:
        with self._keeping() as last:
            self._draw_in(last, at)
            for satellite in self._watched():
                self._move(satellite, SatelliteState.UNKNOWN, at, STOPPED)
            self._live(at)

    def intervals(self, since_us: int, until_us: int) -> list[Interval]:
        # A reader takes an older file as it is.
        resume = "resume" if version_of(self._connection) >= RESUME_VERSION else f"'{Resume.UNKNOWN.value}'"
        rows = self._execute(
            f"""SELECT org, name, state, from_us, from_boot_us, from_boot_id, to_us, elapsed_us, cause, who, phases,
                      clients, waited_s, waited_longest_s, {resume}, life.wall_us, life.boot_us, life.boot_id
               FROM interval JOIN satellite ON satellite.id = interval.satellite JOIN life
               WHERE from_us <= :until AND ifnull(to_us, max(from_us, life.wall_us)) >= :since
               ORDER BY org, name, interval.id""",
            {"since": since_us, "until": until_us},
        ).fetchall()
        return MalformedRows("interval").read(rows, lambda row: (*row[:2], row[3]), self._interval)

    @staticmethod
    def _interval(row: tuple) -> Interval:  # type: ignore[type-arg]
        """Read a row, whatever is in its columns. Raises MalformedRow, and anything else for what is no value of ours."""
        org, name, state, from_us, boot_us, boot_id, to_us, elapsed_us, cause, who, phases, *rest = row
        clients, waited_s, longest_s, resume, *life = rest
        began = stamp_of(from_us, boot_us, boot_id)
        is_open = to_us is None
        if is_open:
            last = stamp_of(*life)
            to_us, elapsed_us = max(from_us, last.wall_us), began.until_us(last)
        return Interval(
            SatelliteKey(text_of(org, "org"), text_of(name, "name")),
            SatelliteState(state),
            began.wall_us,
            whole_of(to_us, "to_us"),
            whole_of(elapsed_us, "elapsed_us"),
            text_of(cause, "cause"),
            text_of(who, "who"),
            phases_of(json.loads(text_of(phases, "phases"))),
            Waits(
                whole_of(clients, "clients"), number_of(waited_s, "waited_s"), number_of(longest_s, "waited_longest_s")
            ),
            is_open,
            Resume(resume),
        )

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[Stamp]:
        """A transaction of the run that began last. Raises StoreUnusable if that is not ours."""
        with transaction(self._connection):
            last = self._sign_of_life()
            keeper = self._execute("SELECT run FROM life").fetchone()
            if last is None or keeper != (self._run,):
                raise StoreUnusable("another daemon keeps this ledger now")
            yield last

    def _sign_of_life(self) -> Stamp | None:
        """The last one; NO_STAMP if it cannot be read: then nobody knows until when anything was watched."""
        row = self._execute("SELECT wall_us, boot_us, boot_id FROM life").fetchone()
        if row is None:
            return None
        return next(iter(self._stamps.read([row], lambda row: "life", lambda row: stamp_of(*row))), NO_STAMP)

    def _live(self, at: Stamp) -> None:
        self._execute("UPDATE life SET wall_us = ?, boot_us = ?, boot_id = ?", (at.wall_us, at.boot_us, at.boot_id))

    def _draw_in(self, last: Stamp, at: Stamp) -> Stamp:
        """If the wall clock has stepped back, move what lies past `at` to it. Returns `last`, moved likewise."""
        if last.wall_us <= at.wall_us:
            return last
        self._execute(
            """UPDATE interval SET from_us = min(from_us, :at), to_us = min(to_us, :at)
               WHERE to_us > :at OR to_us IS NULL""",
            {"at": at.wall_us},
        )
        return Stamp(at.wall_us, last.boot_us, last.boot_id)

    def _watched(self) -> list[int]:
        """Satellites whose open interval says more than that nobody watches."""
        rows = self._execute("SELECT satellite FROM interval WHERE to_us IS NULL AND state NOT IN (?, ?)", _UNWATCHED)
        return [satellite for (satellite,) in rows.fetchall()]

    def _satellite(self, key: SatelliteKey) -> int:
        self._execute("INSERT INTO satellite (org, name) VALUES (?, ?) ON CONFLICT DO NOTHING", (key.org, key.name))
        found = self._execute("SELECT id FROM satellite WHERE org = ? AND name = ?", (key.org, key.name)).fetchone()
        return int(found[0])

    def _began(self, row: tuple, at: Stamp) -> Stamp:  # type: ignore[type-arg]
        """When an open interval began. One that cannot be read is told, and becomes one of no length before `at`."""
        for began in self._stamps.read([row], lambda row: row[0], lambda row: stamp_of(*row[1:])):
            return began
        self._execute(
            "UPDATE interval SET from_us = ?, from_boot_us = ?, from_boot_id = ? WHERE id = ?",
            (at.wall_us, at.boot_us, at.boot_id, row[0]),
        )
        return at

    def _move(self, satellite: int, state: SatelliteState, at: Stamp, cause: str, change: Change | None = None) -> None:
        """End the open interval, if there is one, and open the next at the same moment."""
        wall_us = at.wall_us
        row = self._execute(
            "SELECT id, from_us, from_boot_us, from_boot_id FROM interval WHERE satellite = ? AND to_us IS NULL",
            (satellite,),
        ).fetchone()
        if row is not None:
            began = self._began(row, at)
            wall_us = max(wall_us, began.wall_us)
            phases = {phase.value: round(seconds, 6) for phase, seconds in change.phases} if change else {}
            waits = change.waits if change else NO_WAITS
            resume = change.resume if change else Resume.UNKNOWN
            self._execute(
                """UPDATE interval SET to_us = ?, elapsed_us = ?, phases = ?, clients = ?, waited_s = ?,
                   waited_longest_s = ?, resume = ? WHERE id = ?""",
                (
                    *(wall_us, began.until_us(at), json.dumps(phases)),
                    *(waits.clients, waits.total_s, waits.longest_s, resume.value, row[0]),
                ),
            )
        self._execute(
            """INSERT INTO interval (satellite, state, from_us, from_boot_us, from_boot_id, cause, who)
               VALUES (?, ?, ?, ?, ?, ?, ?)""",
            (
                *(satellite, state.value, wall_us, at.boot_us, at.boot_id),
                *(storable(cause), change.who if change else ""),
            ),
        )
