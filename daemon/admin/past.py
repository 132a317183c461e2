"""The past in words and in paths of SVG, of those satellites that a viewer may see. Pure."""

import dataclasses
import datetime
from collections.abc import Iterable, Iterator

from bentpipe.daemon.admin.history import PastFacts
from bentpipe.daemon.admin.viewer import Viewer
from bentpipe.daemon.report.plain import utc_text
from bentpipe.daemon.report.summary import ReportLine
from bentpipe.daemon.report.timeline import DAY_HOURS, LineRun, LineStyle

SHOWN_FAILURES = 20
TICKS = 7
"""Marks below the timelines."""
BAR_WIDTH, BAR_HEIGHT = 10, 60
"""Of the chart of hours, in units of its view box."""


@dataclasses.dataclass(frozen=True, slots=True)
class PastRow:
    """A satellite's past, or that of all: hours as text."""

    name: str
    awake: str
    saved: str
    share: str
    """Of the time in which it was known to be awake or asleep: how much it was asleep."""
    money: str
    """What that saved; "" without prices."""
    wakes: str
    failed: str
    paths: tuple[tuple[str, str], ...] = ()
    """A class of CSS, and a path in a view box of history.COLUMNS by 1."""

    @property
    def words(self) -> str:
        """The line for those who do not see it."""
        return f"{self.name}: awake {self.awake} h, asleep {self.saved} h, {self.wakes} wakes, {self.failed} failed"


@dataclasses.dataclass(frozen=True, slots=True)
class HourBar:
    """The wakes that began in one hour of the day."""

    hour: int
    wakes: int
    x: int
    y: float
    height: float


@dataclasses.dataclass(frozen=True, slots=True)
class FailureRow:
    """A satellite that came to fail."""

    satellite: str
    at: str
    cause: str


@dataclasses.dataclass(frozen=True, slots=True)
class PastPage:
    """Everything that the page of the past shows."""

    since: str
    until: str
    detail_since: str
    currency: str
    everything: PastRow
    rows: tuple[PastRow, ...]
    ticks: tuple[tuple[str, str], ...]
    """Where, in percent of the width, and the words."""
    legend: tuple[tuple[str, str], ...]
    hours: tuple[HourBar, ...]
    most_wakes: int
    failures: tuple[FailureRow, ...]
    """Their causes are a cloud's own words: only the operator gets them."""


def past_page(facts: PastFacts, viewer: Viewer) -> PastPage:
    """Make the page of what the viewer may see."""
    lines = {key: line for key, line in facts.sums.items() if viewer.sees(key)}
    rows = [_row(str(key), [line], facts.lines.get(key, ())) for key, line in lines.items()]
    counts = _hours(hours for key, hours in facts.hours.items() if viewer.sees(key))
    failures = [
        FailureRow(str(each.key), utc_text(each.from_us), each.cause if viewer.sees_host else "")
        for each in facts.failures
        if viewer.sees(each.key)
    ]
    return PastPage(
        utc_text(facts.report.since_us),
        utc_text(facts.until_us),
        utc_text(facts.detail_us),
        facts.report.currency,
        _row("all", list(lines.values()), ()),
        tuple(rows),
        tuple(_ticks(facts.detail_us, facts.until_us)),
        tuple((class_of(style), style.value[0]) for style in LineStyle),
        tuple(_bars(counts)),
        max(counts),
        tuple(failures[:SHOWN_FAILURES]),
    )


def class_of(style: LineStyle) -> str:
    """The class of CSS that has its colour, by day and by night."""
    return style.name.lower()


def _row(name: str, lines: list[ReportLine], runs: Iterable[LineRun]) -> PastRow:
    awake_h, saved_h = sum(line.awake_h for line in lines), sum(line.saved_h for line in lines)
    known_h = awake_h + saved_h
    money = [line.money for line in lines if line.money is not None]
    return PastRow(
        name,
        f"{awake_h:.1f}",
        f"{saved_h:.1f}",
        f"{saved_h / known_h:.0%}" if known_h else "",
        f"{sum(each.saved for each in money):.2f}" if money else "",
        str(sum(line.wakes for line in lines)),
        str(sum(line.failed_wakes for line in lines)),
        tuple(_paths(runs)),
    )


def _paths(runs: Iterable[LineRun]) -> Iterator[tuple[str, str]]:
    """One path for each style: a satellite that wakes often has hundreds of runs."""
    of: dict[LineStyle, list[str]] = {}
    for run in runs:
        of.setdefault(run.style, []).append(f"M{run.begin} 0h{run.columns}v1h-{run.columns}z")
    for style, steps in of.items():
        yield class_of(style), "".join(steps)


def _ticks(since_us: int, until_us: int) -> Iterator[tuple[str, str]]:
    for number in range(TICKS):
        share = number / TICKS
        at = datetime.datetime.fromtimestamp((since_us + share * (until_us - since_us)) / 1e6, datetime.UTC)
        pattern = "%d %b" if until_us - since_us > 2 * 86_400_000_000 else "%H:%M"
        yield f"{100 * share:.2f}%", at.strftime(pattern)


def _hours(counts: Iterable[list[int]]) -> list[int]:
    total = [0] * DAY_HOURS
    for each in counts:
        total = [one + other for one, other in zip(total, each, strict=True)]
    return total


def _bars(counts: list[int]) -> Iterator[HourBar]:
    most = max(1, *counts)
    for hour, wakes in enumerate(counts):
        height = round(wakes / most * BAR_HEIGHT, 1)
        yield HourBar(hour, wakes, hour * BAR_WIDTH, BAR_HEIGHT - height, height)
