"""What the ledger says of satellites over time: each one's line in columns, the hours of its wakes, its failures. Pure."""

import dataclasses
import datetime
import enum
import itertools
from collections.abc import Mapping, Sequence

from bentpipe.daemon.ledger.contract import Interval
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.report.tally import WAKING, is_ours

S = SatelliteState

DAY_HOURS = 24
NOT_FAILED = frozenset({*WAKING, S.OPERATIONAL, S.UNKNOWN})
"""What may follow a wake that has not failed: the end of one that nobody watched is not known."""


class LineStyle(enum.Enum):
    """How a stretch of a satellite's line looks: its word in the legend, and its colour."""

    ASLEEP = ("asleep", "#d7dde4")
    WAKING = ("waking", "#e8a33d")
    AWAKE = ("awake", "#3a9a5b")
    LEAVING = ("going to sleep", "#7fa8d1")
    FAILED = ("failed", "#c8453b")
    UNKNOWN = ("not known", "#f3f4f6")


STYLES: Mapping[SatelliteState, LineStyle | None] = {
    S.CREATING: LineStyle.WAKING,
    S.STARTING: LineStyle.WAKING,
    S.OPERATIONAL: LineStyle.AWAKE,
    S.UPDATING: LineStyle.AWAKE,
    S.STOPPING: LineStyle.LEAVING,
    S.DESTROYING: LineStyle.LEAVING,
    S.SLEEP: LineStyle.ASLEEP,
    S.FAILED: LineStyle.FAILED,
    S.UNKNOWN: LineStyle.UNKNOWN,
    S.OFFLINE: None,
}


@dataclasses.dataclass(frozen=True, slots=True)
class LineRun:
    """Neighbouring columns of one style."""

    style: LineStyle
    begin: int
    columns: int


def fill(chain: Sequence[Interval], since_us: int, until_us: int, count: int) -> list[dict[LineStyle, float]]:
    """For each of `count` columns, the share of it that each style takes (in columns)."""
    columns: list[dict[LineStyle, float]] = [{} for _ in range(count)]
    scale = count / max(1, until_us - since_us)
    for interval in chain:
        style = STYLES[interval.state]
        begin = max(0.0, (interval.from_us - since_us) * scale)
        end = min(float(count), (interval.to_us - since_us) * scale)
        if style is None or begin >= end:
            continue
        for column in range(int(begin), min(count, int(end) + 1)):
            part = min(end, column + 1) - max(begin, column)
            if part > 0:
                columns[column][style] = columns[column].get(style, 0.0) + part
    return columns


def runs_of(columns: Sequence[Mapping[LineStyle, float]]) -> list[LineRun]:
    """What a line shows: in each column the style that takes most of it."""
    shown = [max(column, key=lambda style: column[style]) if column else None for column in columns]
    found, at = [], 0
    for style, group in itertools.groupby(shown):
        length = len(list(group))
        if style is not None:
            found.append(LineRun(style, at, length))
        at += length
    return found


def lines_of(
    intervals: Sequence[Interval], since_us: int, until_us: int, count: int
) -> dict[SatelliteKey, list[LineRun]]:
    """Each satellite's line. `intervals` are as a ledger gives them; satellites that were not configured have no line."""
    found = {
        key: runs_of(fill(list(group), since_us, until_us, count))
        for key, group in itertools.groupby(intervals, key=lambda interval: interval.key)
    }
    return {key: line for key, line in found.items() if line}


def wakes_by_hour(intervals: Sequence[Interval], since_us: int) -> dict[SatelliteKey, list[int]]:
    """How many of each satellite's wakes began in each hour of the day (UTC), of those that began in the span."""
    found: dict[SatelliteKey, list[int]] = {}
    before: Interval | None = None
    for interval in intervals:
        begins = before is None or before.key != interval.key or before.state not in WAKING
        if interval.state in WAKING and begins and interval.from_us >= since_us and is_ours(interval):
            at = datetime.datetime.fromtimestamp(interval.from_us // 1_000_000, datetime.UTC)
            found.setdefault(interval.key, [0] * DAY_HOURS)[at.hour] += 1
        before = interval
    return found


def failures_of(intervals: Sequence[Interval], since_us: int) -> list[Interval]:
    """What satellites came to when they failed, or when a wake failed, in the span: the newest first; `cause` says why."""
    found = []
    for before, interval in itertools.pairwise([None, *intervals]):
        if interval is None or interval.from_us < since_us:
            continue
        wake = before if before is not None and before.key == interval.key and before.state in WAKING else None
        if interval.state is S.FAILED or (wake is not None and is_ours(wake) and interval.state not in NOT_FAILED):
            found.append(interval)
    return sorted(found, key=lambda interval: interval.from_us, reverse=True)
