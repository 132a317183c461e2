"""The data plane's state, and what each record of the control plane does to it. Everything here runs on one Trio thread.

A record for a connection that is gone is ignored, since records cross on their way. A record that no control plane in order
can send ends the link (ProtocolBroken), and nothing else: spliced connections are not touched.
"""

import dataclasses
import functools
import logging
from collections.abc import Awaitable, Callable

import trio

from bentpipe.daemon.connections.deadlines import Deadlines
from bentpipe.daemon.connections.greeters import Greeters
from bentpipe.daemon.connections.outcomes import ConnectionCounters, Outcome
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.dataplane.admission_tables import AdmissionTables
from bentpipe.daemon.dataplane.admitting import Admissions
from bentpipe.daemon.dataplane.arrivals import Arrivals
from bentpipe.daemon.dataplane.clients import ClientLine, ClientStream
from bentpipe.daemon.dataplane.halves import Halves
from bentpipe.daemon.dataplane.joining import CUT, JoinFailed, failure_of_join, join_of
from bentpipe.daemon.dataplane.lanes import Lanes
from bentpipe.daemon.dataplane.openings import Openings
from bentpipe.daemon.dataplane.reports import ControlReports
from bentpipe.daemon.dataplane.splices import JoinedConnection, JoinedConnections
from bentpipe.daemon.dataplane.stream import Order, Stream
from bentpipe.daemon.dataplane.streams import Streams
from bentpipe.daemon.dataplane.trusts import Trusts
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes import snapshots as s
from bentpipe.daemon.planes.bounds import WORDS_BYTES
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.table import BY_CLASS
from bentpipe.daemon.tasks import Decision, Owner, run_owned
from bentpipe.native.engine import Engine
from bentpipe.native.joiner import Joiner, News, NewsFlag
from bentpipe.native.opener import Opener
from bentpipe.native.turns import ThreadUse

log = logging.getLogger("bentpipe.dataplane")


@dataclasses.dataclass(frozen=True, slots=True)
class PlaneActions:
    """What the process does for records that are not about a connection."""

    limit: Callable[[r.LimitsRecord], None]
    credential: Callable[[r.CredentialRecord], str]
    """Returns what is wrong with it."""
    reload: Callable[[], Awaitable[str]]
    """Returns what went wrong, when everything has been read."""
    drain: Callable[[float | None], None]
    """With the deadline in seconds, if there is one."""
    count: Callable[[], None]
    """Send COUNTERS."""


@dataclasses.dataclass(slots=True)
class _Go:
    """One that is carried out."""

    half: Stream
    joined: JoinedConnection
    session: int
    is_cut: bool = False


class DataPlane:
    """All connections of this process."""

    def __init__(
        self,
        engine: Engine,
        opener: Opener,
        joiner: Joiner,
        counters: ConnectionCounters,
        greetings: Deadlines,
        quotas: Quotas,
        trusts: Trusts,
        actions: PlaneActions,
        greeters: Greeters,
    ) -> None:
        self.reports = ControlReports()
        self.line = ClientLine(lambda: self.reports.may_offer)
        self.streams = Streams(joiner, self.reports)
        self.halves = Halves(self.streams, trusts.find)
        self.joined = JoinedConnections(engine, self.reports.send)
        self.tables = AdmissionTables(trusts.find, lambda: self.lanes.hear_of_committed())
        self.admissions = Admissions(self.tables, self.line, self.streams, trusts.find, greeters, self._join_own)
        self.arrivals = Arrivals(self.line, self.streams, counters, quotas, self._is_over, self.admissions)
        self.openings = Openings(
            *(opener, greetings, counters, self.arrivals.arrived, joiner.gather, self.admissions.lane_of)
        )
        self.lanes = Lanes(
            *(self.tables, self.admissions, self.openings, self.arrivals, self.joined, self.streams),
            *(self._tell_failed, lambda: self.reports.session),
        )
        self.note = b""
        """What the control plane has left for its successor."""
        self._in_c = (joiner, engine, opener)
        self._trusts = trusts
        self._counters = counters
        self._actions = actions
        self._going: dict[int, _Go] = {}

    @property
    def connections(self) -> int:
        """Accepted connections, clients and joined connections."""
        return len(self.openings) + len(self.line.clients) + len(self.joined) + self.arrivals.closing

    def threads(self) -> dict[str, ThreadUse]:
        """All threads in C by name: the joiner's, the engine's, the opener's."""
        return {name: use for part in self._in_c for name, use in part.threads().items()}

    # -- the seat ----------------------------------------------------------------------------------------------------

    def unseat(self) -> None:
        """The control plane is gone. GOs that it has sent are carried out; all else waits for the next one."""
        self.reports.unseat()
        self.joined.unseat()
        self.halves.close_all()
        self.line.begin_again()

    def make_ready_for_seat(self) -> None:
        """Before a control plane sits: what an earlier one has told for admitting clients here ends.

        The next one may know nothing of that. Clients that were committed by then are live for it, and not ADMITTED.
        """
        self.tables.reset()
        self._trusts.forget_taught()

    def synchronise(self) -> None:
        """A control plane has come: tell it what is counted, all that is live, then the ends; then offer it the clients."""
        self._actions.count()
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
                if not record.ids:
                    self._actions.count()
                self.reports.send(self.joined.meters(record.ids))
            case r.KeptRecord():
                if not self.joined.keep(record.seq):
                    raise ProtocolBroken("KEPT for an end that was never sent")
            case r.PingRecord():
                self.reports.send(r.PongRecord(r.LINK_ID, record.number))
            case r.PongRecord():
                pass
            case s.GrantRecord():
                self.tables.add_token(record)
            case s.GateRecord():
                self.tables.open_gate(record)
            case s.RenewRecord():
                for gate in record.gates:
                    self.tables.renew(gate, record.until_us)
            case s.GrantsRecord() | s.ShutGateRecord() | s.CreditRecord():
                self._about_admission(record)
            case r.ReloadRecord():
                tasks.start_soon(run_owned, Owner("reload", "", Decision.GIVE_UP), self._reload)
            case _:
                self._about_plane(record)

    def _about_admission(self, record: s.GrantsRecord | s.ShutGateRecord | s.CreditRecord) -> None:
        match record:
            case s.GrantsRecord():
                self.tables.take_table(record)
                self.reports.send(s.GrantedRecord(r.LINK_ID, record.generation))
            case s.ShutGateRecord():
                self.admissions.shut(record.id)
                self.reports.send(s.GatedRecord(record.id))
            case s.CreditRecord():
                used = self.tables.credit(record)
                self.reports.send(s.CreditedRecord(r.LINK_ID, record.allowed, used, record.principal))

    async def _reload(self) -> None:
        words = "the reload failed, see the data plane's log"
        try:
            words = await self._actions.reload()
        finally:
            self.tables.look_at_trusts()
            self._done(r.ReloadRecord, words)

    def _done(self, asked: type[r.Record], words: str) -> None:
        self.reports.send(r.DoneRecord(r.LINK_ID, BY_CLASS[asked].number, words[: WORDS_BYTES // 4]))

    def _about_plane(self, record: r.Record) -> None:
        words = ""
        match record:
            case r.NoteRecord():
                self.note = record.note
            case r.TrustRecord():
                words = self._trusts.teach(record)
                self.tables.look_at_trusts()
            case r.WordsRecord():
                self.arrivals.words = record.words
            case r.LimitsRecord():
                self._actions.limit(record)
            case r.CredentialRecord():
                words = self._actions.credential(record)
            case r.DrainRecord():
                self._actions.drain(record.deadline_ms / 1000 if record.deadline_ms else None)
            case _:
                raise ProtocolBroken("a record that has no place here")
        self._done(type(record), words)

    # -- one connection ----------------------------------------------------------------------------------------------

    def _about_connection(self, record: r.SayRecord | r.WindowRecord | r.ShutRecord | r.GoRecord) -> None:
        about = record.id
        if about & r.HALF_BIT:
            half = self.halves.find(about)
            if half is None:
                return
            if isinstance(record, r.ShutRecord):
                half.shut(Order.CLOSE if record.how is r.Shutting.GRACEFUL else Order.RESET)
            elif half.stream is None or not half.connected:
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
        half = self.halves.find_connected(go.half)
        if half is None or client.order is not None or client.broken:
            self._refuse(go, "the client or the half is gone")
            return
        try:
            self.streams.joiner.join(client.native, half.native, join_of(client, half, go))
        except OSError as exc:
            self._refuse(go, str(exc))
            return
        self._begin(client, half, go)
        self.halves.give_away(half)

    def _join_own(
        self,
        client: ClientStream,
        half: Stream,
        go: r.GoRecord,
        record: s.AdmittedRecord,
        joins: Callable[[], Callable[[], None]],
    ) -> bool:
        """Join a client that was admitted here. Returns False if nothing was done."""
        try:
            self.streams.joiner.join(client.native, half.native, join_of(client, half, go))
        except OSError:
            return False
        joined = self._begin(client, half, go)
        half.give(Order.JOIN)
        give_back = joins()
        if self.reports.link is None:
            joined.over = give_back  # a control plane that sits does it: it knows of the client
        # Before anything else is sent: a control plane that reads a later answer has read of this client.
        self.reports.send(dataclasses.replace(record, start_us=joined.start_us))
        return True

    def _begin(self, client: ClientStream, half: Stream, go: r.GoRecord) -> JoinedConnection:
        joined = JoinedConnection(client.id, client.origin.peer, go.tag, s.boot_us())
        going = self._going[client.id] = _Go(half, joined, self.reports.session)
        joined.cancel = functools.partial(self._cut, client, going)
        self.joined.begin(joined)
        client.give(Order.JOIN)
        self.line.leave(client)
        return joined

    def _cut(self, client: ClientStream, going: _Go) -> None:
        """End a GO that is not spliced yet. If the joiner is done already, the client is cut before the splice."""
        going.is_cut = True
        self.streams.joiner.release(client.native)

    def _is_over(self, client: ClientStream, news: News) -> None:
        """The joiner is done with a GO, also if the control plane that has sent it is gone."""
        going = self._going.pop(client.id)
        failure = JoinFailed(Outcome.REFUSED, CUT)
        if not news.flags & NewsFlag.JOINED:
            failure = failure_of_join(news)
        elif not going.is_cut:
            try:
                self._splice(client, going)
                return
            except OSError as exc:
                failure = JoinFailed(Outcome.BROKEN, f"the engine refused: {exc}")
        self._tell_failed(going.joined, going.session, failure)
        going.half.take_back().close()
        # The client must still be able to read what the satellite sent before it ended.
        self.arrivals.close(client, news.unsent, None)

    def _splice(self, client: ClientStream, going: _Go) -> None:
        """Raises OSError."""
        self.joined.splice(going.joined, client.take_leg(), going.half.take_leg())
        going.joined.before = client.heard_bytes, client.sent_bytes
        client.detached()
        going.half.detached()
        self.reports.send(r.WentRecord(client.id))
        client.arrival.finish(None, client.heard_bytes, client.sent_bytes)

    def _tell_failed(self, joined: JoinedConnection, session: int, failure: JoinFailed) -> None:
        fields = {"peer": joined.peer, "error": str(failure)}
        log.info("not spliced", extra={"fields": fields})
        if failure.limit is not None:
            self._counters.malformed[failure.limit] += 1
        told = session == self.reports.session and self.reports.link is not None
        if told:
            words = str(failure)[: WORDS_BYTES // 4]
            self.reports.send(r.FailedRecord(joined.id, r.FailedAt.REPLAY, 0, failure.outcome.value, words))
        self.joined.fail(joined, told=told)

    def _shut_joined(self, shut: r.ShutRecord) -> None:
        joined = self.joined.find(shut.id)
        if joined is None:
            return
        quiet = shut.how in (r.Shutting.IF_QUIET, r.Shutting.IF_QUIET_RESET)
        if quiet and (joined.splice_id is None or self.joined.moved(joined) > shut.moved):
            self.reports.send(r.BusyRecord(shut.id, self.joined.moved(joined)))
            return
        self.joined.end(joined, reset=shut.how in (r.Shutting.RESET, r.Shutting.IF_QUIET_RESET))
