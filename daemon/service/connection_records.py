"""Puts the records of connections together: the book and all that are told of a closed record."""

import dataclasses
import importlib.metadata
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from bentpipe.config.model import Config
from bentpipe.daemon.connections.ends import OUTCOME_ENDS
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.records.book import Book, Sink
from bentpipe.daemon.records.contract import RecordStore
from bentpipe.daemon.records.ids import IdMaker
from bentpipe.daemon.records.lines import write_line
from bentpipe.daemon.records.measures import Measures
from bentpipe.daemon.records.record import Record
from bentpipe.daemon.records.sqlite import FILE_NAME, SqliteRecords
from bentpipe.daemon.records.writer import RecordWriter
from bentpipe.daemon.tasks import Owner, run_owned

if TYPE_CHECKING:
    from bentpipe.daemon.records.traces import Tracer

TRACES_EXTRA = "traces"
"""The extra that brings OpenTelemetry."""
CLOSE_DEADLINE_S = 3.0
"""For the last traces."""


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionRecords:
    """The parts. None: records are not kept, or not traced."""

    book: Book
    measures: Measures
    writer: RecordWriter | None
    tracer: "Tracer | None"

    def start(self, nursery: trio.Nursery) -> None:
        """Start what carries records on."""
        if self.writer is not None:
            nursery.start_soon(run_owned, Owner("record writer"), self.writer.run_writer)

    async def aclose(self) -> None:
        """Send the last traces."""
        if self.tracer is not None:
            with trio.move_on_after(CLOSE_DEADLINE_S):
                await trio.to_thread.run_sync(self.tracer.close, abandon_on_cancel=True)


def host_name(config: Config) -> str:
    """This host's name in ids and records: as in the store, or the machine's."""
    return config.store.host or socket.gethostname()


def make_records(config: Config) -> ConnectionRecords:
    """Put them together. Raises OSError if traces are asked for and OpenTelemetry is not installed."""
    measures = Measures(per_satellite=config.metrics.per_satellite, per_org=config.metrics.per_org)
    store = open_records(config)
    writer = None if store is None else RecordWriter(store, host_name(config))
    tracer = _make_tracer(config)
    told: dict[str, Sink] = {"log": write_line}
    if writer is not None:
        told["store"] = writer.keep
    if tracer is not None:
        told["traces"] = tracer.note
    if not config.records.probes:
        told = {name: _but_probes(sink) for name, sink in told.items()}
    book = Book({"measures": measures.note, **told}, IdMaker(host_name(config)))
    return ConnectionRecords(book, measures, writer, tracer)


def _but_probes(sink: Sink) -> Callable[[Record], None]:
    def told(record: Record) -> None:
        if record.end is not OUTCOME_ENDS[Outcome.PROBE]:
            sink(record)

    return told


def open_records(config: Config, *, read_only: bool = False) -> RecordStore | None:
    """Open the store of records, beside the ledger. None: none are kept."""
    section, records = config.store, config.records
    if section.kind == "dynamodb":
        # Imported here, as in stores.py: boto3 is large.
        from bentpipe.daemon.records.dynamodb import DynamoRecords
        from bentpipe.daemon.store.dynamodb_table import Table

        table = Table(section.table or "", region=section.region, endpoint=section.endpoint)
        return DynamoRecords(table, records.keep_for_s) if records.keep else None
    ledger = section.ledger_path()
    if ledger is None or not records.keep:
        return None
    return SqliteRecords(ledger.with_name(FILE_NAME), records.keep, records.keep_for_s, read_only=read_only)


def _make_tracer(config: Config) -> "Tracer | None":
    section = config.traces
    if section.endpoint is None:
        return None
    try:
        # Imported here: OpenTelemetry is an extra.
        from bentpipe.daemon.records.traces import Tracer
    except ModuleNotFoundError as exc:
        raise OSError(
            f"[traces] needs {exc.name}, which is not installed: pip install 'bentpipe[{TRACES_EXTRA}]'"
        ) from exc
    return Tracer(str(section.endpoint), section.ratio, host_name(config), importlib.metadata.version("bentpipe"))
