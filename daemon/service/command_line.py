"""What several commands share: how they take files and durations, how they tell mistakes, and which API they ask."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click
from pydantic import ValidationError

from bentpipe.config.load import ConfigErrors

if TYPE_CHECKING:
    from bentpipe.daemon.service.sat import Asker

P = ParamSpec("P")

EXIT_CONFIG = 2
CONFIG_PATH = click.Path(path_type=Path, dir_okay=False)


@contextlib.contextmanager
def telling_mistakes() -> Iterator[None]:
    """Print the error, and end with EXIT_CONFIG."""
    from bentpipe.daemon.errors import BentpipeError

    try:
        yield
    except ValidationError as exc:
        raise click.UsageError("; ".join(str(error["msg"]) for error in exc.errors())) from exc
    except (ConfigErrors, BentpipeError, OSError, ValueError) as exc:
        click.echo(str(exc), err=True)
        sys.exit(EXIT_CONFIG)


def asking(command: Callable[P, None]) -> Callable[P, None]:
    """The options of every command that asks a daemon's API."""
    options = (
        click.option(
            "--server",
            envvar="EARTHLY_SERVER_ADDRESS",
            default="unix:/run/bentpipe/api.sock",
            show_default=True,
            show_envvar=True,
            help="https://HOST:PORT of an edge host, or unix:/PATH of its socket on this host.",
        ),
        click.option(
            "--token", envvar="EARTHLY_TOKEN", default="", help="Who asks; not needed on a socket of this host."
        ),
        click.option("--org", envvar="EARTHLY_ORG", required=True, show_envvar=True, help="Whose satellites."),
        click.option(
            "--ca",
            type=CONFIG_PATH,
            envvar="SSL_CERT_FILE",
            help="The authority that signs the server's certificate, in PEM.",
        ),
        click.option("--json", "as_json", is_flag=True, help="For programs; states as one object in each line."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def asker_of(server: str, token: str, org: str, ca: Path | None, *, as_json: bool) -> "Asker":
    """Make what `asking` describes."""
    from bentpipe.daemon.api.client import Server
    from bentpipe.daemon.service.sat import Asker

    return Asker(Server(server, token, ca), org, as_json)
