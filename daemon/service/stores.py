"""Opens the stores that [store] asks for; nothing is touched before the first call."""

from pathlib import Path

from bentpipe.config.model import LEDGER_NAME, StoreSection
from bentpipe.daemon.errors import StoreUnusable
from bentpipe.daemon.store.base import Ledger
from bentpipe.daemon.store.registry import Registry
from bentpipe.daemon.store.sqlite import SqliteLedger
from bentpipe.daemon.store.sqlite_registry import SqliteRegistry

SERVICE_LEDGER = Path("/var/lib/bentpipe") / LEDGER_NAME
"""Where the unit's StateDirectory= puts it; an operator's shell has no STATE_DIRECTORY."""


def open_ledger(section: StoreSection) -> Ledger | None:
    """The ledger to write; None if none is kept."""
    path = section.ledger_path()
    return SqliteLedger(path) if path is not None else None


def open_ledger_to_read(section: StoreSection) -> Ledger:
    """The ledger to read, beside a running daemon or without one. Raises StoreUnusable if there is none."""
    path = section.ledger_path() or SERVICE_LEDGER
    if section.kind == "none" or not path.exists():
        raise StoreUnusable(f"no ledger at {path}; [store] path in the configuration says where one is kept")
    return SqliteLedger(path, read_only=True)


def open_registry(section: StoreSection) -> Registry | None:
    """The registry; None if none is kept."""
    path = section.ledger_path()
    return SqliteRegistry(path) if path is not None else None
