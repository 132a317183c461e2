"""The tables of the SQLite file, and the migrations from each older version to the newest. Its functions block.

A released migration is never changed: a later one is appended. Each is one transaction together with its version number, so
that a crash leaves the file as it was before it or after it.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator

from bentpipe.daemon.errors import StoreUnusable

APPLICATION_ID = 0x62657470
"""Marks the file as ours (sqlite.org/pragma.html#pragma_application_id): "betp"."""

SWITCH_DEADLINE_S = 5.0
"""For the other connections that switch a new file to its write-ahead log."""
SWITCH_RETRY_S = 0.01

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE satellite (id INTEGER PRIMARY KEY, org TEXT NOT NULL, name TEXT NOT NULL, UNIQUE (org, name)) STRICT",
        """CREATE TABLE interval (
            id INTEGER PRIMARY KEY,
            satellite INTEGER NOT NULL REFERENCES satellite (id),
            state TEXT NOT NULL,
            from_us INTEGER NOT NULL,
            from_boot_us INTEGER NOT NULL,
            from_boot_id TEXT NOT NULL,
            to_us INTEGER CHECK (to_us >= from_us),
            elapsed_us INTEGER CHECK (elapsed_us >= 0),
            cause TEXT NOT NULL,
            who TEXT NOT NULL,
            phases TEXT NOT NULL DEFAULT '{}',
            clients INTEGER NOT NULL DEFAULT 0,
            waited_s REAL NOT NULL DEFAULT 0,
            waited_longest_s REAL NOT NULL DEFAULT 0,
            CHECK ((to_us IS NULL) = (elapsed_us IS NULL))
        ) STRICT""",
        "CREATE UNIQUE INDEX one_open_interval ON interval (satellite) WHERE to_us IS NULL",
        "CREATE INDEX interval_end ON interval (to_us)",
        """CREATE TABLE life (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            run TEXT NOT NULL,
            serial INTEGER NOT NULL,
            wall_us INTEGER NOT NULL,
            boot_us INTEGER NOT NULL,
            boot_id TEXT NOT NULL
        ) STRICT""",
    ),
    (
        """CREATE TABLE token (
            name TEXT PRIMARY KEY,
            hash TEXT NOT NULL UNIQUE,
            grants TEXT NOT NULL,
            created_us INTEGER NOT NULL
        ) STRICT""",
        """CREATE TABLE registration (
            org TEXT NOT NULL,
            name TEXT NOT NULL,
            owner TEXT NOT NULL,
            generation INTEGER NOT NULL CHECK (generation > 0),
            machine TEXT,
            created_us INTEGER NOT NULL,
            forgotten INTEGER NOT NULL CHECK (forgotten IN (FALSE, TRUE)),
            PRIMARY KEY (org, name)
        ) STRICT""",
    ),
    ("ALTER TABLE interval ADD COLUMN resume TEXT NOT NULL DEFAULT 'unknown'",),
    ("CREATE TABLE cut (name TEXT PRIMARY KEY, at_us INTEGER NOT NULL) STRICT",),
    ("ALTER TABLE interval ADD COLUMN facts TEXT NOT NULL DEFAULT '{}'",),
    (
        """ALTER TABLE token ADD COLUMN scopes TEXT NOT NULL DEFAULT '["use"]'""",
        "ALTER TABLE token ADD COLUMN principal TEXT",
        "ALTER TABLE token ADD COLUMN expires_us INTEGER",
        "CREATE TABLE org (name TEXT PRIMARY KEY, created_us INTEGER NOT NULL, revoked_us INTEGER) STRICT",
        "CREATE TABLE signing_key (key_id TEXT PRIMARY KEY, public_pem TEXT NOT NULL, until_us INTEGER NOT NULL) STRICT",
        "CREATE TABLE revocation (subject TEXT PRIMARY KEY, at_us INTEGER NOT NULL, until_us INTEGER) STRICT",
        "CREATE TABLE used_id (id TEXT PRIMARY KEY, until_us INTEGER NOT NULL) STRICT",
    ),
    (
        """CREATE TABLE launched (
            org TEXT NOT NULL,
            name TEXT NOT NULL,
            size TEXT NOT NULL,
            platform TEXT NOT NULL,
            principal TEXT NOT NULL,
            created_us INTEGER NOT NULL,
            removing INTEGER NOT NULL CHECK (removing IN (FALSE, TRUE)),
            PRIMARY KEY (org, name)
        ) STRICT""",
    ),
    (
        """CREATE TABLE identity (
            org TEXT NOT NULL,
            name TEXT NOT NULL,
            version INTEGER NOT NULL CHECK (version > 0),
            expected TEXT,
            enrolled TEXT,
            PRIMARY KEY (org, name)
        ) STRICT""",
    ),
    (
        """CREATE TABLE attempt (
            org TEXT NOT NULL,
            name TEXT NOT NULL,
            generation INTEGER NOT NULL,
            alternative TEXT NOT NULL,
            at_us INTEGER NOT NULL,
            PRIMARY KEY (org, name)
        ) STRICT""",
    ),
    (
        """CREATE TABLE registered (
            org TEXT NOT NULL,
            name TEXT NOT NULL,
            host TEXT NOT NULL,
            port INTEGER NOT NULL,
            platform TEXT NOT NULL,
            version TEXT NOT NULL,
            root_ca TEXT NOT NULL,
            principal TEXT NOT NULL,
            token_hash TEXT NOT NULL,
            created_us INTEGER NOT NULL,
            beat_us INTEGER NOT NULL,
            PRIMARY KEY (org, name)
        ) STRICT""",
    ),
    (
        """CREATE TABLE change (
            org TEXT NOT NULL,
            name TEXT NOT NULL,
            created_us INTEGER NOT NULL,
            size TEXT NOT NULL,
            platform TEXT NOT NULL,
            replace INTEGER NOT NULL CHECK (replace IN (FALSE, TRUE)),
            at_us INTEGER NOT NULL,
            PRIMARY KEY (org, name)
        ) STRICT""",
    ),
    (
        """CREATE TABLE reserve (
            size TEXT NOT NULL,
            platform TEXT NOT NULL,
            number INTEGER NOT NULL CHECK (number >= 0),
            spare TEXT NOT NULL,
            version INTEGER NOT NULL CHECK (version > 0),
            facts TEXT NOT NULL,
            PRIMARY KEY (size, platform, number)
        ) STRICT""",
    ),
    (
        """CREATE TABLE day (
            satellite INTEGER NOT NULL REFERENCES satellite (id),
            day_us INTEGER NOT NULL,
            sums TEXT NOT NULL,
            PRIMARY KEY (day_us, satellite)
        ) STRICT, WITHOUT ROWID""",
        "CREATE TABLE rolled (id INTEGER PRIMARY KEY CHECK (id = 1), until_us INTEGER NOT NULL) STRICT",
        "CREATE INDEX interval_begin ON interval (from_us)",
    ),
    (
        """CREATE TABLE run (
            days INTEGER NOT NULL,
            begin_us INTEGER NOT NULL,
            satellite INTEGER NOT NULL REFERENCES satellite (id),
            sums TEXT NOT NULL,
            PRIMARY KEY (days, begin_us, satellite)
        ) STRICT, WITHOUT ROWID""",
        "CREATE TABLE added (days INTEGER PRIMARY KEY, until_us INTEGER NOT NULL) STRICT",
        "ALTER TABLE rolled ADD COLUMN cleared_us INTEGER NOT NULL DEFAULT 0",
        "UPDATE rolled SET cleared_us = until_us",
    ),
)
"""`interval` is the ledger: the row without `to_us` is a satellite's open interval, and `facts` is JSON by name. Rows that
were written before FACTS_VERSION have their facts in `phases`, `clients`, `waited_s`, `waited_longest_s` and `resume`.
`life` is the run that may write, with its last heartbeat. `token` and `registration` are the registry: `grants` is a list
in JSON, and `cut` has the revoked tokens whose connections are cut. `org`, `signing_key`, `revocation` and `used_id` are
daemon/registry/accounts.py's, `launched` is daemon/registry/launched.py's, and `identity` is
daemon/registry/identities.py's. `attempt` belongs to `registration`: the launch of a generation whose outcome is not
known. `change` belongs to `launched`: what a satellite is to become. `reserve` is daemon/registry/reserve.py's. `day` has
the sums of the ledger's past days, as JSON, and `rolled` says until when there are such days, and until when the intervals
were deleted. `run` has the same sums of several days at once, and `added` says for each length until when."""

RESUME_VERSION = 3
"""The first version in which `interval` has `resume`."""
FACTS_VERSION = 5
"""The first version in which `interval` has `facts`."""
DAYS_VERSION = 13
"""The first version that has `day` and `rolled`. Its days have no intervals any more."""
RUNS_VERSION = 14
"""The first version that has `run` and `added`, and `cleared_us` in `rolled`."""


def version_of(connection: sqlite3.Connection) -> int:
    """Say which version the file has; 0 if it is empty. Raises StoreUnusable if it is not ours, or newer than we are.

    All is read of one moment: another daemon may be making the file just now.
    """
    with contextlib.nullcontext() if connection.in_transaction else reading(connection):
        version = _pragma(connection, "user_version")
        ours = _pragma(connection, "application_id") == APPLICATION_ID
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if version > len(MIGRATIONS):
        raise StoreUnusable(f"the ledger has version {version}; this bentpipe knows only {len(MIGRATIONS)}")
    if not ours and (tables or version):
        raise StoreUnusable("the file is an SQLite database of something else")
    return version


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to the newest version; one that is at it needs no lock. Raises StoreUnusable, sqlite3.Error."""
    found = version_of(connection)
    write_ahead(connection)
    # The default in WAL mode could lose closed intervals to a power cut; our writes are few.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    for number, statements in enumerate(MIGRATIONS[found:], start=found + 1):
        with transaction(connection):
            if version_of(connection) >= number:
                continue
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")


def write_ahead(connection: sqlite3.Connection) -> None:
    """Switch the file to a write-ahead log. Raises sqlite3.Error.

    If another connection does the same to a new file at that moment, SQLite may answer "database is locked" at
    once, whatever the busy timeout: it does not wait where that could be a deadlock (sqlite.org/c3ref/busy_handler.html).
    """
    end = time.monotonic() + SWITCH_DEADLINE_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= end:
                raise
            time.sleep(SWITCH_RETRY_S)
        else:
            return


def transaction(connection: sqlite3.Connection) -> contextlib.AbstractContextManager[None]:
    """All that is written inside, or nothing. It holds the write lock from the beginning."""
    return _begun(connection, "BEGIN IMMEDIATE")


def reading(connection: sqlite3.Connection) -> contextlib.AbstractContextManager[None]:
    """All that is read inside is of one moment. It takes no lock that another process could hold (sqlite.org/wal.html)."""
    return _begun(connection, "BEGIN DEFERRED")


@contextlib.contextmanager
def _begun(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
