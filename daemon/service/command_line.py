"""What several commands share: how they take files and durations, how they tell mistakes, and which API they ask."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click
from pydantic import ValidationError

from bentpipe.config.load import ConfigErrors
from bentpipe.daemon.service.installed import installed_config

if TYPE_CHECKING:
    from bentpipe.daemon.service.sat import Asker

P = ParamSpec("P")

EXIT_CONFIG = 2
CONFIG_PATH = click.Path(path_type=Path, dir_okay=False)


NAMED_PATH = "bentpipe.configuration"
"""In click's context: the configuration that was given without `--config`."""


def takes_config(
    about: str = "The configuration.", *, positional: bool = True, required: bool = True, installed: bool = True
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """The configuration as `--config FILE`, or (`positional`) as FILE.

    On a host with the service (`installed`) it is the service's own by default. Else it is an error not to give one, if it
    is `required`.
    """

    def note_path(context: click.Context, _: click.Parameter, path: Path | None) -> None:
        context.meta[NAMED_PATH] = path

    def find(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
        named = context.meta.get(NAMED_PATH)
        if path is not None and named is not None:
            raise click.UsageError("give the configuration once: as FILE, or as --config FILE")
        found = path or named or (installed_config() if installed else None)
        if found is None and required and not context.resilient_parsing:
            raise click.UsageError(f"give the configuration: --config FILE{', or FILE' if positional else ''}")
        return found

    def decorate(command: Callable[P, None]) -> Callable[P, None]:
        default = " By default that of the installed service." if installed else ""
        command = click.option("--config", "config_path", type=CONFIG_PATH, callback=find, help=about + default)(
            command
        )
        if positional:
            argument = click.argument(
                *("named_path",),
                metavar="[FILE]",
                type=CONFIG_PATH,
                required=False,
                callback=note_path,
                expose_value=False,
                is_eager=True,
            )
            command = argument(command)
        return command

    return decorate


def planes_option(when: str = "") -> Callable[[Callable[P, None]], Callable[P, None]]:
    """`--planes FOLDER`, for the two commands that meet there. `when` begins its help."""
    about = "the folder of the data planes' control sockets. By default one of this user and this configuration."
    help_text = when + about if when else about[0].upper() + about[1:]
    return click.option("--planes", type=click.Path(path_type=Path, file_okay=False), help=help_text)


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
