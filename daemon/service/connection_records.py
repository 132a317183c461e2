"""Puts the records of connections together: the book and all that are told of a closed record.

What is told, and who is told, follows the configuration, also of a reload: see `RecordsChange`.
"""

import dataclasses
import importlib.metadata
import socket
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
from bentpipe.daemon.records.succession import Succession
from bentpipe.daemon.records.writer import RecordWriter, WriterStatistics
from bentpipe.daemon.tasks import Decision, Owner, run_owned

if TYPE_CHECKING:
    from bentpipe.daemon.records.traces import Tracer, TracerStatistics

TRACES_EXTRA = "traces"
"""The extra that brings OpenTelemetry."""
CLOSE_DEADLINE_S = 3.0
"""For the last traces."""


@dataclasses.dataclass(slots=True)
class RecordsChange:
    """What another configuration needs of new: made before anything changes, then taken, or closed by `aclose`."""

    store: RecordStore | None = None
    """To be written to from now on; None: the present one goes on, or none is kept."""
    tracer: "Tracer | None" = None
    """To be told from now on; None: the present one goes on, or nothing is traced."""

    async def aclose(self) -> None:
        """It is not taken."""
        if self.store is not None:
            await self.store.aclose()


class ConnectionRecords:
    """The book, and who is told of each closed record. `start` starts what carries records on."""

    def __init__(self, config: Config, store: RecordStore | None, tracer: "Tracer | None") -> None:
        self._config = config
        self._nursery: trio.Nursery | None = None
        self.measures = Measures(per_satellite=config.metrics.per_satellite, per_org=config.metrics.per_org)
        sinks: dict[str, Sink] = {
            "measures": self.measures.note,
            "log": self._log,
            "store": self._keep,
            "traces": self._trace,
        }
        self.book = Book(sinks, IdMaker(host_name(config)))
        self.writer = None if store is None else RecordWriter(store, host_name(config))
        """None: records are not kept now."""
        self.tracer = tracer
        """None: connections are not traced now."""
        self._writers: Succession[WriterStatistics] = Succession()
        self._tracers: Succession[TracerStatistics] = Succession()
        if self.writer is not None:
            self._writers.add(self.writer)
        if tracer is not None:
            self._tracers.add(tracer)

    # -- sinks ---------------------------------------------------------------------------------------------------------

    def _is_told(self, record: Record) -> bool:
        return self._config.records.probes or record.end is not OUTCOME_ENDS[Outcome.PROBE]

    def _log(self, record: Record) -> None:
        if self._is_told(record):
            write_line(record)

    def _keep(self, record: Record) -> None:
        if self.writer is not None and self._is_told(record):
            self.writer.keep(record)

    def _trace(self, record: Record) -> None:
        if self.tracer is not None and self._is_told(record):
            self.tracer.note(record)

    # -- counters ------------------------------------------------------------------------------------------------------

    def writer_statistics(self) -> WriterStatistics | None:
        """What was kept of connections since the start; None if none ever were."""
        return self._writers.statistics()

    def tracer_statistics(self) -> "TracerStatistics | None":
        """What was sent of connections since the start; None if nothing ever was traced."""
        return self._tracers.statistics()

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self, nursery: trio.Nursery) -> None:
        """Start what carries records on, now and after each change."""
        self._nursery = nursery
        if self.writer is not None:
            nursery.start_soon(run_owned, Owner("record writer"), self.writer.run_writer)

    async def aclose(self) -> None:
        """Send the last traces."""
        if self.tracer is not None:
            await _close(self.tracer)

    # -- another configuration -----------------------------------------------------------------------------------------

    async def prepare(self, config: Config, tracer: "Tracer | None", *, dry_run: bool) -> RecordsChange:
        """Open what another configuration needs. A dry run opens no store, which would make its file. Raises StoreError."""
        change = RecordsChange(tracer=tracer)
        if not dry_run and self.writer is None and (store := open_records(config)) is not None:
            change.store = store
            try:
                await store.check()
            except BaseException:
                await change.aclose()
                raise
        return change

    def follow(self, config: Config, change: RecordsChange) -> None:
        """Tell what the configuration says to whom it says. What was told before is still written and sent."""
        before, self._config = self._config, config
        self.measures.follow(per_satellite=config.metrics.per_satellite, per_org=config.metrics.per_org)
        self._follow_store(config, change.store)
        if config.traces != before.traces:
            self._follow_tracer(change.tracer)

    def _follow_store(self, config: Config, store: RecordStore | None) -> None:
        if store is not None:
            self.writer = RecordWriter(store, host_name(config))
            self._writers.add(self.writer)
            if self._nursery is not None:
                self._nursery.start_soon(run_owned, Owner("record writer"), self.writer.run_writer)
        elif self.writer is not None and not config.records.keep:
            self.writer.end()
            self.writer = None
        elif self.writer is not None:
            self.writer.bound(config.records.keep, config.records.keep_for_s)

    def _follow_tracer(self, tracer: "Tracer | None") -> None:
        old, self.tracer = self.tracer, tracer
        if tracer is not None:
            self._tracers.add(tracer)
        if old is not None and self._nursery is not None:
            self._nursery.start_soon(run_owned, Owner("traces", decision=Decision.GIVE_UP), _close, old)


async def _close(tracer: "Tracer") -> None:
    with trio.move_on_after(CLOSE_DEADLINE_S):
        await trio.to_thread.run_sync(tracer.close, abandon_on_cancel=True)


def host_name(config: Config) -> str:
    """This host's name in ids and records: as in the store, or the machine's."""
    return config.store.host or socket.gethostname()


def make_records(config: Config) -> ConnectionRecords:
    """Put them together. Raises OSError if traces are asked for and OpenTelemetry is not installed."""
    return ConnectionRecords(config, open_records(config), make_tracer(config))


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


def make_tracer(config: Config) -> "Tracer | None":
    """Make what sends traces; None if none are sent. Takes some tenths of a second the first time. Raises OSError."""
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
