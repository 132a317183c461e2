"""Histograms of what the daemon does, with the id of a connection as an example of each bucket.

An observation costs less than a microsecond and waits for nothing. Prometheus has a series for each bucket, so the bounds
are few, and only labels with few values have histograms.
"""

import bisect
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence

WAIT_BOUNDS_S = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)
"""Of a hold and of the phases of a wake: a process is up in a tenth of a second, a resumed instance in 5 s to 20 s, one that
boots in 20 s to 60 s. 300 s and 600 s are the default `wake_deadline` and `hold_limit`."""
DIAL_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 15.0)
"""Of a dial: a round trip within a zone takes under 1 ms, with a TLS handshake under 10 ms. 0.5 s, 2 s and 15 s are the
deadlines of `daemon/edge/dial.py`."""
GREETING_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0)
"""From accept to the first complete request: three round trips and the TLS handshake; 10 s is the default
`greeting_deadline`."""
LIFE_BOUNDS_S = (0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0, 86400.0)
"""Of a whole connection: a call, a step, a build, a connection that stays open for a day."""
CALL_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0)
"""Of a call of the control API: most need only the daemon's memory. A wake or a launch takes as long as its machine."""

EXEMPLAR_AGE_S = 60.0
"""An example is replaced by a newer one after this time: a scrape that comes each minute sees a new one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Exemplar:
    """One observation: the connection that it is of, its value, and when it was made, in seconds since the epoch."""

    connection_id: str
    value: float
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class HistogramView:
    """A histogram at one moment: for each bound, and for infinity, how many observations lie at or below it."""

    bounds: Sequence[float]
    cumulated: Sequence[int]
    exemplars: Sequence[Exemplar | None]
    total: float

    @property
    def count(self) -> int:
        """All observations."""
        return self.cumulated[-1]


class Histogram:
    """Counts observations by bounds, which rise."""

    __slots__ = ("_bounds", "_counts", "_exemplars", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._exemplars: list[Exemplar | None] = [None] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float, connection_id: str = "") -> None:
        """Count a value, which may be NaN: then there was nothing to observe."""
        if math.isnan(value):
            return
        at = bisect.bisect_left(self._bounds, value)
        self._counts[at] += 1
        self._total += value
        if connection_id:
            now, known = time.time(), self._exemplars[at]
            if known is None or now - known.at >= EXEMPLAR_AGE_S:
                self._exemplars[at] = Exemplar(connection_id, value, now)

    def view(self) -> HistogramView:
        """What was counted so far."""
        cumulated, so_far = [], 0
        for count in self._counts:
            so_far += count
            cumulated.append(so_far)
        return HistogramView(self._bounds, cumulated, tuple(self._exemplars), self._total)


class LabelledHistogram:
    """A histogram for each value of one label."""

    def __init__(self, bounds: Sequence[float], values: Sequence[str] = ()) -> None:
        """`values` are there before anything was observed."""
        self._bounds = bounds
        self._of = {value: Histogram(bounds) for value in values}

    def observe(self, label: str, value: float, connection_id: str = "") -> None:
        """Count a value. The caller makes sure that there are few labels."""
        found = self._of.get(label)
        if found is None:
            found = self._of[label] = Histogram(self._bounds)
        found.observe(value, connection_id)

    def views(self) -> Mapping[str, HistogramView]:
        """Every label's."""
        return {label: histogram.view() for label, histogram in self._of.items()}
