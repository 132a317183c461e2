"""The command line of `bentpipe sat render`, for `sat_command.py`. It parses arguments only."""

from pathlib import Path

import click

from bentpipe.daemon.service.command_line import takes_config, telling_mistakes


@click.command("render")
@takes_config("The configuration, which has the section image.", positional=False)
@click.option(
    "--machine-type", help="SIZE or SIZE/PLATFORM of a [[machine_type]], for a satellite that clients launch."
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Write the files into this folder instead."
)
@click.argument("name")
def render(config_path: Path, name: str, machine_type: str | None, out: Path | None) -> None:
    """Print all files that make a machine this satellite: units, limits, BuildKit's configuration, user data.

    NAME is ORG/NAME, of a satellite in the configuration or of any that has the --machine-type.
    """
    from bentpipe.daemon.service.render import RenderWish, run_render

    with telling_mistakes():
        run_render(RenderWish(config_path, name, machine_type, out))
