"""Copies of the SQLite file: a backup while a daemon writes, a restore while none does, and whether a file is sound. Blocks.

A backup is one moment of the store, as a single file that only its owner may read: it has the hashes of tokens. A restore is
one transaction in the store's own file, so that a crash leaves the old content or the new one, and a daemon that starts
meanwhile waits. It must never run beside a daemon, which would write what it remembers into the restored store.
"""

import contextlib
import fcntl
import os
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from bentpipe.daemon.errors import StoreError, StoreUnusable
from bentpipe.daemon.store.schema import version_of

T = TypeVar("T")

BUSY_TIMEOUT_S = 10.0
"""For the lock of another command. A daemon holds none that a backup would wait for (sqlite.org/wal.html)."""
SHARED_FIRST, SHARED_SIZE = 0x40000002, 510
"""The bytes on which each open connection has a read lock, in WAL mode as long as it is open (the lock-byte page in
sqlite.org/fileformat2.html; PENDING_BYTE + 2 in SQLite's os.h)."""
LOCK_FORMAT = "hhqqi4x"
"""struct flock of Linux on 64 bits: type, base, start, length, process (fcntl(2))."""
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
SIDE_FILES = ("-wal", "-shm", "-journal")
MAX_COMPLAINTS = 20


def back_up(store: Path, target: Path) -> int:
    """Write the store as it is now into a new file. Returns its version. Raises StoreError; then there is no such file."""
    if os.path.lexists(target):
        raise StoreError(f"{target}: is there already, and a backup overwrites nothing: give another name")
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with _told(target):
            os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with _opened(store, "ro") as source, _opened(unfinished, "rw") as copy:
            version = version_of(source)
            if not version:
                raise StoreUnusable(f"{store}: no ledger yet")
            with _told(target):
                source.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, without -wal and -shm beside it
        require_sound(unfinished)
        with _told(target):
            _flush(unfinished)
            os.link(unfinished, target)  # unlike a rename, it fails if the name was taken meanwhile
            _flush(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)
    return version


def restore(backup: Path, store: Path) -> Path | None:
    """Replace the store's content by a backup's. Returns where the content that was there is kept, None if there was none.

    Raises StoreError; then the store is as it was.
    """
    require_sound(backup)
    if not store.exists():
        with _told(store):
            store.parent.mkdir(parents=True, exist_ok=True)
        _copy_into(backup, store)
        return None
    if (pid := holder(store)) is not None:
        raise StoreError(f"{store}: a daemon or a command has it open (process {pid}): stop it first")
    kept = store.with_name(f"{store.name}.before-restore-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    try:
        back_up(store, kept)
    except StoreError:  # damaged, which may be why it is restored: its files are kept as they are
        with _told(store):
            for suffix in ("", *SIDE_FILES):
                with contextlib.suppress(FileNotFoundError):
                    store.with_name(store.name + suffix).rename(kept.with_name(kept.name + suffix))
        _copy_into(backup, store)
        _like(kept, store)
        return kept
    _like(store, kept)
    _copy_into(backup, store)
    return kept


def require_sound(path: Path) -> int:
    """Check that a file is a store of ours without damage. Returns its version. Raises StoreError with what is wrong."""
    with _opened(path, "ro") as connection:
        version = version_of(connection)
        if not version:
            raise StoreUnusable(f"{path}: is not a store of bentpipe")
        with _told(path):
            said = [str(row[0]) for row in connection.execute(f"PRAGMA integrity_check({MAX_COMPLAINTS})")]
            orphans = connection.execute("PRAGMA foreign_key_check").fetchmany(MAX_COMPLAINTS)
    if said != ["ok"]:
        raise StoreUnusable(f"{path}: is damaged: {'; '.join(said)}")
    if orphans:
        raise StoreUnusable(f"{path}: {len(orphans)} rows of {orphans[0][0]} refer to rows that are not there")
    return version


def look_into(path: Path, look: Callable[[sqlite3.Connection], T]) -> T:
    """Have a function read a store's file. Raises StoreError."""
    with _opened(path, "ro") as connection:
        return look(connection)


def holder(path: Path) -> int | None:
    """The process that has the file open with SQLite, 0 if it cannot be seen from here; None if there is none.

    The caller must have no connection to the file itself: its locks would end here (fcntl(2)). Raises StoreError.
    """
    with _told(path), path.open("rb+") as file:
        asked = struct.pack(LOCK_FORMAT, fcntl.F_WRLCK, os.SEEK_SET, SHARED_FIRST, SHARED_SIZE, 0)
        kind, _, _, _, pid = struct.unpack(LOCK_FORMAT, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else max(0, int(pid))


def _copy_into(backup: Path, store: Path) -> None:
    """Write a backup's content into the store's file, or make it. Nobody else may have it open."""
    is_new = not store.exists()
    with _opened(backup, "ro") as source, _opened(store, "rwc") as target, _told(store):
        target.execute("PRAGMA locking_mode = EXCLUSIVE")
        target.execute("BEGIN EXCLUSIVE")  # fails while another connection is open; the lock outlasts the transaction
        target.execute("COMMIT")
        source.backup(target)
    if is_new:
        _like(store.parent, store)


def _like(model: Path, path: Path) -> None:
    """Let root give a file to the owner of another: the daemon's user."""
    if os.geteuid() == 0:
        with _told(path):
            owner = model.stat()
            os.chown(path, owner.st_uid, owner.st_gid)


def _flush(path: Path) -> None:
    """Have the disk write a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    with _told(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None
        )
    try:
        with _told(path):
            yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system raise into a StoreError that names the file."""
    try:
        yield
    except StoreUnusable as exc:
        raise exc if str(path) in str(exc) else StoreUnusable(f"{path}: {exc}") from exc
    except sqlite3.DatabaseError as exc:
        damaged = getattr(exc, "sqlite_errorcode", 0) & 0xFF in DAMAGED
        raise (StoreUnusable if damaged else StoreError)(f"{path}: {exc}") from exc
    except OSError as exc:
        raise StoreError(f"{path}: {exc.strerror or exc}") from exc
