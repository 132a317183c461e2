"""A metric: its name, its labels, what it means, how to read it, and its place in the log's statistics line.

It keeps no counter. A label must never have a value that a stranger could send: its values are the daemon's own states,
limits and codes, or the cloud's error codes.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping

from bentpipe.daemon.fleet.fleet import FleetStatistics, ReadStatistics
from bentpipe.daemon.fleet.reader import ReadingCounters
from bentpipe.daemon.ledger.recorder import RecorderStatistics
from bentpipe.daemon.records.histograms import HistogramView
from bentpipe.daemon.records.measures import Measures
from bentpipe.daemon.records.writer import WriterStatistics
from bentpipe.daemon.service.log_handler import LogStatistics, log_statistics
from bentpipe.daemon.service.parts import Daemon
from bentpipe.daemon.service.turns import TurnStatistics
from bentpipe.native.engine import EngineStatistics
from bentpipe.native.turns import ThreadUse

PREFIX = "bentpipe_"
THREAD = "thread"
"""The label of the counters of the threads in C. The engine's threads are numbers from 0; those of a data plane that is a
process are also `opener-0` and on, and `joiner-0`."""

Labels = tuple[str, ...]
Samples = Mapping[Labels, float]
"""The metric's values by the values of its labels; a metric without labels has one value, by ()."""


class MetricKind(enum.Enum):
    """How a metric behaves over time."""

    COUNTER = "counter"
    """It only grows, from 0 at the daemon's start."""
    GAUGE = "gauge"
    """It goes up and down: it is the present value."""
    HISTOGRAM = "histogram"
    """Seconds that something took, counted by upper bounds; it only grows."""


class Snapshot:
    """The daemon at one moment: each part's statistics are read once, when the first metric needs them."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    @functools.cached_property
    def engine(self) -> EngineStatistics:
        """The engine's threads together."""
        return self.daemon.engines.statistics()

    @functools.cached_property
    def threads(self) -> Mapping[str, ThreadUse]:
        """Each thread in C by its name."""
        return self.daemon.engines.threads()

    @functools.cached_property
    def fleet(self) -> FleetStatistics:
        """All satellites together."""
        return self.daemon.fleet.statistics()

    @functools.cached_property
    def read(self) -> ReadStatistics:
        """What responders tell now."""
        return self.daemon.fleet.read_statistics()

    @functools.cached_property
    def reading(self) -> ReadingCounters:
        """What came of reading responders; all zero if none is read."""
        return self.daemon.fleet.reading

    @functools.cached_property
    def ledger(self) -> RecorderStatistics | None:
        """What was written to the ledger; None if none is kept."""
        return self.daemon.recorder.statistics() if self.daemon.recorder is not None else None

    @property
    def measures(self) -> Measures:
        """What ended connections, wakes and calls have told."""
        return self.daemon.records.connections.measures

    @functools.cached_property
    def writer(self) -> WriterStatistics | None:
        """What was kept of connections; None if no records ever were."""
        return self.daemon.records.connections.writer_statistics()

    @functools.cached_property
    def turns(self) -> TurnStatistics:
        """The Trio thread's turns."""
        return self.daemon.turns.statistics()

    @functools.cached_property
    def log(self) -> LogStatistics:
        """The log's lines."""
        return log_statistics()


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table."""

    name: str
    """Without PREFIX, and without the `_total` that counters end with."""
    kind: MetricKind
    words: str
    """What it means, as a sentence."""
    read: Callable[[Snapshot], Samples]
    line: str | None
    """Its place in the log's statistics line: a field, or a path of fields with dots. `{}` stands for the labels' values,
    joined by a space. None: the metric is not in the line."""
    labels: Labels = ()
    line_of: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The places of those values of the label that stand elsewhere."""
    histograms: Callable[[Snapshot], Mapping[Labels, HistogramView]] | None = None
    """Of a HISTOGRAM: its whole. `read` then gives how many observations there were, for the statistics line."""

    @property
    def full_name(self) -> str:
        """The name in Prometheus."""
        return PREFIX + self.name + ("_total" if self.kind is MetricKind.COUNTER else "")

    def place(self, values: Labels) -> tuple[str, ...] | None:
        """Find the place of a sample in the statistics line, by its labels' values: a path of fields."""
        joined = " ".join(values)
        line = self.line_of.get(joined, self.line)
        return None if line is None else tuple(field.format(joined) for field in line.split("."))

    def is_sparse(self, values: Labels) -> bool:
        """Whether the statistics line leaves the sample out while it is 0."""
        return bool(self.labels) and self.labels != (THREAD,) and " ".join(values) not in self.line_of


def counter(name: str, words: str, line: str, read: Callable[[Snapshot], float]) -> Metric:
    """A counter without labels."""
    return Metric(name, MetricKind.COUNTER, words, lambda look: {(): read(look)}, line)


def gauge(name: str, words: str, line: str, read: Callable[[Snapshot], float]) -> Metric:
    """A gauge without labels."""
    return Metric(name, MetricKind.GAUGE, words, lambda look: {(): read(look)}, line)


def histogram(name: str, words: str, line: str, read: Callable[[Snapshot], HistogramView]) -> Metric:
    """A histogram without labels."""
    return _histogram(name, words, line, (), lambda look: {(): read(look)})


def histogram_by_label(
    name: str, label: str, words: str, line: str, read: Callable[[Snapshot], Mapping[str, HistogramView]]
) -> Metric:
    """A histogram for each value of one label."""
    return _histogram(name, words, line, (label,), lambda look: {(value,): view for value, view in read(look).items()})


def _histogram(
    name: str,
    words: str,
    line: str,
    labels: Labels,
    views: Callable[[Snapshot], Mapping[Labels, HistogramView]],
) -> Metric:
    return Metric(
        f"{name}_seconds",
        MetricKind.HISTOGRAM,
        words,
        lambda look: {values: view.count for values, view in views(look).items()},
        line,
        labels,
        histograms=views,
    )


def of_ledger(kind: MetricKind, name: str, words: str, line: str, read: Callable[[RecorderStatistics], int]) -> Metric:
    """A metric of the ledger; it has no value if no ledger is kept."""

    def samples(look: Snapshot) -> Samples:
        return {} if look.ledger is None else {(): read(look.ledger)}

    return Metric(f"ledger_{name}", kind, words, samples, f"ledger.{line}")


def by_label(
    kind: MetricKind,
    name: str,
    label: str,
    words: str,
    line: str | None,
    read: Callable[[Snapshot], Mapping[str, float]],
    line_of: Mapping[str, str] | None = None,
) -> Metric:
    """A metric with one label."""

    def samples(look: Snapshot) -> Samples:
        return {(value,): number for value, number in read(look).items()}

    return Metric(name, kind, words, samples, line, (label,), line_of or {})


def by_thread(kind: MetricKind, name: str, words: str, line: str, read: Callable[[ThreadUse], float]) -> Metric:
    """A metric with a value for each of the threads in C."""

    def values(look: Snapshot) -> Mapping[str, float]:
        return {thread: read(use) for thread, use in look.threads.items()}

    return by_label(kind, name, THREAD, words, line, values)
