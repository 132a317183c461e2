"""The data plane's state, and what each record of the control plane does to it. Everything here runs on one Trio thread.

A record for a connection that is gone is ignored, since records cross on their way. A record that no control plane in order
can send ends the link (ProtocolBroken), and nothing else: spliced connections are not touched.
"""

import dataclasses
import logging
from collections.abc import Callable

import trio

from bentpipe.daemon.connections.deadlines import Deadlines
from bentpipe.daemon.connections.outcomes import ConnectionCounters, Outcome
from bentpipe.daemon.dataplane.arrivals import Arrivals
from bentpipe.daemon.dataplane.clients import ClientLine, ClientStream
from bentpipe.daemon.dataplane.halves import Halves
from bentpipe.daemon.dataplane.joining import JoinFailed, join
from bentpipe.daemon.dataplane.openings import Openings
from bentpipe.daemon.dataplane.reports import ControlReports
from bentpipe.daemon.dataplane.splices import JoinedConnection, JoinedConnections, boottime_us
from bentpipe.daemon.dataplane.stream import Order, Stream
from bentpipe.daemon.dataplane.trusts import Trusts
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes.bounds import WORDS_BYTES
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.table import BY_CLASS
from bentpipe.native.engine import Engine
from bentpipe.native.opener import Opener

log = logging.getLogger("bentpipe.dataplane")

CUT = "cut before the splice"


@dataclasses.dataclass(frozen=True, slots=True)
class PlaneActions:
    """What the process does for records that are not about a connection. Each returns at once."""

    limit: Callable[[r.LimitsRecord], None]
    reload: Callable[[], str]
    """Returns what went wrong."""
    drain: Callable[[float | None], None]
    """With the deadline in seconds, if there is one."""


@dataclasses.dataclass(slots=True)
class _Go:
    record: r.GoRecord
    half: Stream
    released: trio.Event
    joined: JoinedConnection
    session: int
    scope: trio.CancelScope


class DataPlane:
    """All connections of this process."""

    def __init__(
        self,
        engine: Engine,
        opener: Opener,
        counters: ConnectionCounters,
        greetings: Deadlines,
        trusts: Trusts,
        actions: PlaneActions,
    ) -> None:
        self.reports = ControlReports()
        self.line = ClientLine(lambda: self.reports.may_offer)
        self.halves = Halves(self.reports, trusts.find)
        self.joined = JoinedConnections(engine, self.reports.send)
        self.arrivals = Arrivals(self.line, self.reports, counters, self._join)
        self.openings = Openings(opener, greetings, counters, self.arrivals.arrived)
        self.note = b""
        """What the control plane has left for its successor."""
        self._trusts = trusts
        self._counters = counters
        self._actions = actions
        self._going: dict[int, _Go] = {}

    @property
    def connections(self) -> int:
        """Accepted connections, clients and joined connections."""
        return len(self.openings) + len(self.line.clients) + len(self.joined)

    # -- the seat ----------------------------------------------------------------------------------------------------

    def unseat(self) -> None:
        """The control plane is gone. GOs that it has sent are carried out; all else waits for the next one."""
        self.reports.unseat()
        self.joined.unseat()
        self.halves.close_all()
        self._trusts.forget_taught()
        self.line.begin_again()

    def synchronise(self) -> None:
        """A control plane has come: tell it of everything that is live, then of the ends, then offer it the clients."""
        count = 0
        for live in self.joined.snapshot():
            self.reports.send(live)
            count += 1
        self.reports.send(r.SyncedRecord(r.LINK_ID, count, self.joined.next_end))
        self.joined.seat()
        self.line.offer_some()

    def receive(self, record: r.Record, tasks: trio.Nursery) -> None:
        """Do what a record of the control plane asks. Raises ProtocolBroken."""
        self.reports.heard_at = trio.current_time()
        match record:
            case r.SayRecord() | r.WindowRecord() | r.ShutRecord() | r.GoRecord():
                self._about_connection(record)
            case r.OpenRecord():
                self._check_half(record.id)
                self.halves.open(record, tasks)
            case r.MetersRecord():
                self.reports.send(self.joined.meters(record.ids))
            case r.KeptRecord():
                if not self.joined.keep(record.seq):
                    raise ProtocolBroken("KEPT for an end that was never sent")
            case r.PingRecord():
                self.reports.send(r.PongRecord(r.LINK_ID, record.number))
            case r.PongRecord():
                pass
            case _:
                self._about_plane(record)

    def _about_plane(self, record: r.Record) -> None:
        words = ""
        match record:
            case r.NoteRecord():
                self.note = record.note
            case r.TrustRecord():
                words = self._trusts.teach(record)
            case r.WordsRecord():
                self.arrivals.words = record.words
            case r.LimitsRecord():
                self._actions.limit(record)
            case r.ReloadRecord():
                words = self._actions.reload()
            case r.DrainRecord():
                self._actions.drain(record.deadline_ms / 1000 if record.deadline_ms else None)
            case _:
                raise ProtocolBroken("a record that has no place here")
        asked = BY_CLASS[type(record)].number
        self.reports.send(r.DoneRecord(r.LINK_ID, asked, words[: WORDS_BYTES // 4]))

    # -- one connection ----------------------------------------------------------------------------------------------

    def _about_connection(self, record: r.SayRecord | r.WindowRecord | r.ShutRecord | r.GoRecord) -> None:
        about = record.id
        if about & r.HALF_BIT:
            half = self.halves.find(about)
            if half is None:
                return
            if isinstance(record, r.ShutRecord):
                half.shut(Order.CLOSE if record.how is r.Shutting.GRACEFUL else Order.RESET)
            elif half.stream is None:
                raise ProtocolBroken("words for a half that is not connected")
            else:
                self._about_stream(half.stream, record)
            return
        if not 0 < about < self.arrivals.next_id:
            raise ProtocolBroken("an id that was never given out")
        client = self.line.clients.get(about)
        if client is not None:
            if not client.told:
                raise ProtocolBroken("a client that was not offered")
            self._about_client(client, record)
            self.line.answered(about)
        elif isinstance(record, r.ShutRecord):
            self._shut_joined(record)
        elif isinstance(record, r.GoRecord):
            self._refuse(record, "the client is gone")

    def _about_client(
        self, client: ClientStream, record: r.SayRecord | r.WindowRecord | r.ShutRecord | r.GoRecord
    ) -> None:
        match record:
            case r.GoRecord():
                self._go(client, record)
            case r.ShutRecord():
                client.give(Order.CLOSE if record.how is r.Shutting.GRACEFUL else Order.RESET)
            case _:
                self._about_stream(client, record)

    @staticmethod
    def _about_stream(stream: Stream, record: r.SayRecord | r.WindowRecord | r.GoRecord) -> None:
        match record:
            case r.SayRecord():
                stream.say(record)
            case r.WindowRecord():
                stream.allow(record)
            case _:
                raise ProtocolBroken("a GO for a half")

    @staticmethod
    def _check_half(about: int) -> None:
        if not about & r.HALF_BIT:
            raise ProtocolBroken("the id of a half lacks its bit")

    # -- GO ----------------------------------------------------------------------------------------------------------

    def _refuse(self, go: r.GoRecord, words: str) -> None:
        self.reports.send(r.FailedRecord(go.id, r.FailedAt.REFUSED, 0, "", words))

    def _go(self, client: ClientStream, go: r.GoRecord) -> None:
        self._check_half(go.half)
        half = self.halves.find(go.half)
        stream = None
        if half is not None and client.order is None and not client.broken:
            stream = self.halves.take(half)
        if half is None or stream is None:
            self._refuse(go, "the client or the half is gone")
            return
        scope = trio.CancelScope()
        joined = JoinedConnection(client.id, client.origin.peer, go.tag, boottime_us(), cancel=scope.cancel)
        self.joined.begin(joined)
        self._going[client.id] = _Go(go, stream, half.released, joined, self.reports.session, scope)
        client.give(Order.JOIN)

    async def _join(self, client: ClientStream) -> None:
        """Carry out a GO, also if the control plane that has sent it is gone."""
        going = self._going.pop(client.id)
        failure = JoinFailed(Outcome.REFUSED, CUT)
        half = going.half
        try:
            with going.scope:
                await going.released.wait()
                try:
                    await join(client, half, going.record)
                    await (
                        trio.lowlevel.checkpoint_if_cancelled()
                    )  # a client that was cut is not spliced in the last step
                    self.joined.splice(going.joined, client.transport, half.transport)
                    self.reports.send(r.WentRecord(client.id))
                    return
                except JoinFailed as exc:
                    failure = exc
                except OSError as exc:
                    failure = JoinFailed(Outcome.BROKEN, f"the engine refused: {exc}")
            self._tell_failed(going, failure)
            # The client must still be able to read what the satellite sent before it ended.
            await client.close_gracefully()
        finally:
            if going.joined.splice_id is None:
                if self.joined.find(client.id) is going.joined:
                    self._tell_failed(going, failure)
                half.transport.close()

    def _tell_failed(self, going: _Go, failure: JoinFailed) -> None:
        fields = {"peer": going.joined.peer, "error": str(failure)}
        log.info("not spliced", extra={"fields": fields})
        if failure.limit is not None:
            self._counters.malformed[failure.limit] += 1
        told = going.session == self.reports.session and self.reports.link is not None
        about = going.joined.id
        if told:
            words = str(failure)[: WORDS_BYTES // 4]
            self.reports.send(r.FailedRecord(about, r.FailedAt.REPLAY, 0, failure.outcome.value, words))
        self.joined.fail(going.joined, told=told)

    def _shut_joined(self, shut: r.ShutRecord) -> None:
        joined = self.joined.find(shut.id)
        if joined is None:
            return
        quiet = shut.how in (r.Shutting.IF_QUIET, r.Shutting.IF_QUIET_RESET)
        if quiet and (joined.splice_id is None or self.joined.moved(joined) > shut.moved):
            self.reports.send(r.BusyRecord(shut.id, self.joined.moved(joined)))
            return
        self.joined.end(joined, reset=shut.how in (r.Shutting.RESET, r.Shutting.IF_QUIET_RESET))
