"""What the ledger tells of the past: hours and savings, each satellite's timeline, the hours of wakes, failures.

Reading and adding up take a thread some tenths of a second, so the result is shared by all viewers for a while, and one is
made at a time. A ledger that does not answer costs the pages that ask for it, and nothing else.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping

import trio

from bentpipe.config.prices import PricesSection
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.ledger.contract import Interval, LedgerSpan
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.report.summary import Report, ReportLine, summarise
from bentpipe.daemon.report.timeline import LineRun, failures_of, lines_of, wakes_by_hour

DAY_US = 86_400_000_000
SPANS: Mapping[str, tuple[str, int]] = {
    "1d": ("a day", DAY_US),
    "7d": ("a week", 7 * DAY_US),
    "30d": ("30 days", 30 * DAY_US),
    "365d": ("a year", 365 * DAY_US),
}
"""What may be asked for: its words, and its length in microseconds."""
FIRST_SPAN = "7d"
"""If none is asked for."""
DETAIL_US = 7 * DAY_US
"""Timelines, hours and failures are of the last week at most: they need every interval, of which a busy week has 20,000."""
COLUMNS = 288
"""Of a timeline: five minutes each for a day."""
FRESH_S = 15.0
"""For so long a result is shown again. A year of a million intervals then costs at most some percent of a core."""
DEADLINE_S = 15.0
"""For a ledger to answer, its queue of others who ask included."""
FAILURES = 200
"""That are kept of one reading."""

ReadSpan = Callable[[int, int], LedgerSpan]
"""Reads what the ledger has between two moments; it blocks, and raises StoreError."""
ReadIntervals = Callable[[int, int], list[Interval]]


@dataclasses.dataclass(frozen=True, slots=True)
class PastFacts:
    """The past of all satellites over a span that ended at `until_us`; times in microseconds since the epoch."""

    report: Report
    detail_us: int
    """Since when there are timelines, hours and failures."""
    until_us: int
    lines: Mapping[SatelliteKey, list[LineRun]]
    hours: Mapping[SatelliteKey, list[int]]
    failures: list[Interval]
    sums: Mapping[SatelliteKey, ReportLine]


class History:
    """Reads the ledger. `prices` are those of the configuration as it is now."""

    def __init__(
        self, read_span: ReadSpan, read_intervals: ReadIntervals, prices: Callable[[], PricesSection | None]
    ) -> None:
        self._read_span = read_span
        self._read_intervals = read_intervals
        self._prices = prices
        self._known: dict[str, tuple[float, PastFacts]] = {}
        self._one_at_a_time = trio.Lock()
        self._thread = trio.CapacityLimiter(1)

    async def read(self, span: str) -> PastFacts:
        """The past over one of SPANS. Raises StoreError."""
        with trio.move_on_after(DEADLINE_S):
            async with self._one_at_a_time:
                known = self._known.get(span)
                if known is not None and trio.current_time() - known[0] < FRESH_S:
                    return known[1]
                # If the disk hangs, the thread stays behind and keeps its place: later readers wait for their deadline.
                made = await trio.to_thread.run_sync(
                    self._make, SPANS[span][1], limiter=self._thread, abandon_on_cancel=True
                )
                self._known[span] = trio.current_time(), made
                return made
        raise StoreError(f"the ledger does not answer within {DEADLINE_S:g} s")

    def _make(self, length_us: int) -> PastFacts:
        until_us = time.time_ns() // 1000
        since_us = until_us - length_us
        report = summarise(self._read_span(since_us, until_us), self._prices())
        detail_us = max(since_us, until_us - DETAIL_US)
        intervals = self._read_intervals(detail_us, until_us)
        return PastFacts(
            report,
            detail_us,
            until_us,
            lines_of(intervals, detail_us, until_us, COLUMNS),
            wakes_by_hour(intervals, detail_us),
            failures_of(intervals, detail_us)[:FAILURES],
            {key_of(line.name): line for line in report.satellites},
        )


def key_of(name: str) -> SatelliteKey:
    """ORG/NAME as a key."""
    org, _, own = name.partition("/")
    return SatelliteKey(org, own)
