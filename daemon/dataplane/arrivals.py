"""Clients from their first bytes on: each is offered to the control plane, and has a task until its GO or its end."""

import contextlib
from collections.abc import Awaitable, Callable

import trio

from bentpipe.daemon.connections.arrival import Arrival
from bentpipe.daemon.connections.ends import OUTCOME_ENDS
from bentpipe.daemon.connections.listener import session_owner
from bentpipe.daemon.connections.outcomes import ConnectionCounters, Outcome
from bentpipe.daemon.connections.transport import Transport
from bentpipe.daemon.dataplane.clients import ClientLine, ClientOrigin, ClientStream
from bentpipe.daemon.dataplane.openings import Opening
from bentpipe.daemon.dataplane.reports import ControlReports
from bentpipe.daemon.dataplane.stream import Order
from bentpipe.daemon.planes.records import ArrivalFlag, ClosedRecord
from bentpipe.daemon.records.record import PASSED_ON
from bentpipe.daemon.tasks import run_owned
from bentpipe.native.opener import Opened
from bentpipe.native.tls import TlsConnection
from bentpipe.proto.frames import PREFACE, FrameType, frame

DEFAULT_WORDS = frame(FrameType.SETTINGS, 0, 0, b"") + frame(
    FrameType.GOAWAY, 0, 0, bytes(8) + b"the edge host's control plane is away: try again"
)
"""For a client that no control plane has taken in time, until a control plane leaves better words. GOAWAY with stream 0 says
that no request was processed (RFC 9113 §6.8), so that clients try again."""


Join = Callable[[ClientStream], Awaitable[None]]


class Arrivals:
    """Serves every client of the listeners."""

    def __init__(self, line: ClientLine, reports: ControlReports, counters: ConnectionCounters, join: Join) -> None:
        """`join` carries out the GO that a client was given; it closes the client if that fails."""
        self._line = line
        self._reports = reports
        self._counters = counters
        self._join = join
        self._next_id = 1
        self.words = DEFAULT_WORDS
        """For clients that no control plane has taken in time."""

    @property
    def next_id(self) -> int:
        """No client has this id yet, nor a higher one."""
        return self._next_id

    def arrived(self, opening: Opening, opened: Opened) -> None:
        """Take a connection over whose first bytes are there, and offer it."""
        arrival = opening.arrival
        transport = Transport.opened(opening.sock, opened.tls, len(opened.first))
        origin = _origin_of(opening, opened.tls)
        client = ClientStream(self._next_id, transport, self._reports, origin, arrival.place, opening.since)
        self._next_id += 1
        client.transcript.append(opened.first)
        scope = trio.CancelScope()
        arrival.place.scope = scope
        opening.sessions.start_soon(run_owned, session_owner(arrival), self._serve, client, arrival, scope)
        arrival.place.keep(len(opened.first))
        self._line.enter(client)

    async def _serve(self, client: ClientStream, arrival: Arrival, scope: trio.CancelScope) -> None:
        transport = client.transport
        with arrival.record as record:
            outcome: Outcome | None = Outcome.OVER_LIMIT  # if the place is evicted
            try:
                with arrival.place, scope:
                    outcome = await self._run(client)
            finally:
                self._line.leave(client)
                transport.close()
            record.up_bytes, record.down_bytes = transport.received_bytes, transport.sent_bytes
            record.finish(PASSED_ON if outcome is None else OUTCOME_ENDS[outcome])
        if outcome is not None:
            self._counters.ended[outcome] += 1

    async def _run(self, client: ClientStream) -> Outcome | None:
        order = await client.run_stream()
        match order:
            case Order.JOIN:
                self._line.leave(client)
                await self._join(client)
            case Order.CLOSE:
                self._line.leave(client)
                await client.close_gracefully()
                self._reports.send(ClosedRecord(client.id))
            case Order.RESET:
                client.transport.close()
                if client.told:
                    self._reports.send(ClosedRecord(client.id))
                else:
                    return Outcome.CLIENT_GONE
            case Order.LATE:
                return await self._tell_late(client)
        return None

    async def _tell_late(self, client: ClientStream) -> Outcome:
        if client.transcript.between(0, len(PREFACE)) == PREFACE[: client.transcript.end]:
            client.add_last_words(self.words)
        await client.close_gracefully()
        return Outcome.REFUSED


def _origin_of(opening: Opening, tls: TlsConnection | None) -> ClientOrigin:
    arrival, listener = opening.arrival, opening.listener
    host, port = arrival.name if arrival.name is not None else ("", 0)
    flags = ArrivalFlag.BY_PROXY if arrival.by_proxy else ArrivalFlag.NONE
    if arrival.name is None:
        flags |= ArrivalFlag.LOCAL
    if tls is None:
        return ClientOrigin(listener, host, port, flags | (ArrivalFlag.PLAINTEXT if opening.port.tls else 0))
    with contextlib.suppress(UnicodeError):
        return ClientOrigin(
            *(listener, host, port, flags),
            *(tls.server_name or "", tls.alpn or "", tls.version, tls.peer_certificate_der or b""),
        )
    return ClientOrigin(listener, host, port, flags, "", "", tls.version, tls.peer_certificate_der or b"")
