"""The command lines of `bentpipe sat`, `bentpipe top` and `bentpipe completion`, for `cli.py`. They parse arguments only."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import click
from click.shell_completion import CompletionItem, get_completion_class

from bentpipe.daemon.service.command_line import asker_of, asking, telling_mistakes
from bentpipe.daemon.service.render_command import render

P = ParamSpec("P")

SHELLS = ("bash", "zsh", "fish")
COMPLETION_S = 1.0
"""For the names of satellites, while somebody waits who has pressed TAB."""


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Complete the name of a satellite; nothing is offered if the daemon does not answer quickly."""
    with contextlib.suppress(Exception):  # an error would stand in the middle of what the user types
        from bentpipe.daemon.api.client import Server
        from bentpipe.daemon.service.sat import Asker, satellites_of

        given = {option: str(ctx.params.get(option) or "") for option in ("server", "token", "org", "ca")}
        ca = Path(given["ca"]) if given["ca"] else None
        asker = Asker(Server(given["server"], given["token"], ca, patience_s=COMPLETION_S), given["org"], True)
        found = satellites_of(asker)
        return [CompletionItem(each.name, help=state) for each, state in found if each.name.startswith(incomplete)]
    return []


def named(command: Callable[P, None]) -> Callable[P, None]:
    """The argument of a command about one satellite."""
    return click.argument("name", shell_complete=_names)(command)


@click.group()
def sat() -> None:
    """See and command satellites by the control API of a daemon, from any machine.

    Exit codes: 0 done, 2 refused or not reached, with the reason on standard error.
    """


sat.add_command(render)


@sat.command("ls")
@asking
def sat_ls(server: str, token: str, org: str, ca: Path | None, *, as_json: bool) -> None:
    """Print the satellites of an org."""
    from bentpipe.daemon.service.sat import run_list

    with telling_mistakes():
        run_list(asker_of(server, token, org, ca, as_json=as_json))


@sat.command("inspect")
@asking
@named
def sat_inspect(server: str, token: str, org: str, ca: Path | None, name: str, *, as_json: bool) -> None:
    """Print one satellite."""
    from bentpipe.daemon.service.sat import run_inspect

    with telling_mistakes():
        run_inspect(asker_of(server, token, org, ca, as_json=as_json), name)


@sat.command("wake")
@asking
@named
def sat_wake(server: str, token: str, org: str, ca: Path | None, name: str, *, as_json: bool) -> None:
    """Wake a satellite, and wait until it is awake."""
    from bentpipe.daemon.service.sat import run_wake

    with telling_mistakes():
        run_wake(asker_of(server, token, org, ca, as_json=as_json), name)


@sat.command("sleep")
@asking
@named
def sat_sleep(server: str, token: str, org: str, ca: Path | None, name: str, *, as_json: bool) -> None:
    """Put a satellite to sleep that nobody uses, and wait until it sleeps."""
    from bentpipe.daemon.service.sat import run_sleep

    with telling_mistakes():
        run_sleep(asker_of(server, token, org, ca, as_json=as_json), name)


@sat.command("launch")
@asking
@click.option("--size", default="", help="A machine type of the daemon; by default its first.")
@click.option("--platform", default="", help='"linux/amd64" or "linux/arm64"; by default that of the machine type.')
@click.option("--wake", is_flag=True, help="Also wait until it is awake.")
@click.argument("name")
def sat_launch(
    server: str,
    token: str,
    org: str,
    ca: Path | None,
    size: str,
    platform: str,
    name: str,
    *,
    as_json: bool,
    wake: bool,
) -> None:
    """Make a satellite, with a machine of its own. The same command again makes no second one."""
    from bentpipe.daemon.service.sat import run_launch

    with telling_mistakes():
        run_launch(asker_of(server, token, org, ca, as_json=as_json), name, size, platform, wake=wake)


@sat.command("update")
@asking
@click.option("--size", default="", help="Another machine type.")
@click.option("--version", default="", help="Another version of the software on the satellite.")
@click.option("--drop-cache", is_flag=True, help="Begin with an empty cache.")
@named
def sat_update(
    server: str,
    token: str,
    org: str,
    ca: Path | None,
    size: str,
    version: str,
    name: str,
    *,
    as_json: bool,
    drop_cache: bool,
) -> None:
    """Change a satellite that was launched."""
    from bentpipe.daemon.service.sat import Change, run_update

    change = Change(size, version, drop_cache)
    if change == Change():
        raise click.UsageError("say what is to change: --size, --version or --drop-cache")
    with telling_mistakes():
        run_update(asker_of(server, token, org, ca, as_json=as_json), name, change)


@sat.command("rm")
@asking
@click.option("--force", is_flag=True, help="Also if it is used.")
@named
def sat_rm(server: str, token: str, org: str, ca: Path | None, name: str, *, as_json: bool, force: bool) -> None:
    """Remove a satellite that was launched, with its machine and its disks."""
    from bentpipe.daemon.service.sat import run_remove

    with telling_mistakes():
        run_remove(asker_of(server, token, org, ca, as_json=as_json), name, force=force)


@sat.command("cut")
@asking
@named
def sat_cut(server: str, token: str, org: str, ca: Path | None, name: str, *, as_json: bool) -> None:
    """End the open connections of a satellite on the host that is asked. Clients may connect again at once."""
    from bentpipe.daemon.service.sat import run_cut

    with telling_mistakes():
        run_cut(asker_of(server, token, org, ca, as_json=as_json), name)


@click.command()
@asking
@click.option("--once", is_flag=True, help="Print one table, and end.")
@click.option(
    "--interval", "interval_s", type=click.FloatRange(1, 60), default=2.0, show_default=True, help="Seconds per look."
)
def top(server: str, token: str, org: str, ca: Path | None, interval_s: float, *, as_json: bool, once: bool) -> None:
    """Show what the satellites of an org do, until Ctrl-C: states, held clients, connections, bytes per second.

    The numbers are those of the host that is asked. If the output is not a terminal, one table is printed. With --json it is
    one object for each look.
    """
    from bentpipe.daemon.service.top import run_top

    with telling_mistakes():
        run_top(asker_of(server, token, org, ca, as_json=as_json), interval_s, once=once)


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options and the names of satellites.

    bash: eval "$(bentpipe completion bash)" in ~/.bashrc. zsh: the same in ~/.zshrc. fish: bentpipe completion fish >
    ~/.config/fish/completions/bentpipe.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "bentpipe", "_BENTPIPE_COMPLETE").source())
