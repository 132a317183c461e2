"""The rows of the metrics' table that tell of ended connections: histograms, sums by name, and what was kept of records."""

from collections.abc import Callable, Mapping

from bentpipe.daemon.records.measures import Measures, Sums, SumsByName
from bentpipe.daemon.records.writer import WriterStatistics
from bentpipe.daemon.service.metric import (
    Metric,
    MetricKind,
    Samples,
    Snapshot,
    by_label,
    gauge,
    histogram,
    histogram_by_label,
)


def _by_name(noun: str, named: Callable[[Measures], SumsByName | None]) -> tuple[Metric, ...]:
    """The sums of each satellite, or of each org; nothing if they are not asked for."""

    def metric(name: str, words: str, read: Callable[[Sums], float]) -> Metric:
        def values(look: Snapshot) -> Mapping[str, float]:
            found = named(look.measures)
            return {} if found is None else {each: read(sums) for each, sums in found.of.items()}

        told = f"{words} (`[metrics] per_{noun}`)."
        return by_label(MetricKind.COUNTER, f"{noun}_{name}", noun, told, None, values)

    return (
        metric("connections", f"Ended connections of admitted clients, by {noun}", lambda sums: sums.connections),
        metric("refused", f"Those that were refused, by {noun}", lambda sums: sums.refused),
        metric("held", f"Clients that waited, by {noun}", lambda sums: sums.held),
        metric("held_seconds", f"How long they waited, all added up, by {noun}", lambda sums: sums.held_s),
        metric("up_bytes", f"Bytes from clients whose connection has ended, by {noun}", lambda sums: sums.up_bytes),
        metric("down_bytes", f"Bytes to clients whose connection has ended, by {noun}", lambda sums: sums.down_bytes),
    )


def _kept(name: str, words: str, line: str, read: Callable[[WriterStatistics], int], kind: MetricKind) -> Metric:
    """A metric of the store of records; it has no value if none are kept."""

    def samples(look: Snapshot) -> Samples:
        return {} if look.writer is None else {(): read(look.writer)}

    return Metric(f"records_{name}", kind, words, samples, f"records.{line}")


def _traces(look: Snapshot) -> Mapping[str, float]:
    found = look.daemon.records.connections.tracer_statistics()
    return {} if found is None else {"sent": found.sent, "lost": found.lost}


RECORDS = (
    histogram(
        "greeting",
        "From accept to the first complete request, of connections that have ended.",
        "greetings",
        lambda look: look.measures.greeting.view(),
    ),
    histogram(
        "hold",
        "How long clients waited for their satellite, until it was awake, they were refused or they left.",
        "holds",
        lambda look: look.measures.hold.view(),
    ),
    histogram(
        "dial",
        "From the lease to a connection with the satellite, its TLS handshake included.",
        "dials",
        lambda look: look.measures.dial.view(),
    ),
    histogram(
        "connection",
        "How long connections have lasted, from accept to their end.",
        "lives",
        lambda look: look.measures.life.view(),
    ),
    histogram_by_label(
        "wake",
        "phase",
        "Wakes that succeeded, by phase: until the start was accepted, the machine ran, its port answered.",
        "wake_phases.{}",
        lambda look: look.measures.wake.views(),
    ),
    histogram_by_label(
        "boot",
        "phase",
        "Boots of machines with a responder, by phase: the uptime at its end. Counted when the satellite sleeps again.",
        "boot_phases.{}",
        lambda look: look.measures.boot.views(),
    ),
    histogram_by_label(
        "api_call",
        "method",
        "Calls of the control API, by method.",
        "api_calls.{}",
        lambda look: look.daemon.counters.call_times.views(),
    ),
    *_by_name("satellite", lambda measures: measures.satellites),
    *_by_name("org", lambda measures: measures.orgs),
    gauge(
        "records_open",
        "Connections whose end is not known yet.",
        "records.open",
        lambda look: look.daemon.edge.book.open_count,
    ),
    _kept("kept", "Records of connections written to the store.", "kept", lambda kept: kept.kept, MetricKind.COUNTER),
    _kept(
        "lost",
        "Records lost because the store could not be written for long.",
        "lost",
        lambda kept: kept.lost,
        MetricKind.COUNTER,
    ),
    _kept(
        "left_out",
        "Records of strangers that were not kept, because there were too many of one kind.",
        "left_out",
        lambda kept: kept.left_out,
        MetricKind.COUNTER,
    ),
    _kept(
        "failures",
        "Attempts to write records that failed.",
        "failures",
        lambda kept: kept.failures,
        MetricKind.COUNTER,
    ),
    _kept("queue", "Records that wait to be written.", "queued", lambda kept: kept.queued, MetricKind.GAUGE),
    by_label(
        MetricKind.COUNTER,
        "traces",
        "result",
        "Connections whose trace was sent to the collector, or lost because it did not take it in time.",
        "traces.{}",
        _traces,
    ),
)
