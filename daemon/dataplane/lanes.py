"""Clients that threads in C bring to their satellites (native/src/lane.c): what is heard of them here.

A client is heard of once it is committed: from then on it is its satellite's, and ADMITTED tells the control plane. Mostly
it is joined by then, so that one step here does everything. A client that is not admitted comes up, with all that it has
said.
"""

import errno
import logging
import time
from collections.abc import Callable
from typing import Protocol

import trio

from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.dataplane.admission_tables import UNADMITTED, AdmissionTables, Unadmitted
from bentpipe.daemon.dataplane.admitting import Admissions, log_no_sock_diag, tag_of
from bentpipe.daemon.dataplane.arrivals import Arrivals, lane_origin
from bentpipe.daemon.dataplane.joining import CUT, JoinFailed, failure_of_join
from bentpipe.daemon.dataplane.openings import Opening, Openings
from bentpipe.daemon.dataplane.splices import JoinedConnection, JoinedConnections
from bentpipe.daemon.dataplane.stream import RELEASED, Order
from bentpipe.daemon.dataplane.streams import Streams
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.records import WentRecord
from bentpipe.daemon.planes.snapshots import AdmittedRecord, boot_us
from bentpipe.daemon.tasks import Owner, contained
from bentpipe.native.admission import Entering
from bentpipe.native.joiner import News, NewsFlag, StreamFailure, StreamId
from bentpipe.native.lane import Lane
from bentpipe.native.opener import OpeningId
from bentpipe.proto.trace_context import trace_context

log = logging.getLogger("bentpipe.dataplane")

JOINED, COMMITTED = int(NewsFlag.JOINED), int(NewsFlag.COMMITTED)


class TellFailed(Protocol):
    """Tells that a client could not be joined."""

    def __call__(self, joined: JoinedConnection, session: int, failure: JoinFailed) -> None: ...  # noqa: D102


class LaneClient:
    """A client that is committed, until it is spliced or has failed."""

    def __init__(
        self, lanes: "Lanes", native: StreamId, opening: Opening, lane: Lane, joined: JoinedConnection, session: int
    ) -> None:
        self.native = native
        self._lanes = lanes
        self._opening = opening
        self._lane = lane
        self._joined = joined
        self._session = session
        self._is_cut = False

    def cut(self) -> None:
        """End it before the splice."""
        self._is_cut = True
        self._lanes.streams.joiner.release(self.native)

    def cancel(self) -> None:
        """Its place is evicted: it is a client of its satellite already."""

    def take(self, news: News) -> bool:
        """See HasNews. The news of its bytes are its satellite's."""
        if news.flags & RELEASED:
            failure = JoinFailed(Outcome.REFUSED, CUT)
            if not news.flags & JOINED:
                failure = failure_of_join(news)
            elif not self._is_cut:
                try:
                    self._splice()
                    return True
                except OSError as exc:
                    failure = JoinFailed(Outcome.BROKEN, f"the engine refused: {exc}")
            self._fail(news, failure)
        return True

    def _splice(self) -> None:
        """Raises OSError, and nothing is done."""
        lanes, joiner = self._lanes, self._lanes.streams.joiner
        moved = joiner.read_bytes(self.native), joiner.sent_bytes(self.native)
        lanes.joined.splice_lane(self._joined, joiner, self.native)
        self._joined.before = moved
        lanes.streams.forget(self)
        lanes.streams.reports.send(WentRecord(self._joined.id))
        self._opening.arrival.finish(None, *moved)

    def _fail(self, news: News, failure: JoinFailed) -> None:
        """The client must still be able to read what the satellite sent before it ended."""
        lanes = self._lanes
        lanes.tell_failed(self._joined, self._session, failure)
        client = lanes.arrivals.client_of(self._joined.id, self._opening, self._lane, self.native)
        client.order = Order.JOIN
        lanes.arrivals.close(client, news.unsent, None)

    def pass_on(self) -> bool:
        """See HasNews."""
        return True

    def abandon(self, news: News) -> None:
        """What was done with these news has failed."""
        self._lanes.streams.joiner.release(self.native)
        if news.flags & RELEASED:
            self._lanes.streams.free(self)
            self.drop()

    def drop(self) -> None:
        """Its sockets are closed by the joiner."""
        self._opening.arrival.drop()


class LostClient:
    """A client of which nothing more is wanted: what was to be done with it first has failed."""

    def __init__(self, streams: Streams, native: StreamId, opening: Opening) -> None:
        self.native = native
        self._streams = streams
        self._opening = opening
        streams.add(self)

    def end(self, flags: int) -> None:
        """Close it once the joiner has let go of it. `flags` of its news so far."""
        if flags & RELEASED:
            self._streams.free(self)
            self.drop()
        else:
            self._streams.joiner.release(self.native)

    def take(self, news: News) -> bool:
        """See HasNews."""
        if news.flags & RELEASED:
            self.end(news.flags)
        return True

    def pass_on(self) -> bool:
        """See HasNews."""
        return True

    def abandon(self, news: News) -> None:
        """See HasNews."""
        self.end(news.flags)

    def drop(self) -> None:
        """Its sockets are closed, unless Python has the client's."""
        self._opening.sock.close()
        self._opening.arrival.drop()


class Lanes:
    """All of them."""

    def __init__(
        self,
        tables: AdmissionTables,
        admissions: Admissions,
        openings: Openings,
        arrivals: Arrivals,
        joined: JoinedConnections,
        streams: Streams,
        tell_failed: TellFailed,
        session: Callable[[], int],
    ) -> None:
        """`session`: the number of the control plane's."""
        self.streams = streams
        self.joined = joined
        self.arrivals = arrivals
        self.tell_failed = tell_failed
        self._tables = tables
        self._admissions = admissions
        self._openings = openings
        self._session = session
        streams.by_lane = self._take

    def hear_of_committed(self) -> None:
        """What was told has changed: hear of all that are committed by now, and have C look at those on their way.

        Raises ProtocolBroken if one of them could not be told of. Nothing that follows may be told to this control plane.
        """
        joiner, heard_of_all = self.streams.joiner, True
        for native in joiner.take_committed():
            with contained(Owner("lane")):
                heard_of_all = False
                self._guarded(self._commit, native, 0)
                heard_of_all = True
        joiner.look()
        if not heard_of_all:
            raise ProtocolBroken("a client that was admitted could not be told of")

    def _take(self, news: News) -> None:
        """The first news of a client."""
        if news.flags & COMMITTED:
            self._guarded(self._commit, news.stream, news.flags)
            client = self.streams.find(news.stream)
            if client is not None:
                try:
                    client.take(news)
                except BaseException:
                    client.abandon(news)
                    raise
        else:
            self._guarded(lambda _, lane, opening: self._come_up(lane, opening, news), news.stream, news.flags)

    def _guarded(self, step: Callable[[StreamId, Lane, Opening], None], native: StreamId, flags: int) -> None:
        """Do the first step with a client. If it fails, the client is ended, and its place is free."""
        lane = self.streams.joiner.lane(native)
        # First: from now on neither its deadline nor an eviction looks at the stream, which may be freed below.
        opening = self._openings.come_by_lane(OpeningId(lane.opening))
        try:
            step(native, lane, opening)
        except BaseException:
            known = self.streams.find(native)
            if known is None:
                LostClient(self.streams, native, opening).end(flags)
            else:
                known.abandon(News(native, flags, b"", StreamFailure.FINE, 0, "", b"", b""))
            raise

    def _come_up(self, lane: Lane, opening: Opening, news: News) -> None:
        if opening.given_up is not Outcome.OVER_LIMIT:
            self._count(lane)
        self.arrivals.came_up(opening, lane, news)

    def _count(self, lane: Lane) -> None:
        if lane.why is Entering.STRANGER and lane.error not in (0, errno.ENOENT):
            log_no_sock_diag(OSError(lane.error, "sock_diag"))
        self._admissions.unadmitted[UNADMITTED.get(lane.why, Unadmitted.SILENT)] += 1

    def _commit(self, native: StreamId, lane: Lane, opening: Opening) -> None:
        gate, token = self._tables.find(lane.gate, lane.generation, lane.digest)
        origin = lane_origin(opening, lane)
        tag = tag_of(gate, token, origin.host, opening.arrival.record)
        joined = JoinedConnection(self.arrivals.take_id(), origin.peer, tag.encode(), boot_us())
        client = LaneClient(self, native, opening, lane, joined, self._session())
        joined.cancel = client.cut
        opening.arrival.place.scope = client
        if self.streams.reports.link is None:
            joined.over = self._tables.give_back_of(lane.seat, lane.payer)  # a control plane that sits does it
        self.joined.begin(joined)
        self.streams.add(client)
        self._admissions.admitted += 1
        self.streams.reports.send(_record_of(joined, lane, opening.since))


def _record_of(joined: JoinedConnection, lane: Lane, since: float) -> AdmittedRecord:
    """`since`: when it was accepted, by Trio's clock."""
    age_s = trio.current_time() - since
    accepted_us = 1e6 * (time.monotonic() - age_s)
    parent, state = trace_context(((b"traceparent", lane.traceparent), (b"tracestate", lane.tracestate)))
    return AdmittedRecord(
        id=joined.id,
        gate=lane.gate,
        start_us=joined.start_us,
        age_us=max(1, round(1e6 * age_s)),
        up=lane.read_bytes,
        down=lane.sent_bytes,
        streams=lane.streams,
        window_bytes=lane.window_bytes,
        peer=joined.peer,
        tag=joined.tag,
        traceparent=parent,
        tracestate=state,
        moments=tuple(max(1, round(each - accepted_us)) if each else 0 for each in lane.moments_us),
    )
