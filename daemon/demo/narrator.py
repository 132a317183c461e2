"""Tells a story's acts and checks its promises, on a console. It ends with a picture of the satellites' states."""

import time
from collections.abc import Callable, Sequence

import grpc
from rich.console import Console

from bentpipe.daemon.demo.timeline import LEGEND, draw_timeline
from bentpipe.daemon.testbed.edge_host import EdgeHost

COLUMNS = 80


class PromiseBroken(Exception):
    """The demo saw something that breaks a promise."""


class Narrator:
    """Base of a story: its acts are methods whose docstring's first line is their title."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def tell_acts(self, *acts: Callable[[], None]) -> None:
        """Run the acts in order. Raises PromiseBroken, and what an act raises."""
        for act in acts:
            self._console.print(f"\n[bold]{(act.__doc__ or '').splitlines()[0]}[/bold]")
            act()

    def say(self, words: str) -> None:
        """Print a line."""
        self._console.print(f"  {words}", highlight=False)

    def expect(self, promise: str, *, held: bool) -> None:
        """Print whether a promise held. Raises PromiseBroken if it did not."""
        self.say(f"{'[green]held[/green]' if held else '[red]BROKEN[/red]'}  {promise}")
        if not held:
            raise PromiseBroken(promise)


def timed_s(call: Callable[[], object]) -> float:
    """Seconds that the call took."""
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


def wide_console() -> Console:
    """A console that is wide enough for the picture."""
    return Console(width=max(COLUMNS + 12, Console().width))


def play(host: EdgeHost, console: Console, satellites: Sequence[str], tell: Callable[[], None]) -> int:
    """Tell a story on a running host, stop it and draw the picture. Returns 0 if every promise held, else 1."""
    start = time.time()
    try:
        tell()
    except (PromiseBroken, TimeoutError, grpc.RpcError) as exc:
        console.print(f"[red]the demo failed:[/red] {exc}\nthe daemon's log:\n{host.log_path.read_text()}", markup=True)
        return 1
    changes = host.changes()
    end = time.time()
    code = host.stop()
    console.print("\n[bold]Who slept when[/bold]")
    for line in draw_timeline(satellites, changes, start, end, COLUMNS):
        console.print(line)
    console.print(f"  {LEGEND}\nthe daemon drained and ended with exit code {code}")
    return code
