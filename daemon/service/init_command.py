"""The command line of `bentpipe init`, for `cli.py`. It parses arguments and prints why nothing was written."""

import sys
from pathlib import Path

import click


@click.command()
@click.argument("folder", default="bentpipe", type=click.Path(path_type=Path))
@click.option(
    "--host", "hosts", multiple=True, help="For the certificate; by default this host's name. May be repeated."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65534),
    default=8372,
    show_default=True,
    help="0: a free one. With BuildKit the next port too.",
)
@click.option("--org", default="acme", show_default=True, help="Whose satellite.")
@click.option("--satellite", default="builder", show_default=True, help="The satellite's name.")
@click.option("--command", help="The satellite's program, with {port} in an argument; by default buildkitd.")
@click.option("--demo", is_flag=True, help="The satellite is the demo's gRPC server, even if buildkitd is there.")
@click.option("--earthly", is_flag=True, help="Print what points the Earthly CLI at the daemon.")
def init(
    folder: Path,
    hosts: tuple[str, ...],
    port: int,
    org: str,
    satellite: str,
    command: str | None,
    *,
    demo: bool,
    earthly: bool,
) -> None:
    """Write certificates, a token and a configuration into FOLDER, and make one call through the daemon.

    Exit codes: 0 done, 2 nothing was written, 4 written but the call failed; standard error has the reason.
    """
    from bentpipe.daemon.service.init import EXIT_NOTHING_WRITTEN, InitWish, run_init
    from bentpipe.daemon.service.init_satellite import InitError

    try:
        sys.exit(run_init(InitWish(folder, hosts, port, org, satellite, command, demo, earthly)))
    except InitError as exc:
        click.echo(str(exc), err=True)
        sys.exit(EXIT_NOTHING_WRITTEN)
