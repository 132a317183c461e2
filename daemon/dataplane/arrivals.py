"""From accept to the control plane: PROXY header, TLS, first bytes; then the client's task until its GO or its end.

A peer that leaves before it has said anything never reaches the control plane: it is counted here.
"""

import contextlib
from collections.abc import Awaitable, Callable

import trio

from bentpipe.daemon.connections.arrival import Arrival, read_origin
from bentpipe.daemon.connections.deadlines import Deadlines
from bentpipe.daemon.connections.ends import OUTCOME_ENDS
from bentpipe.daemon.connections.listener import Serve
from bentpipe.daemon.connections.outcomes import ConnectionCounters, ConnectionOver, Outcome
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.connections.tls_start import begins_tls, start_tls
from bentpipe.daemon.connections.transport import PeerLeft, Transport, TransportError
from bentpipe.daemon.dataplane.clients import ClientLine, ClientOrigin, ClientStream
from bentpipe.daemon.dataplane.reports import ControlReports
from bentpipe.daemon.dataplane.stream import Order
from bentpipe.daemon.planes.bounds import FIRST_BYTES
from bentpipe.daemon.planes.records import ArrivalFlag, ClosedRecord
from bentpipe.daemon.records.record import PASSED_ON
from bentpipe.native.tls import TlsConnection
from bentpipe.proto.frames import PREFACE, FrameType, frame

DEFAULT_WORDS = frame(FrameType.SETTINGS, 0, 0, b"") + frame(
    FrameType.GOAWAY, 0, 0, bytes(8) + b"the edge host's control plane is away: try again"
)
"""For a client that no control plane has taken in time, until a control plane leaves better words. GOAWAY with stream 0 says
that no request was processed (RFC 9113 §6.8), so that clients try again."""


class HandshakeRate:
    """Spreads handshakes so that there are at most `per_s` a second. 0: as many as come."""

    def __init__(self) -> None:
        self.per_s = 0
        self._next_at = 0.0

    async def take(self) -> None:
        """Wait for the next handshake's turn."""
        if self.per_s:
            self._next_at = max(trio.current_time(), self._next_at + 1 / self.per_s)
            await trio.sleep_until(self._next_at)


Join = Callable[[ClientStream], Awaitable[None]]


class Arrivals:
    """Serves every accepted connection of the listeners."""

    def __init__(
        self,
        line: ClientLine,
        reports: ControlReports,
        counters: ConnectionCounters,
        greetings: Deadlines,
        join: Join,
    ) -> None:
        """`join` carries out the GO that a client was given; it closes the client if that fails."""
        self._line = line
        self._reports = reports
        self._counters = counters
        self._greetings = greetings
        self._join = join
        self._next_id = 1
        self.handshakes = HandshakeRate()
        self.words = DEFAULT_WORDS
        """For clients that no control plane has taken in time."""

    @property
    def next_id(self) -> int:
        """No client has this id yet, nor a higher one."""
        return self._next_id

    def serving(self, listener: int) -> Serve:
        """What serves the connections of one listener."""

        def serve(transport: Transport, port: Port, arrival: Arrival) -> Awaitable[None]:
            return self._serve(listener, transport, port, arrival)

        return serve

    async def _serve(self, listener: int, transport: Transport, port: Port, arrival: Arrival) -> None:
        with arrival.place as place:
            outcome: Outcome | None = Outcome.OVER_LIMIT  # if the place is evicted
            try:
                with trio.CancelScope() as place.scope:
                    outcome = await self._outcome(listener, transport, port, arrival)
            finally:
                transport.close()
        record = arrival.record
        record.up_bytes, record.down_bytes = transport.received_bytes, transport.sent_bytes
        record.finish(PASSED_ON if outcome is None else OUTCOME_ENDS[outcome])
        if outcome is not None:
            self._counters.ended[outcome] += 1

    async def _outcome(self, listener: int, transport: Transport, port: Port, arrival: Arrival) -> Outcome | None:
        """Returns how the connection counts here; None if the control plane counts it."""
        since = trio.current_time()
        try:
            with self._greetings.scope() as deadline:
                origin, first = await self._open(listener, transport, port, arrival)
            if deadline.cancelled_caught:
                return Outcome.DEADLINE
        except ConnectionOver as exc:
            if exc.limit is not None:
                self._counters.malformed[exc.limit] += 1
            return exc.outcome
        except PeerLeft:
            return Outcome.PROBE
        except TransportError as exc:
            arrival.record.error = str(exc)
            return Outcome.BROKEN
        client = ClientStream(self._next_id, transport, self._reports, origin, arrival.place, since)
        self._next_id += 1
        client.transcript.append(first)
        arrival.place.keep(len(first))
        self._line.enter(client)
        try:
            return await self._run(client)
        finally:
            self._line.leave(client)

    async def _open(
        self, listener: int, transport: Transport, port: Port, arrival: Arrival
    ) -> tuple[ClientOrigin, bytes]:
        """Read the PROXY header, complete the handshake, and wait for the first bytes.

        Raises ConnectionOver, TransportError.
        """
        await read_origin(transport, arrival)
        flags = ArrivalFlag.BY_PROXY if arrival.by_proxy else ArrivalFlag.NONE
        tls: TlsConnection | None = None
        if port.tls is not None:
            if await begins_tls(transport):
                await self.handshakes.take()
                tls = await start_tls(transport, arrival, port.tls)
            else:
                flags |= ArrivalFlag.PLAINTEXT
        first = await transport.receive_some()
        if not first:
            raise ConnectionOver(Outcome.PROBE)
        while len(first) < FIRST_BYTES and (more := transport.receive_nowait(FIRST_BYTES - len(first))):
            first += more
        return _origin_of(listener, arrival, flags, tls), first

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


def _origin_of(listener: int, arrival: Arrival, flags: ArrivalFlag, tls: TlsConnection | None) -> ClientOrigin:
    name = arrival.name
    host, port = name if name is not None else ("", 0)
    if name is None:
        flags |= ArrivalFlag.LOCAL
    if tls is None:
        return ClientOrigin(listener, host, port, flags)
    with contextlib.suppress(UnicodeError):
        return ClientOrigin(
            *(listener, host, port, flags),
            *(tls.server_name or "", tls.alpn or "", tls.version, tls.peer_certificate_der or b""),
        )
    return ClientOrigin(listener, host, port, flags, "", "", tls.version, tls.peer_certificate_der or b"")
