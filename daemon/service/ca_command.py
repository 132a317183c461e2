"""`bentpipe ca`: makes, replaces and shows the file of the satellites' certificate authority."""

import datetime
from pathlib import Path

import click

from bentpipe.daemon.service.command_line import CONFIG_PATH, telling_mistakes


@click.group()
def ca() -> None:
    """Make, replace or show the authority that gives satellites their certificates."""


@ca.command("new")
@click.argument("path", metavar="FILE", type=CONFIG_PATH)
@click.option(
    "--fleet",
    default="default",
    show_default=True,
    help="As [ec2] fleet in the configuration; it is in the authority's name.",
)
def ca_new(path: Path, fleet: str) -> None:
    """Make FILE, which [satellite_ca] file names, for hosts that share a store. Give each of them the same file."""
    from bentpipe.daemon.pki.authority import new_authority
    from bentpipe.daemon.pki.authority_file import keep_authority

    if path.exists():
        raise click.UsageError(f"{path} exists: remove it, or replace its key with `bentpipe ca rotate`")
    with telling_mistakes():
        keep_authority(path, new_authority(fleet, _now()))
    click.echo(f"{path}: made. It has the private key: only the daemon's user may read it")


@ca.command("rotate")
@click.argument("path", metavar="FILE", type=CONFIG_PATH)
def ca_rotate(path: Path) -> None:
    """Put a new key into FILE, which all that trust the old key trust too. A running daemon takes it up by itself."""
    from bentpipe.daemon.pki.authority import rotated
    from bentpipe.daemon.pki.authority_file import keep_authority, read_authority

    with telling_mistakes():
        old = read_authority(path)
        keep_authority(path, rotated(old, old.fleet, _now()))
    click.echo(f"{path}: has a new key. Copy the file to each other host of the fleet")


@ca.command("show")
@click.argument("path", metavar="FILE", type=CONFIG_PATH)
def ca_show(path: Path) -> None:
    """Say what is in FILE; the private key is not shown."""
    from bentpipe.daemon.pki.authority_file import read_authority

    with telling_mistakes():
        authority = read_authority(path)
    others = [each for each in authority.roots if each != authority.certificate]
    kinds = [("signs", [authority.certificate]), ("replaced", others), ("sent along", authority.chain)]
    for kind, certificates in kinds:
        for each in certificates:
            began, ends = each.not_valid_before_utc, each.not_valid_after_utc
            click.echo(f"{kind:<11}{each.subject.rfc4514_string()}  {began:%Y-%m-%d} to {ends:%Y-%m-%d}")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
