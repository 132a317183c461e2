"""A new file that several processes begin to use at once: each waits for the others, and takes none for something else."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bentpipe.daemon.records import sqlite as records
from bentpipe.daemon.store import schema
from bentpipe.daemon.store.sqlite_open import open_to_read, open_to_write

OPENERS = 6


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that reads from the file, which has no write-ahead log yet, and so keeps others from making one."""
    with contextlib.closing(sqlite3.connect(tmp_path / "file", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM t").fetchall()
        yield connection


def impatient(path: Path) -> contextlib.closing[sqlite3.Connection]:
    """SQLite answers at once, as it does by itself if two connections switch at the same moment."""
    return contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None))


def test_the_switch_waits_for_a_connection_that_reads(
    reader: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _s: reader.execute("COMMIT"))
    with impatient(tmp_path / "file") as connection:
        schema.write_ahead(connection)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not reader.in_transaction


def test_the_switch_does_not_wait_for_ever(
    reader: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "SWITCH_DEADLINE_S", 0.05)
    with (
        impatient(tmp_path / "file") as connection,
        pytest.raises(sqlite3.OperationalError, match="database is locked"),
    ):
        schema.write_ahead(connection)


def test_only_a_lock_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"not a database" * 1000)
    with (
        impatient(tmp_path / "file") as connection,
        pytest.raises(sqlite3.DatabaseError, match="not a database"),
    ):
        schema.write_ahead(connection)


@pytest.mark.parametrize("prepare", [schema.migrate, records.prepare])
def test_all_who_make_a_file_at_once_get_it(prepare: Callable[[sqlite3.Connection], None], tmp_path: Path) -> None:
    failed: list[Exception] = []
    together = threading.Barrier(OPENERS)

    def open_it(path: Path) -> None:
        together.wait()
        try:
            open_to_write(path, prepare).close()
        except Exception as exc:
            failed.append(exc)

    for number in range(5):
        threads = [threading.Thread(target=open_it, args=(tmp_path / str(number),)) for _ in range(OPENERS)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert failed == []


def test_a_reader_of_records_takes_a_file_that_is_being_made_for_empty_or_whole(tmp_path: Path) -> None:
    """What makes it ours and its tables are written in one transaction, so they must be read of one moment too."""
    seen: list[int] = []
    path = tmp_path / "file"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        schema.write_ahead(reader)

        def make(statement: str) -> None:
            if "application_id" in statement and not seen:
                seen.append(1)
                open_to_write(path, records.prepare).close()

        reader.set_trace_callback(make)
        assert records.version_of(reader) == 0
        assert seen
    with contextlib.closing(open_to_read(path, records.version_of)) as connection:
        assert records.version_of(connection) == records.VERSION
