"""Metrics in Prometheus' text format, or in OpenMetrics, which has exemplars: made a piece at a time.

A scrape of thousands of series takes tens of milliseconds. So the text is made family by family, large ones in pieces, and
the Trio thread has other turns in between.
"""

from collections.abc import Iterator, Mapping

import trio
from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as TEXT_TYPE
from prometheus_client.exposition import generate_latest as write_text
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS_TYPE
from prometheus_client.openmetrics.exposition import generate_latest as write_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as ShownExemplar

from bentpipe.daemon.records.histograms import Exemplar, HistogramView
from bentpipe.daemon.service.metric import PREFIX, Labels, Metric, MetricKind, Samples, Snapshot
from bentpipe.daemon.service.metric_table import METRICS
from bentpipe.daemon.service.parts import Daemon
from bentpipe.daemon.tasks import Owner, contained

PIECE_SAMPLES = 100
"""Samples that are written in one turn, in some 0.5 ms."""
OPENMETRICS = "application/openmetrics-text"
OPENMETRICS_END = b"# EOF\n"
EXEMPLAR_LABEL = "connection_id"


class _Some(Collector):
    """A part of what is told."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families


class Exposition:
    """The daemon's metrics and those of its process, as text. Only the Trio thread may use it."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._process = ProcessCollector(registry=None)

    async def make(self, accept: str) -> tuple[bytes, str]:
        """Make the text, in OpenMetrics if `accept` (of the request) names it, and its content type."""
        is_open = OPENMETRICS in accept
        pieces: list[bytes] = []
        for family in self._families():
            for at in range(0, max(1, len(family.samples)), PIECE_SAMPLES):
                pieces.append(_piece(family, at, is_open=is_open))
                await trio.lowlevel.checkpoint()
        if is_open:
            return b"".join((*pieces, OPENMETRICS_END)), OPENMETRICS_TYPE
        return b"".join(pieces), TEXT_TYPE

    def _families(self) -> Iterator[Family]:
        """Read every metric now. One that cannot be read is left out, and noted as a failure."""
        look = Snapshot(self._daemon)
        for metric in METRICS:
            family: Family | None = None
            with contained(Owner("metrics collector", metric.name)):
                family = family_of(metric, look)
            if family is not None:
                yield family
        yield from self._process.collect()


def _piece(family: Family, at: int, *, is_open: bool) -> bytes:
    """Some samples of a family; before the first of them the lines that say what it is."""
    part = Family(family.name, family.documentation, family.type, family.unit)
    part.samples = family.samples[at : at + PIECE_SAMPLES]
    text = (write_openmetrics if is_open else write_text)(_Some([part])).removesuffix(OPENMETRICS_END)
    while at and text.startswith(b"# "):
        text = text.partition(b"\n")[2]
    return text


def family_of(metric: Metric, look: Snapshot) -> Family:
    """The metric as Prometheus' client writes it."""
    if metric.histograms is not None:
        return _histogram_family(metric, metric.histograms(look))
    return _plain_family(metric, metric.read(look))


def _plain_family(metric: Metric, samples: Samples) -> Family:
    kind = CounterMetricFamily if metric.kind is MetricKind.COUNTER else GaugeMetricFamily
    family = kind(PREFIX + metric.name, metric.words, labels=metric.labels)
    for values, number in samples.items():
        family.add_metric(values, number)
    return family


def _histogram_family(metric: Metric, views: Mapping[Labels, HistogramView]) -> Family:
    family = HistogramMetricFamily(PREFIX + metric.name, metric.words, labels=metric.labels)
    for values, view in views.items():
        bounds = [*(f"{bound:g}" for bound in view.bounds), "+Inf"]
        buckets: list[tuple[str, float] | tuple[str, float, ShownExemplar]] = [
            (bound, float(count)) if exemplar is None else (bound, float(count), _shown(exemplar))
            for bound, count, exemplar in zip(bounds, view.cumulated, view.exemplars, strict=True)
        ]
        family.add_metric(values, buckets, view.total)
    return family


def _shown(exemplar: Exemplar) -> ShownExemplar:
    return ShownExemplar({EXEMPLAR_LABEL: exemplar.connection_id}, exemplar.value, exemplar.at)
