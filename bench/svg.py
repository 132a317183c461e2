"""Draws the few kinds of picture that the bench needs as SVG: bars with their spread, and curves of percentiles."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from html import escape

from bench.stats import Summary

COLOURS = ("#2b6cb0", "#dd8452", "#55a868", "#8172b3", "#c44e52", "#937860", "#64b5cd", "#777777", "#da8bc3", "#ccb974")
FONT = 'font-family="Helvetica, Arial, sans-serif" font-size="12"'
LABEL, PLOT, RIGHT, TOP, BAR = 130, 460, 110, 46, 13
CURVE_HEIGHT = 260
CUT = 3
"""How many times the middle of all bars the longest may be."""


@dataclasses.dataclass(frozen=True, slots=True)
class Bars:
    """One row: a label and one bar for each series (None: not measured)."""

    label: str
    values: tuple[Summary | None, ...]


def draw_bars(title: str, unit: str, series: Sequence[str], rows: Sequence[Bars]) -> str:
    """Horizontal bars; the whisker is the range of the repetitions."""
    step = BAR * len(series) + 10
    height = TOP + step * len(rows) + 30
    medians = [value.median for row in rows for value in row.values if value and value.median > 0]
    # A bar that leaves the picture is cut: it must not make the others too short to be compared.
    most = min(max(medians, default=1.0), CUT * statistics.median(medians or [1.0])) * 1.1
    parts = [_text(10, 20, title, weight="bold")]
    for index, name in enumerate(series):
        x = LABEL + index * 130
        parts.append(f'<rect x="{x}" y="28" width="10" height="10" fill="{COLOURS[index]}"/>')
        parts.append(_text(x + 14, 37, name))
    for number, row in enumerate(rows):
        top = TOP + number * step
        parts.append(_text(LABEL - 6, top + step / 2, row.label, anchor="end", bold=row.label == "bentpipe"))
        for index, value in enumerate(row.values):
            y = top + index * BAR
            if value is None:
                parts.append(_text(LABEL + 4, y + 10, "not measured", colour="#999"))
                continue
            width, low, high = (min(max(x, 0.0) / most, 1.0) * PLOT for x in (value.median, value.low, value.high))
            parts.append(
                f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS[index]}"/>'
                f'<path d="M{LABEL + low:.1f} {y + 5.5}H{LABEL + high:.1f}" stroke="#222" stroke-width="1.5"/>'
            )
            parts.append(_text(LABEL + max(width, high) + 5, y + 10, f"{number_words(value.median)} {unit}"))
    return _page(LABEL + PLOT + RIGHT, height, parts)


def draw_curves(title: str, curves: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """Latency (µs, logarithmic) by percentile (logarithmic in what is left: 90, 99, 99.9)."""
    points = [value for _, curve in curves for _, value in curve if value > 0]
    low, high = math.log10(min(points, default=1.0)), math.log10(max(points, default=10.0))
    high = max(high, low + 0.1)
    decades = 4
    bottom = TOP + CURVE_HEIGHT

    def place(quantile: float, value: float) -> tuple[float, float]:
        left = -math.log10(max(1 - quantile, 10**-decades))
        return LABEL + left / decades * PLOT, bottom - (math.log10(max(value, 1e-3)) - low) / (
            high - low
        ) * CURVE_HEIGHT

    parts = [_text(10, 20, title, weight="bold")]
    for nines, name in enumerate(("0 %", "90 %", "99 %", "99.9 %", "99.99 %")):
        x = LABEL + nines / decades * PLOT
        parts.append(f'<path d="M{x:.0f} {TOP}V{bottom}" stroke="#ddd"/>')
        parts.append(_text(x, bottom + 16, name, anchor="middle"))
    for power in range(math.ceil(low), math.floor(high) + 1):
        y = place(0, 10**power)[1]
        parts.append(f'<path d="M{LABEL} {y:.0f}H{LABEL + PLOT}" stroke="#ddd"/>')
        parts.append(_text(LABEL - 6, y + 4, f"{10**power:g} µs", anchor="end"))
    for index, (name, curve) in enumerate(curves):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(LABEL + PLOT + 8, TOP + 14 + index * 16, name, colour=colour))
    return _page(LABEL + PLOT + RIGHT + 20, bottom + 30, parts)


def number_words(number: float) -> str:
    """Three digits, without an exponent."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    weight: str = "normal",
    colour: str = "#222",
    bold: bool = False,
) -> str:
    weight = "bold" if bold else weight
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}" {FONT}>'
        f"{escape(words)}</text>"
    )


def _page(width: float, height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )
