"""`bentpipe store`: prepares the store, copies it, puts a copy back, and looks whether it is sound."""

import sys
from pathlib import Path

import click

from bentpipe.daemon.service.command_line import CONFIG_PATH, takes_config, telling_mistakes

EXIT_UNSOUND = 1


@click.group()
def store() -> None:
    """Prepare, copy, restore or check the store."""


@store.command("init")
@takes_config("The configuration, which names the table.")
def store_init(config_path: Path) -> None:
    """Make the DynamoDB table that the hosts of a fleet share, if it is not there."""
    from bentpipe.daemon.service.stores import run_store_init

    with telling_mistakes():
        run_store_init(config_path)


@store.command("backup")
@takes_config("The configuration, which says where the store is.", positional=False)
@click.argument("target", metavar="FILE", type=CONFIG_PATH)
def store_backup(config_path: Path, target: Path) -> None:
    """Write the store as it is now into FILE, beside a daemon that runs. FILE has secrets: only you may read it."""
    from bentpipe.daemon.service.store_files import run_backup

    with telling_mistakes():
        run_backup(config_path, target)


@store.command("restore")
@takes_config("The configuration, which says where the store is.", positional=False)
@click.argument("backup", metavar="FILE", type=CONFIG_PATH)
def store_restore(config_path: Path, backup: Path) -> None:
    """Replace the store by a backup. It is refused while a daemon runs. What was there is kept beside it."""
    from bentpipe.daemon.service.store_files import run_restore

    with telling_mistakes():
        run_restore(config_path, backup)


@store.command("verify")
@takes_config("The configuration, which says where the store is.", positional=False, required=False)
@click.argument("backup", metavar="[FILE]", type=CONFIG_PATH, required=False)
def store_verify(config_path: Path | None, backup: Path | None) -> None:
    """Look for damage in the store, or in a backup FILE. It changes nothing.

    Exit codes: 0 nothing found, 1 damaged or not a store, 2 it could not look.
    """
    from bentpipe.daemon.service.store_files import run_verify

    with telling_mistakes():
        problems = run_verify(config_path, backup)
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        sys.exit(EXIT_UNSOUND)
