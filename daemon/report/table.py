"""The report as tables for a terminal. Pure."""

import dataclasses
from collections.abc import Sequence

from rich import box
from rich.table import Table

from bentpipe.daemon.model import NO_PEAKS, BootPhase, Resume
from bentpipe.daemon.report.durations import Spread
from bentpipe.daemon.report.plain import utc_text
from bentpipe.daemon.report.summary import Report, ReportLine


def to_tables(report: Report) -> list[Table]:
    """Hours and money, and how long wakes took by phase: one line for each satellite, for each org, and for all."""
    groups = [report.satellites, report.orgs if len(report.orgs) > 1 else (), (report.everything,)]
    tables = [_hours(report, groups), _wakes(groups), _phases(groups)]
    if any(line.peaks != NO_PEAKS or line.kills or line.suspicion.score for line in report.satellites):
        tables.append(_machines(report.satellites))
    if any(line.boot for line in report.satellites):
        tables.append(_boots(groups))
    return tables


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)


def _hours(report: Report, groups: Sequence[Sequence[ReportLine]]) -> Table:
    money = f"; money in {report.currency}" if report.currency else ""
    table = _table(f"{utc_text(report.since_us)} to {utc_text(report.until_us)}{money}")
    table.add_column("satellite", overflow="fold")
    headings = ["awake h", "saved h", "saved", "unknown h"]
    if report.currency:
        headings += ["cost", "always on", "saved"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for group in groups:
        for line in group:
            watched_h = line.awake_h + line.saved_h
            saved = f"{line.saved_h / watched_h:.0%}" if watched_h else ""
            cells = [line.name, f"{line.awake_h:.2f}", f"{line.saved_h:.2f}", saved, f"{line.unknown_h:.2f}"]
            if line.money is not None:
                cells += [f"{amount:.2f}" for amount in (line.money.cost, line.money.always_on, line.money.saved)]
            table.add_row(*cells)
        table.add_section()
    return table


def _wakes(groups: Sequence[Sequence[ReportLine]]) -> Table:
    table = _table("wakes, and the clients that were held")
    table.add_column("satellite", overflow="fold")
    for heading in ("wakes", "failed", "resumed", "booted", "clients", "waited s", "longest s"):
        table.add_column(heading, justify="right")
    for group in groups:
        for line in group:
            waits = line.waits
            held = (str(waits.clients), f"{waits.total_s:.1f}", f"{waits.longest_s:.1f}")
            found = (line.resumes[resume.value] for resume in (Resume.RESUMED, Resume.COLD))
            table.add_row(line.name, str(line.wakes), str(line.failed_wakes), *map(str, found), *held)
        table.add_section()
    return table


def _phases(groups: Sequence[Sequence[ReportLine]]) -> Table:
    table = _table("seconds to wake, by phase: p50/p95/max")
    table.add_column("satellite", overflow="fold")
    phases = list(groups[-1][0].wake)
    for phase in phases:
        table.add_column(phase, justify="right")
    for group in groups:
        for line in group:
            table.add_row(line.name, *(_spread(line.wake[phase]) for phase in phases))
        table.add_section()
    return table


def _boots(groups: Sequence[Sequence[ReportLine]]) -> Table:
    table = _table("boots: seconds of uptime at which each phase was over, p50/p95/max")
    table.add_column("satellite", overflow="fold")
    for phase in BootPhase:
        table.add_column(phase.value, justify="right")
    for group in groups:
        for line in group:
            found = (line.boot.get(phase.value) for phase in BootPhase)
            table.add_row(line.name, *("" if spread is None else _spread(spread) for spread in found))
        table.add_section()
    return table


def _machines(lines: Sequence[ReportLine]) -> Table:
    table = _table("what the responders told: highest share of 10 s in which tasks waited, kills, signs of abuse")
    table.add_column("satellite", overflow="fold")
    for heading in ("cpu %", "memory %", "io %", "out of memory", "abuse"):
        table.add_column(heading, justify="right")
    table.add_column("why", overflow="fold")
    for line in lines:
        peaks = (f"{percent:.0f}" for percent in dataclasses.astuple(line.peaks))
        why = "; ".join(line.suspicion.reasons)
        table.add_row(line.name, *peaks, str(line.kills), str(line.suspicion.score), why)
    return table


def _spread(spread: Spread) -> str:
    if not spread.count:
        return ""
    return "/".join(_short(seconds) for seconds in (spread.p50_s, spread.p95_s, spread.longest_s))


def _short(seconds: float) -> str:
    """Seconds, with two digits behind the point below 10 s, and none from 100 s on."""
    return f"{seconds:.{2 if seconds < 10 else 1 if seconds < 100 else 0}f}"
