"""`bentpipe store backup`, `restore` and `verify`, on the SQLite file that [store] names.

DynamoDB keeps backups itself, and a copy by us would not be of one moment: those commands say what to turn on.
"""

from pathlib import Path

import click

from bentpipe.daemon.errors import StoreUnusable
from bentpipe.daemon.ledger.sqlite_check import find_breaks
from bentpipe.daemon.service.installed import load_operators_config
from bentpipe.daemon.service.stores import NO_STORE
from bentpipe.daemon.store.sqlite_copy import back_up, look_into, require_sound, restore

DYNAMODB_WORDS = """\
the store is the DynamoDB table {table}, which AWS backs up. Turn on point-in-time recovery, once:
  aws dynamodb update-continuous-backups --table-name {table} \\
      --point-in-time-recovery-specification PointInTimeRecoveryEnabled=true
Restore into a new table (aws dynamodb restore-table-to-point-in-time), stop all hosts, and then set [store] table to it"""


def run_backup(config_path: Path, target: Path) -> None:
    """Back up. Raises ConfigErrors, StoreError."""
    version = back_up(_store_path(config_path), target)
    click.echo(f"{target}: backed up and verified, {target.stat().st_size} bytes, version {version} of the store")


def run_restore(config_path: Path, backup: Path) -> None:
    """Restore. Raises ConfigErrors, StoreError."""
    store = _store_path(config_path)
    kept = restore(backup, store)
    click.echo(f"{store}: restored from {backup}")
    if kept is not None:
        click.echo(f"{kept}: what was there before; delete it when you do not need it any more")


def run_verify(config_path: Path | None, backup: Path | None) -> list[str]:
    """Look into a backup, or else the store. Returns what is wrong. Raises ConfigErrors; StoreError if it cannot look."""
    if backup is None and config_path is None:
        raise click.UsageError("give --config FILE for the store, or a backup's FILE")
    path = backup if backup is not None else _store_path(config_path or Path())
    if not path.exists():
        raise StoreUnusable(f"{path}: there is no such file")
    try:
        version = require_sound(path)
        breaks = look_into(path, find_breaks)
    except StoreUnusable as exc:
        return [str(exc)]
    if breaks:
        return [f"{path}: {each}" for each in breaks]
    click.echo(f"{path}: sound, version {version} of the store")
    return []


def _store_path(config_path: Path) -> Path:
    """Where the configuration keeps its file. Raises ConfigErrors; StoreUnusable if it has none."""
    section = load_operators_config(config_path, check_files=False).store
    if section.kind == "dynamodb":
        raise StoreUnusable(DYNAMODB_WORDS.format(table=section.table))
    path = section.ledger_path()
    if path is None:
        raise StoreUnusable(NO_STORE)
    return path
