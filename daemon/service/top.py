"""`bentpipe top`: what the satellites of an org do on one host, again and again."""

import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

import click
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bentpipe.daemon.api.activity import ActivityRow, RateMeter, size, span
from bentpipe.daemon.api.client import ControlApiError, call
from bentpipe.daemon.api.operations import OPERATIONS_PATH
from bentpipe.daemon.service.host_rows import HostLook, host_look
from bentpipe.daemon.service.reserve_rows import ReserveRow, reserve_rows
from bentpipe.daemon.service.sat import Asker
from bentpipe.proto import operations_pb2 as pb

COLOURS = {"operational": "green", "starting": "yellow", "creating": "yellow", "failed": "red", "offline": "red"}
COLOURS |= {"busy": "yellow", "full": "red", "deaf": "red", "silent": "red"}


@dataclasses.dataclass(frozen=True, slots=True)
class TopLook:
    """What one look shows; `words` say why there is no newer one."""

    rows: list[ActivityRow]
    reserve: list[ReserveRow]
    host: HostLook | None = None
    """Of a daemon that is asked by its Unix socket."""
    words: str = ""

    @property
    def more_lines(self) -> list[str]:
        """What stands below the table."""
        return [*(each.words for each in self.reserve), *(() if self.host is None else self.host.lines)]


def run_top(asker: Asker, interval_s: float, *, once: bool) -> None:
    """Show the satellites until the user ends it. Raises ControlApiError if the first look fails."""
    looks, console = _looks(asker, interval_s), Console()
    with contextlib.suppress(KeyboardInterrupt):  # the way to leave
        if asker.as_json:
            for look in looks:
                click.echo(json.dumps(_plain(look)))
                if once:
                    return
        elif once or not console.is_terminal:
            look = next(looks)
            console.print(_table(look.rows))
            for line in look.more_lines:
                console.print(Text(line))
        else:
            _show(asker, looks, console)


def _show(asker: Asker, looks: Iterator[TopLook], console: Console) -> None:
    """Keep a picture on the terminal's second screen, which goes away with it."""
    asked: list[int] = []

    def leave(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        raise SystemExit(128 + number) if number == signal.SIGTERM else KeyboardInterrupt

    # SIGTERM ends a process on the spot by default, and would leave the terminal as it is in the middle of this.
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    live = Live(_picture(asker, next(looks)), console=console, screen=True, auto_refresh=False)
    try:
        live.start(refresh=True)
        for look in looks:
            if asked:  # Python loses an exception that a signal raises in a destructor
                break
            live.update(_picture(asker, look), refresh=True)
    finally:
        live.stop()
        # A signal may have come in the middle of its beginning, of which it then undoes nothing.
        console.set_alt_screen(False)
        console.show_cursor()
    if signal.SIGTERM in asked:
        sys.exit(128 + signal.SIGTERM)


def _looks(asker: Asker, interval_s: float) -> Iterator[TopLook]:
    """Look again and again. Raises ControlApiError at the first look alone."""
    meter, look = RateMeter(), TopLook([], [])
    first = True
    while True:
        try:
            request = pb.GetActivityRequest(org_id=asker.org)
            [answer] = call(asker.server, OPERATIONS_PATH + "GetActivity", request, pb.GetActivityResponse)
            look = TopLook(meter.rows(answer), reserve_rows(answer), host_look(answer))
        except ControlApiError as exc:
            if first:
                raise
            look = dataclasses.replace(look, words=str(exc))
        first = False
        yield look
        time.sleep(interval_s)


def _picture(asker: Asker, look: TopLook) -> Group:
    rows = look.rows
    awake = sum(row.state == "operational" for row in rows)
    connections = sum(row.connections for row in rows)
    counts = f"{len(rows)} satellites, {awake} awake, {connections} connections"
    head = f"bentpipe top  {asker.org} at {asker.server.url}: {counts}"
    more = [Text(line) for line in look.more_lines]
    end = Text("Ctrl-C ends it", style="dim")
    return Group(Text(head, style="bold"), Text(look.words, style="red"), _table(rows), *more, end)


def _table(rows: list[ActivityRow]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("name", overflow="fold")
    table.add_column("state")
    for heading in ("for", "held", "connections", "up/s", "down/s"):
        table.add_column(heading, justify="right")
    read = any(row.condition for row in rows)
    if read:
        table.add_column("condition")
        table.add_column("builds", justify="right")
        table.add_column("pressure", justify="right")
    for row in rows:
        numbers = [span(row.state_s), str(row.held), str(row.connections), size(row.up_rate), size(row.down_rate)]
        cells = [Text(row.name), Text(row.state, style=COLOURS.get(row.state, "")), *map(Text, numbers)]
        if read:
            pressure = "" if row.pressure_percent is None else f"{row.pressure_percent:.0f} %"
            builds = "" if row.builds is None else str(row.builds)
            cells += [Text(row.condition, style=COLOURS.get(row.condition, "")), Text(builds), Text(pressure)]
        table.add_row(*cells)
    return table


def _plain(look: TopLook) -> dict[str, object]:
    return {
        "satellites": [dataclasses.asdict(row) for row in look.rows],
        **({"reserve": [dataclasses.asdict(each) for each in look.reserve]} if look.reserve else {}),
        **({"host": dataclasses.asdict(look.host)} if look.host is not None else {}),
        **({"error": look.words} if look.words else {}),
    }
