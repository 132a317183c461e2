"""`bentpipe report`: reads the ledger, with or without a running daemon, and prints the sums."""

import dataclasses
import datetime
import json
import time
from pathlib import Path

import click
import rich.console
import trio

from bentpipe.config.model import StoreSection
from bentpipe.config.units import parse_duration_s
from bentpipe.daemon.ledger.contract import DAY_US, DaySums, Interval, RolledLedger
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.report.days import add_up
from bentpipe.daemon.report.picture import draw
from bentpipe.daemon.report.png import find_pillow, to_png
from bentpipe.daemon.report.summary import summarise
from bentpipe.daemon.report.svg import to_svg
from bentpipe.daemon.report.table import to_json, to_tables
from bentpipe.daemon.service.installed import load_operators_config
from bentpipe.daemon.service.stores import open_ledger_to_read

PIPE_COLUMNS = 200
"""The width if the output is not a terminal: nothing is cut for a file or a pipe."""


def parse_since(text: str, now_s: float) -> float:
    """Seconds since the epoch from "7d" (that long ago) or an ISO date or time, UTC if it names no zone."""
    try:
        return now_s - parse_duration_s(text)
    except ValueError:
        pass
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError as exc:
        raise ValueError(f'{text!r}: expected "24h", "30d", "2026-01-31" or "2026-01-31T08:00"') from exc
    return (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp()


def run_report(config_path: Path | None, since: str, *, as_json: bool, svg: Path | None, png: Path | None) -> None:
    """Print the report and write the pictures. Raises ConfigErrors, StoreError, NoPainter, OSError, ValueError."""
    if png is not None:
        find_pillow()
    config = load_operators_config(config_path, check_files=False) if config_path is not None else None
    now_s = time.time()
    since_us, until_us = int(parse_since(since, now_s) * 1e6), int(now_s * 1e6)
    if since_us >= until_us:
        raise ValueError(f"{since!r} is in the future")
    read = trio.run(_read, config.store if config is not None else StoreSection(), since_us, until_us)
    prices = config.prices if config is not None else None
    report = summarise(read.intervals, read.detail_us, until_us, prices, add_up(read.days))
    report = dataclasses.replace(report, since_us=read.since_us)
    if as_json:
        click.echo(json.dumps(to_json(report), indent=2))
    else:
        console = rich.console.Console()
        if not console.is_terminal:
            console.width = PIPE_COLUMNS
        for table in to_tables(report):
            console.print(table)
    if svg is not None or png is not None:
        # It begins with the first interval: a month's picture of a day's ledger would be a stripe at its edge.
        first_us = min((interval.from_us for interval in read.intervals), default=read.detail_us)
        picture = draw(read.intervals, max(read.detail_us, first_us), until_us)
        if svg is not None:
            svg.write_text(to_svg(picture))
        if png is not None:
            png.write_bytes(to_png(picture))


@dataclasses.dataclass(frozen=True, slots=True)
class _Read:
    """What the ledger has of a span: sums of whole days from `since_us`, and intervals from `detail_us`."""

    since_us: int
    detail_us: int
    days: list[DaySums]
    intervals: list[Interval]


async def _read(section: StoreSection, since_us: int, until_us: int) -> _Read:
    ledger = open_ledger_to_read(section)
    try:
        if not isinstance(ledger, SqliteLedger):
            return _Read(since_us, since_us, [], await ledger.intervals(since_us, until_us))
        while True:
            read = await _read_rolled(ledger, since_us, until_us)
            if read is not None:
                return read
    finally:
        await ledger.aclose()


async def _read_rolled(ledger: RolledLedger, since_us: int, until_us: int) -> _Read | None:
    """None if a day was rolled up meanwhile."""
    rolled_us = await ledger.rolled_until_us()
    day_us = since_us // DAY_US * DAY_US
    days = [] if rolled_us is None else await ledger.days(day_us, rolled_us)
    begin_us, detail_us = (day_us, max(since_us, rolled_us)) if days and rolled_us is not None else (since_us, since_us)
    intervals = await ledger.intervals(detail_us, until_us)
    return _Read(begin_us, detail_us, days, intervals) if await ledger.rolled_until_us() == rolled_us else None
