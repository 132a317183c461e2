"""The ledger as a picture of rectangles and words: how many satellites were awake over time, and each one's line. Pure.

Time is cut into columns. A column shows the state that took most of it. So a longer or livelier ledger does not make the
picture larger. `svg` and `png` paint the picture.
"""

import bisect
import dataclasses
import datetime
import itertools
from collections.abc import Sequence

from bentpipe.daemon.ledger.contract import Interval
from bentpipe.daemon.report.plain import utc_text
from bentpipe.daemon.report.timeline import LineStyle, fill, runs_of

INK, FAINT, PAPER = "#1f2933", "#9aa5b1", "#ffffff"
COLUMNS = 960
MARGIN, NAME_WIDTH, CHART_HEIGHT, ROW_HEIGHT, GAP = 16, 200, 120, 18, 5
NAME_CHARS = 30
MAX_TICKS = 12
STEPS_S = (1, 2, 5, 10, 30, 60, 300, 900, 3600, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000, 31_536_000)
DAY_S = 86_400


@dataclasses.dataclass(frozen=True, slots=True)
class Rect:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    colour: str


@dataclasses.dataclass(frozen=True, slots=True)
class Label:
    """Words on a base line. `anchor` says which end of them is at x."""

    x: float
    y: float
    text: str
    colour: str = INK
    anchor: str = "start"


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """The things to paint, in this order."""

    width: int
    height: int
    shapes: tuple[Rect | Label, ...]


def draw(intervals: Sequence[Interval], since_us: int, until_us: int) -> Picture:
    """Draw the span."""
    lines = {
        str(key): fill(list(group), since_us, until_us, COLUMNS)
        for key, group in itertools.groupby(intervals, key=lambda interval: interval.key)
    }
    lines = {name: line for name, line in lines.items() if any(column for column in line)}
    left, top = MARGIN + NAME_WIDTH, MARGIN + 40
    rows_top = top + CHART_HEIGHT + 2 * GAP
    bottom = rows_top + len(lines) * (ROW_HEIGHT + GAP)
    width, height = left + COLUMNS + MARGIN, bottom + 50
    shapes: list[Rect | Label] = [
        Rect(0, 0, width, height, PAPER),
        Label(MARGIN, MARGIN + 14, f"satellites from {utc_text(since_us)} to {utc_text(until_us)}"),
    ]
    shapes += _ticks(since_us, until_us, left, top, bottom)
    shapes += _chart(list(lines.values()), left, top)
    for index, (name, line) in enumerate(lines.items()):
        y = rows_top + index * (ROW_HEIGHT + GAP)
        shown = name if len(name) <= NAME_CHARS else name[: NAME_CHARS - 3] + "..."
        shapes.append(Label(left - 8, y + ROW_HEIGHT - 5, shown, anchor="end"))
        for run in runs_of(line):
            shapes.append(Rect(left + run.begin, y, run.columns, ROW_HEIGHT, run.style.value[1]))
    x = left
    for style in LineStyle:
        word, colour = style.value
        shapes += [Rect(x, bottom + 28, 12, 12, colour), Label(x + 17, bottom + 38, word)]
        x += 40 + 8 * len(word)
    return Picture(width, height, tuple(shapes))


def _chart(lines: Sequence[list[dict[LineStyle, float]]], left: int, top: int) -> list[Rect | Label]:
    """How many satellites were not asleep, as the average over each column: half an hour in a day's column is not a day."""
    busy = (LineStyle.WAKING, LineStyle.AWAKE, LineStyle.LEAVING)
    counts = [sum(line[c].get(style, 0.0) for line in lines for style in busy) for c in range(COLUMNS)]
    most = max(1.0, len(lines))
    shapes: list[Rect | Label] = [
        Rect(left, top + CHART_HEIGHT, COLUMNS, 1, FAINT),
        Label(left - 8, top + 10, f"{most:.0f}", FAINT, "end"),
        Label(left - 8, top + CHART_HEIGHT / 2, "awake", INK, "end"),
        Label(left - 8, top + CHART_HEIGHT, "0", FAINT, "end"),
    ]
    x = left
    for height, group in itertools.groupby(round(count / most * CHART_HEIGHT, 1) for count in counts):
        columns = len(list(group))
        if height:
            shapes.append(Rect(x, top + CHART_HEIGHT - height, columns, height, LineStyle.AWAKE.value[1]))
        x += columns
    return shapes


def _ticks(since_us: int, until_us: int, left: int, top: int, bottom: int) -> list[Rect | Label]:
    span_s = max(1, (until_us - since_us) / 1e6)
    step_s = STEPS_S[min(bisect.bisect_left(STEPS_S, span_s / MAX_TICKS), len(STEPS_S) - 1)]
    shapes: list[Rect | Label] = []
    first = -(-since_us // (step_s * 1_000_000)) * step_s
    for at_s in range(first, until_us // 1_000_000 + 1, step_s):
        at = datetime.datetime.fromtimestamp(at_s, datetime.UTC)
        pattern = "%H:%M:%S" if step_s < 60 else "%Y-%m-%d" if at_s % DAY_S == 0 else "%H:%M"
        x = left + (at_s * 1e6 - since_us) / (until_us - since_us) * COLUMNS
        shapes += [
            Rect(x, top, 1, bottom - top, "#e4e7eb"),
            Label(x, bottom + 14, at.strftime(pattern), FAINT, "middle"),
        ]
    return shapes
