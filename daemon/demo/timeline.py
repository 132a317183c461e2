"""Draws which satellite was asleep, waking, awake or failed, and when, from the daemon's log of transitions. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from rich.text import Text

from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.testbed.edge_host import LoggedChange

GLYPHS: Mapping[SatelliteState, tuple[str, str]] = {
    SatelliteState.SLEEP: ("·", "dim"),
    SatelliteState.STARTING: ("▒", "yellow"),
    SatelliteState.OPERATIONAL: ("█", "green"),
    SatelliteState.STOPPING: ("░", "blue"),
    SatelliteState.FAILED: ("✗", "red"),
}
"""Glyph and style of each state; the others show as "?"."""

LEGEND = "· asleep   ▒ waking   █ awake   ░ going to sleep   ✗ failed"


def draw_timeline(
    satellites: Sequence[str], changes: Iterable[LoggedChange], start: float, end: float, columns: int
) -> list[Text]:
    """Make one line for each satellite, and an axis in seconds. A column shows the most eventful state in its time.

    All satellites are asleep at `start`; times are seconds since the epoch, `columns` is the width of the picture.
    """
    width = max(map(len, satellites))
    step = (end - start) / columns
    order = list(GLYPHS)
    lines: list[Text] = []
    events = sorted(changes, key=lambda change: change.at)
    for satellite in satellites:
        own = [change for change in events if change.satellite == satellite]
        line = Text(f"{satellite:<{width}} ")
        state = SatelliteState.SLEEP
        for column in range(columns):
            begin, until = start + column * step, start + (column + 1) * step
            within = [] if own and own[0].at <= begin else [state]
            while own and own[0].at < until:
                state = own.pop(0).state
                within.append(state)
            shown = max(within, key=lambda s: (s in (SatelliteState.STARTING, SatelliteState.STOPPING), order.index(s)))
            glyph, style = GLYPHS.get(shown, ("?", "red"))
            line.append(glyph, style)
        lines.append(line)
    marks = "".join(f"{column * step:<10.0f}" for column in range(0, columns, 10))
    lines.append(Text(f"{'seconds':<{width}} {marks[:columns]}"))
    return lines
