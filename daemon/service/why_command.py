"""`bentpipe why` on the command line."""

from pathlib import Path

import click

from bentpipe.daemon.service.command_line import takes_config, telling_mistakes


@click.command()
@click.argument("connection", metavar="[ID]", required=False)
@takes_config("The configuration, which says where daemon and store are.", positional=False, required=False)
@click.option("--satellite", default="", help="List the newest connections of this satellite, ORG/NAME.")
@click.option("--principal", default="", help="List the newest connections of this token or certificate.")
@click.option("--newest", type=click.IntRange(1, 200), default=20, show_default=True, help="How many are listed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def why(
    connection: str | None, config_path: Path | None, satellite: str, principal: str, newest: int, *, as_json: bool
) -> None:
    """Say what became of a connection: who, when, held for what, refused or cut why.

    ID is in the message that a refused client gets, and in the log. Without ID the newest connections are listed.
    """
    from bentpipe.daemon.service.why import run_newest, run_why

    with telling_mistakes():
        if connection is not None:
            run_why(config_path, connection, as_json=as_json)
        else:
            run_newest(config_path, newest, satellite, principal, as_json=as_json)
