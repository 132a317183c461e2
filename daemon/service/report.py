"""`bentpipe report`: reads the ledger, with or without a running daemon, and prints the sums."""

import datetime
import json
import time
from pathlib import Path

import click

from bentpipe.config.store import StoreSection
from bentpipe.config.units import parse_duration_s
from bentpipe.daemon.report.picture import draw
from bentpipe.daemon.report.plain import to_json
from bentpipe.daemon.report.png import find_pillow, to_png
from bentpipe.daemon.report.summary import Report, summarise
from bentpipe.daemon.report.svg import to_svg
from bentpipe.daemon.service.installed import load_operators_config
from bentpipe.daemon.service.ledger_reading import read_intervals, read_span

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
    section = config.store if config is not None else StoreSection()
    span = read_span(section, since_us, until_us)
    report = summarise(span, config.prices if config is not None else None)
    if as_json:
        click.echo(json.dumps(to_json(report), indent=2))
    else:
        _print_tables(report)
    if svg is not None or png is not None:
        intervals = read_intervals(section, span.detail_us, until_us)
        # It begins with the first interval: a month's picture of a day's ledger would be a stripe at its edge.
        first_us = min((interval.from_us for interval in intervals), default=span.detail_us)
        picture = draw(intervals, max(span.detail_us, first_us), until_us)
        if svg is not None:
            svg.write_text(to_svg(picture))
        if png is not None:
            png.write_bytes(to_png(picture))


def _print_tables(report: Report) -> None:
    # Imported here, because they take longer than the report.
    import rich.console

    from bentpipe.daemon.report.table import to_tables

    console = rich.console.Console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    for table in to_tables(report):
        console.print(table)
