"""The hours in which a satellite is kept awake, on the wall clock of a time zone. Pure.

A window begins at the first moment at which the clock shows its beginning, and ends at the last at which it shows its end.
So if a change of the clocks repeats an hour or leaves one out, the satellite is awake longer and not shorter. A window that
ends at or before its beginning ends on the next day.
"""

import datetime
import math
from collections.abc import Iterator, Sequence

from bentpipe.config.model import KeepAwakeSection

LOOK_AHEAD_DAYS = 9
"""Days to look at: a week, which has every window once, and a day on either side."""
DAY = datetime.timedelta(days=1)


def is_kept_awake(sections: Sequence[KeepAwakeSection], at: float) -> bool:
    """Whether `at` (time.time() seconds) is in a window. Its beginning is, its end is not."""
    return any(begin <= at < end for section in sections for begin, end in _windows(section, at, days=1))


def next_change(sections: Sequence[KeepAwakeSection], after: float) -> float:
    """When `is_kept_awake` next changes its answer; infinity if never."""
    kept = is_kept_awake(sections, after)
    edges = {
        edge for section in sections for window in _windows(section, after, days=LOOK_AHEAD_DAYS) for edge in window
    }
    later = (edge for edge in sorted(edges) if edge > after and is_kept_awake(sections, edge) is not kept)
    return next(later, math.inf)


def _windows(section: KeepAwakeSection, near: float, days: int) -> Iterator[tuple[float, float]]:
    """The windows that begin between a day before `near` and `days` after."""
    zone = section.time_zone
    today = datetime.datetime.fromtimestamp(near, zone).date()
    begin, end = section.window
    for offset in range(-1, days + 1):
        day = today + offset * DAY
        if day.weekday() in section.weekdays:
            last = day + DAY if end <= begin else day
            yield _moment(day, begin, zone, fold=0), _moment(last, end, zone, fold=1)


def _moment(day: datetime.date, minutes: int, zone: datetime.tzinfo, fold: int) -> float:
    """The moment at which the clock shows these minutes past midnight: the first such moment, or (`fold` 1) the last.

    A time that the clock leaves out has two readings too (PEP 495): by the clock before the gap, and by the clock after it.
    """
    midnight = datetime.datetime.combine(day + (minutes // (24 * 60)) * DAY, datetime.time())
    local = midnight + datetime.timedelta(minutes=minutes % (24 * 60))
    both = [local.replace(tzinfo=zone, fold=each).timestamp() for each in (0, 1)]
    return max(both) if fold else min(both)
