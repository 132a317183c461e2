"""Clients from their first bytes on: each is offered to the control plane, and is here until its GO or its end.

Only a client that is closed in order has a task.
"""

import contextlib
import dataclasses
from collections.abc import Callable

from bentpipe.daemon.connections.outcomes import ConnectionCounters, Outcome
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.connections.transport import Transport
from bentpipe.daemon.dataplane.admitting import Admissions
from bentpipe.daemon.dataplane.clients import ClientLine, ClientOrigin, ClientStream
from bentpipe.daemon.dataplane.last_words import last_words
from bentpipe.daemon.dataplane.openings import Opening
from bentpipe.daemon.dataplane.stream import DATA, Order, close_in_order
from bentpipe.daemon.dataplane.streams import Streams
from bentpipe.daemon.planes.records import ArrivalFlag, ClosedRecord
from bentpipe.daemon.tasks import Decision, Owner, run_owned
from bentpipe.native.joiner import News, StreamId
from bentpipe.native.lane import Lane
from bentpipe.native.opener import Opened
from bentpipe.native.tls import TlsConnection
from bentpipe.proto.errors import ErrorCode
from bentpipe.proto.frames import PREFACE

DEFAULT_WORDS = last_words(ErrorCode.NO_ERROR, "the edge host's control plane is away: try again")
"""For a client that no control plane has taken in time, until a control plane leaves better words."""


Joined = Callable[[ClientStream, News], None]


class Arrivals:
    """Has every client of the listeners, from its first bytes to its GO or its end."""

    def __init__(
        self,
        line: ClientLine,
        streams: Streams,
        counters: ConnectionCounters,
        quotas: Quotas,
        joined: Joined,
        admissions: Admissions,
    ) -> None:
        """`quotas` are those of clients that have said something: they may wait for a control plane. `joined` takes the last
        news of a client that was given a GO.
        """
        self._line = line
        self._admissions = admissions
        self._quotas = quotas
        self._streams = streams
        self._counters = counters
        self._joined = joined
        self._next_id = 1
        self.closing = 0
        """Clients that are being closed in order."""
        self.words = DEFAULT_WORDS
        """For clients that no control plane has taken in time."""

    @property
    def next_id(self) -> int:
        """No client has this id yet, nor a higher one."""
        return self._next_id

    def arrived(self, opening: Opening, opened: Opened) -> None:
        """Take a connection over whose first bytes are there, and offer it. Raises OSError, and has not taken it."""
        opening.arrival.charge_to(self._quotas)
        place = opening.arrival.place
        origin = _origin_of(opening, opened.tls)
        native = self._streams.joiner.open(opening.sock.fileno(), opened.tls)
        client = ClientStream(self.take_id(), opening, native, self._streams, origin, self._released)
        client.transcript.append(opened.first)
        place.scope = client
        place.keep(len(opened.first))
        if not self._admissions.begin(client, opening.port):
            self._line.enter(client)
        client.let_read()

    def came_up(self, opening: Opening, lane: Lane, news: News) -> None:
        """Take a client over that C has not brought to its satellite: offer it, or end it if its place was evicted.

        Its socket and these news come from the joiner.
        """
        opening.arrival.charge_to(self._quotas)
        place = opening.arrival.place
        client = self.client_of(self.take_id(), opening, lane, news.stream)
        client.heard_before(news.data, lane.removed, lane.said_bytes, lane.mark)
        place.scope = client
        place.keep(client.transcript.kept_bytes)
        if opening.given_up is Outcome.OVER_LIMIT:
            client.give(Order.EVICTED)
        else:
            self._line.keep(client)
            self._line.enter_again(client)
        client.take(dataclasses.replace(news, flags=news.flags & ~DATA, data=b""))

    def client_of(self, about: int, opening: Opening, lane: Lane, native: StreamId) -> ClientStream:
        """Make the stream of a client whose socket C has had until now."""
        opening.take_socket(self._streams.joiner.take_socket(native))
        origin = lane_origin(opening, lane)
        return ClientStream(about, opening, native, self._streams, origin, self._released)

    def take_id(self) -> int:
        """An id that no client has had."""
        self._next_id += 1
        return self._next_id - 1

    def _released(self, client: ClientStream, news: News) -> None:
        self._line.leave(client)
        if client.admission is not None:
            client.admission.end()
        match client.order:
            case Order.JOIN:
                self._joined(client, news)
            case Order.CLOSE:
                self.close(client, news.unsent, None)
            case Order.LATE:
                said = client.transcript
                speaks_http2 = said.between(0, len(PREFACE)) == PREFACE[: said.end]
                self.close(client, news.unsent + (self.words if speaks_http2 else b""), Outcome.REFUSED)
            case Order.EVICTED:
                self._end(client, client.take_back(), Outcome.OVER_LIMIT)
            case _:
                self._end(client, client.take_back(), None if client.told else Outcome.CLIENT_GONE)
                if client.told:
                    self._streams.reports.send(ClosedRecord(client.id))

    def close(self, client: ClientStream, words: bytes, outcome: Outcome | None) -> None:
        """Send what waits and close in order. None: the control plane has its record."""
        self.closing += 1
        owner = Owner("session", client.origin.peer, Decision.GIVE_UP)
        client.sessions.start_soon(run_owned, owner, self._close, client, client.take_back(), words, outcome)

    async def _close(self, client: ClientStream, transport: Transport, words: bytes, outcome: Outcome | None) -> None:
        try:
            await close_in_order(transport, words)
        finally:
            self.closing -= 1
            self._end(client, transport, outcome)
        if client.order is Order.CLOSE:
            self._streams.reports.send(ClosedRecord(client.id))

    def _end(self, client: ClientStream, transport: Transport, outcome: Outcome | None) -> None:
        transport.close()
        client.arrival.finish(outcome, client.heard_bytes, transport.sent_bytes)
        if outcome is not None:
            self._counters.ended[outcome] += 1


def _origin_of(opening: Opening, tls: TlsConnection | None) -> ClientOrigin:
    if tls is None:
        return _address_of(opening, ArrivalFlag.PLAINTEXT if opening.port.tls else ArrivalFlag.NONE)
    origin = dataclasses.replace(
        _address_of(opening), tls_version=tls.version, certificate=tls.peer_certificate_der or b""
    )
    with contextlib.suppress(UnicodeError):
        return dataclasses.replace(origin, server_name=tls.server_name or "", alpn=tls.alpn or "")
    return origin


def lane_origin(opening: Opening, lane: Lane) -> ClientOrigin:
    """The same of a client that C has had. It has shown no certificate."""
    return dataclasses.replace(
        _address_of(opening), server_name=lane.server_name, alpn=lane.alpn, tls_version=lane.tls_version
    )


def _address_of(opening: Opening, flags: ArrivalFlag = ArrivalFlag.NONE) -> ClientOrigin:
    arrival = opening.arrival
    host, port = arrival.name if arrival.name is not None else ("", 0)
    flags |= ArrivalFlag.BY_PROXY if arrival.by_proxy else ArrivalFlag.NONE
    if arrival.name is None:
        flags |= ArrivalFlag.LOCAL
    return ClientOrigin(opening.listener, host, port, flags)
