"""`bentpipe top`: what the satellites of an org do on one host, again and again."""

import contextlib
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

import click
from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bentpipe.daemon.api.client import ControlApiError, call
from bentpipe.daemon.api.operations import OPERATIONS_PATH
from bentpipe.daemon.service.reserve_rows import ReserveRow, reserve_rows
from bentpipe.daemon.service.sat import Asker, state_of
from bentpipe.proto import operations_pb2 as pb

UNITS = ("B", "kB", "MB", "GB", "TB")
COLOURS = {"operational": "green", "starting": "yellow", "creating": "yellow", "failed": "red", "offline": "red"}
COLOURS |= {"busy": "yellow", "full": "red", "deaf": "red", "silent": "red"}


@dataclasses.dataclass(frozen=True, slots=True)
class TopRow:
    """A satellite as it is shown. Rates are bytes per second between two looks; None at the first one."""

    name: str
    state: str
    state_s: float | None
    """For how long it has had the state; None: since before the daemon started."""
    held: int
    connections: int
    up_rate: float | None
    down_rate: float | None
    condition: str = ""
    """What its responder tells; "" if it has none or is not awake."""
    builds: int | None = None
    pressure_percent: float | None = None
    """The highest share of the last 10 s in which tasks waited for CPU, memory or IO."""


@dataclasses.dataclass(frozen=True, slots=True)
class TopLook:
    """What one look shows; `words` say why there is no newer one."""

    rows: list[TopRow]
    reserve: list[ReserveRow]
    words: str = ""


class RateMeter:
    """Makes rates of the totals of successive answers."""

    def __init__(self) -> None:
        self._before: pb.GetActivityResponse | None = None
        self._rates: dict[str, tuple[float, float]] = {}

    def rows(self, answer: pb.GetActivityResponse) -> list[TopRow]:
        """The rows of an answer. If the host has not looked again since the answer before, the rates stay."""
        now = _seconds(answer.looked_at)
        before = self._before
        passed_s = 0.0 if before is None else now - _seconds(before.looked_at)
        if before is not None and passed_s > 0:
            totals = {each.name: (each.up_bytes, each.down_bytes) for each in before.satellites}
            self._rates = {
                each.name: _rates((each.up_bytes, each.down_bytes), totals[each.name], passed_s)
                for each in answer.satellites
                if each.name in totals
            }
        if before is None or passed_s != 0:
            self._before = answer
        return [self._row(each, now) for each in answer.satellites]

    def _row(self, each: pb.SatelliteActivity, now: float) -> TopRow:
        state_s = max(now - _seconds(each.since), 0.0) if each.HasField("since") else None
        up_rate, down_rate = self._rates.get(each.name, (None, None))
        row = TopRow(each.name, state_of(each.status), state_s, each.held, each.connections, up_rate, down_rate)
        return _with_reading(row, each.reading) if each.HasField("reading") else row


def _with_reading(row: TopRow, reading: pb.Reading) -> TopRow:
    return dataclasses.replace(
        row,
        condition=reading.condition,
        builds=reading.builds if reading.HasField("builds") else None,
        pressure_percent=max(reading.cpu_percent, reading.memory_percent, reading.io_percent),
    )


def _rates(totals: tuple[int, int], before: tuple[int, int], passed_s: float) -> tuple[float, float]:
    if totals < before or totals[1] < before[1]:
        before = (0, 0)  # the daemon was started again, or there is another satellite of that name
    return (totals[0] - before[0]) / passed_s, (totals[1] - before[1]) / passed_s


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
            for reserve in look.reserve:
                console.print(Text(reserve.words))
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
            look = TopLook(meter.rows(answer), reserve_rows(answer))
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
    reserve = [Text(each.words) for each in look.reserve]
    end = Text("Ctrl-C ends it", style="dim")
    return Group(Text(head, style="bold"), Text(look.words, style="red"), _table(rows), *reserve, end)


def _table(rows: list[TopRow]) -> Table:
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
        numbers = [_span(row.state_s), str(row.held), str(row.connections), _size(row.up_rate), _size(row.down_rate)]
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
        **({"error": look.words} if look.words else {}),
    }


def _span(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole // 60 % 60:02} min"


def _size(rate: float | None) -> str:
    if rate is None:
        return ""
    power = min(int(math.log10(rate) // 3), len(UNITS) - 1) if rate >= 1 else 0
    value = rate / 1000**power
    return f"{value:.1f} {UNITS[power]}" if power else f"{value:.0f} {UNITS[0]}"


def _seconds(at: Timestamp) -> float:
    return at.seconds + at.nanos / 1e9
