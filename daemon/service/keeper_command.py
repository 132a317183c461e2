"""`bentpipe keeper`: becomes the keeper of local satellites, or ends one. It must not stay in the small keeper's memory."""

import os
import select
import signal
import socket
import sys
from pathlib import Path

import click

from bentpipe.daemon.keeper.users import parse_uids
from bentpipe.daemon.private_socket import peer_of
from bentpipe.daemon.providers.process.place import keeper_socket_of
from bentpipe.daemon.service.command_line import CONFIG_PATH, EXIT_CONFIG, telling_mistakes

MODULE = "bentpipe.daemon.keeper"
STOP_DEADLINE_S = 120
"""For the longest grace of a satellite. The keeper goes on ending after that."""


@click.command()
@click.option(
    "--socket",
    "path",
    type=CONFIG_PATH,
    help="Where the daemon finds it: `bentpipe serve --keeper` gets the same path.",
)
@click.option("--uids", help="FIRST-LAST: each satellite gets a user of its own from this range. It needs privileges.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/bentpipe-satellites"),
    show_default=True,
    help="Holds the satellites' private folders; used with --uids.",
)
@click.option(
    "--stop", "stops", is_flag=True, help="End the keeper at --socket, or that of --config, and its satellites."
)
@click.option(
    "--config", "config_path", type=CONFIG_PATH, help="With --stop: of a daemon that has started its own keeper."
)
def keeper(path: Path | None, uids: str | None, directory: Path, config_path: Path | None, *, stops: bool) -> None:
    """Keep local satellites until SIGTERM, over all restarts of the daemon.

    `bentpipe serve` without --keeper starts one by itself.
    """
    if (path is None) == (config_path is None) or (config_path is not None and not stops):
        raise click.UsageError("give --socket, or with --stop either --socket or --config")
    with telling_mistakes():
        socket_path = path if path is not None else keeper_socket_of(config_path or Path())
    if stops:
        stop_keeper(socket_path)
        return
    arguments = [f"socket={socket_path.absolute()}", f"directory={directory.absolute()}"]
    if uids is not None:
        try:
            parse_uids(uids)
        except ValueError as exc:
            click.echo(str(exc), err=True)
            sys.exit(EXIT_CONFIG)
        arguments.append(f"uids={uids}")
    os.execv(sys.executable, [sys.executable, "-I", "-m", MODULE, *arguments])


def stop_keeper(path: Path) -> None:
    """Ask the keeper at `path` to end, and wait for it. It is not an error if none is there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            click.echo(f"no keeper listens at {path}")
            return
        pid = peer_of(sock).pid
        pid_fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pid_fd, signal.SIGTERM)
        if not select.select([pid_fd], [], [], STOP_DEADLINE_S)[0]:
            click.echo(f"the keeper, process {pid}, has not ended after {STOP_DEADLINE_S} s", err=True)
            sys.exit(1)
    finally:
        os.close(pid_fd)
    click.echo(f"the keeper, process {pid}, and its satellites have ended")
