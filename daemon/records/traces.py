"""Sends a trace of each connection to a collector, by OpenTelemetry's OTLP over HTTP: its phases are spans.

A connection costs the Trio thread one entry in a bounded queue. A thread makes the spans, once the connection is over, and
sends them. If the collector is slow or dead, records are dropped and counted, and nothing else happens. A client's own
`traceparent` is continued, and its decision whether to sample is respected.

This module needs the extra `bentpipe[traces]`. Nothing else imports OpenTelemetry.
"""

import collections
import dataclasses
import logging
import operator
import threading
from typing import Self

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bentpipe.daemon.records.record import Phase, Record

log = logging.getLogger("bentpipe.records")

QUEUE_LIMIT = 5_000
"""Records that wait for the thread: some 10 MiB at most."""
BATCH_LIMIT = 200
"""Records in one request: some 1,000 spans, 300 KiB."""
GATHER_S = 1.0
"""After the first record of a batch."""
SEND_TIMEOUT_S = 10.0
"""For a request, with the repeats that the collector asks for."""
CLOSE_S = 2.0
"""For the last batch at the end of the daemon."""

SPANS = (
    ("greeting", Phase.ACCEPTED, Phase.GREETED),
    ("admission", Phase.GREETED, Phase.ADMITTED),
    ("hold", Phase.HELD, Phase.LEASED),
    ("dial", Phase.LEASED, Phase.DIALLED),
    ("replay", Phase.DIALLED, Phase.SPLICED),
    ("splice", Phase.SPLICED, Phase.ENDED),
)
"""The children of a connection's span, each from one phase to another. A hold that fails ends with the connection."""
EVENTS = (Phase.FIRST_BYTE, Phase.LAST_BYTE)

NS = 1_000_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class TracerStatistics:
    """Connections since the start; `queued` is now."""

    sent: int = 0
    lost: int = 0
    """The queue was full, or the collector did not take them."""
    queued: int = 0

    def __add__(self, other: Self) -> Self:
        """Both together."""
        return type(self)(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))


class _Collected(SpanProcessor):
    """Keeps the spans that have ended, for the thread that makes them."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


class Tracer:
    """`note` is a sink of the book; the thread starts with the first record. `exporter` is given by tests alone."""

    def __init__(
        self, endpoint: str, ratio: float, host: str, version: str, *, exporter: SpanExporter | None = None
    ) -> None:
        self._exporter = exporter or OTLPSpanExporter(endpoint=endpoint, timeout=SEND_TIMEOUT_S)
        self._collected = _Collected()
        resource = Resource.create({"service.name": "bentpipe", "service.version": version, "host.name": host})
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)), resource=resource, shutdown_on_exit=False
        )
        self._provider.add_span_processor(self._collected)
        self._tracer = self._provider.get_tracer("bentpipe", version)
        self._changed = threading.Condition()
        self._queue: collections.deque[Record] = collections.deque()
        self._sent = self._lost = 0
        self._ending = False
        self._failing = False
        self._thread: threading.Thread | None = None

    @property
    def is_over(self) -> bool:
        """Whether it was closed, and its thread has ended."""
        return self._ending and (self._thread is None or not self._thread.is_alive())

    def statistics(self) -> TracerStatistics:
        """What was sent and lost so far."""
        return TracerStatistics(self._sent, self._lost, len(self._queue))

    def note(self, record: Record) -> None:
        """A connection has ended. Never waits."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bp-traces", daemon=True)
                self._thread.start()
            if len(self._queue) >= QUEUE_LIMIT:
                self._lost += 1
                return
            self._queue.append(record)
            if len(self._queue) == 1:
                self._changed.notify()

    def close(self) -> None:
        """Send what waits, for CLOSE_S at most, and end. Blocks."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while batch := self._take():
            try:
                sent = self._send(batch)
            except Exception:
                log.exception("traces could not be made")
                sent = False
            if sent:
                self._sent += len(batch)
            else:
                self._lost += len(batch)
            if sent is self._failing:
                self._failing = not sent
                log.warning("traces are taken again" if sent else "the collector does not take traces")
        self._exporter.shutdown()

    def _take(self) -> list[Record]:
        """Wait for records; an empty list is the end."""
        with self._changed:
            while not self._queue and not self._ending:
                self._changed.wait()
            if not self._ending:
                self._changed.wait_for(lambda: self._ending, GATHER_S)
            return [self._queue.popleft() for _ in range(min(BATCH_LIMIT, len(self._queue)))]

    def _send(self, batch: list[Record]) -> bool:
        self._collected.spans = []
        for record in batch:
            self._make_spans(record)
        spans = self._collected.spans
        return not spans or self._exporter.export(spans) is SpanExportResult.SUCCESS

    def _make_spans(self, record: Record) -> None:
        carrier = {"traceparent": record.traceparent, "tracestate": record.tracestate}
        parent = TraceContextTextMapPropagator().extract({name: value for name, value in carrier.items() if value})
        accepted = record.marks[Phase.ACCEPTED]

        def at(phase: Phase) -> int:
            return int((record.wall_s + record.marks[phase] - accepted) * NS)

        span = self._tracer.start_span(
            "connection",
            parent,
            trace.SpanKind.SERVER,
            {
                "bentpipe.connection_id": record.id,
                "bentpipe.satellite": str(record.satellite or ""),
                "bentpipe.principal": record.principal,
                "client.address": record.peer,
                "bentpipe.end": record.end.code,
                "bentpipe.up_bytes": record.up_bytes,
                "bentpipe.down_bytes": record.down_bytes,
            },
            start_time=at(Phase.ACCEPTED),
        )
        if span.is_recording():
            inside = trace.set_span_in_context(span, parent)
            for name, first, then in SPANS:
                until = then if record.has_reached(then) else Phase.ENDED
                if record.has_reached(first) and (record.has_reached(then) or first is Phase.HELD):
                    attributes = {"bentpipe.woken_by": record.woken_by or ""} if name == "hold" else None
                    child = self._tracer.start_span(name, inside, attributes=attributes, start_time=at(first))
                    child.end(at(until))
            for event in EVENTS:
                if record.has_reached(event):
                    span.add_event(event.name.lower(), timestamp=at(event))
            if record.end.level >= logging.WARNING or record.status:
                span.set_status(trace.StatusCode.ERROR, record.error or record.end.words)
        span.end(at(Phase.ENDED))
