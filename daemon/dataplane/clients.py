"""The clients before their GO: offered to the control plane, or parked until one comes.

A client is offered once its handshake is done and its first bytes are there. While no control plane sits, or while it has
left very many offers unanswered, clients wait in line. The wait has a deadline, and then the client hears the words that the
control plane has left for this case.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable
from typing import Protocol

import trio

from bentpipe.daemon.dataplane.admission_tables import Unadmitted
from bentpipe.daemon.dataplane.openings import Opening
from bentpipe.daemon.dataplane.stream import BROKEN, DATA, END, HUNG_UP, Order, Stream
from bentpipe.daemon.dataplane.streams import Streams
from bentpipe.daemon.planes.bounds import (
    CERTIFICATE_BYTES,
    FIRST_BYTES,
    NAME_BYTES,
    OFFERED_CLIENTS,
    PARKED_S,
)
from bentpipe.daemon.planes.records import ArrivalFlag, ArrivedRecord
from bentpipe.native.joiner import News, StreamId

LATE_LOOK_S = 0.5
"""Between two looks for clients that have waited for too long."""
LATE_A_TURN = 64
"""Of them in one turn."""


@dataclasses.dataclass(frozen=True, slots=True)
class ClientOrigin:
    """What is known of a client before it has said anything."""

    listener: int
    host: str
    """"" if it has no IP address."""
    port: int
    flags: ArrivalFlag
    server_name: str = ""
    alpn: str = ""
    tls_version: str = ""
    certificate: bytes = b""

    @property
    def peer(self) -> str:
        """For the log."""
        return f"{self.host}:{self.port}" if self.host else "unix"


class BeingAdmitted(Protocol):
    """A client that may be admitted here: see admitting.py."""

    def hear(self, data: bytes) -> None:
        """The client has said more."""
        ...

    def give_up(self, why: Unadmitted) -> None:
        """Offer it to the control plane."""
        ...

    def end(self) -> None:
        """The client has ended, or was joined."""
        ...


class ClientStream(Stream):
    """A client. It has a place on D's quota until it is offered: then the control plane limits it."""

    def __init__(
        self,
        stream_id: int,
        opening: Opening,
        native: StreamId,
        streams: Streams,
        origin: ClientOrigin,
        released: Callable[["ClientStream", News], None],
    ) -> None:
        super().__init__(stream_id, opening.sock, native, streams, functools.partial(released, self))
        self.origin = origin
        self.sessions = opening.sessions
        self.arrival = opening.arrival
        self.record = opening.arrival.record
        self.place = opening.arrival.place
        self._since = opening.since
        self._again = False
        self.has_waited = False
        """Whether it may have left since its last bytes came."""
        self.admission: BeingAdmitted | None = None
        """While this process may bring it to its satellite itself."""
        self.late_at = 0.0
        """When its time in the line is over."""

    @property
    def since(self) -> float:
        """When it was accepted."""
        return self._since

    def take(self, news: News) -> bool:
        """See Stream. While this process may admit it, it hears what the client says."""
        if self.admission is not None and news.flags & (END | BROKEN | HUNG_UP):
            self.admission.give_up(Unadmitted.LEFT)  # the control plane knows what that means
        passed_on = super().take(news)
        if self.admission is not None and self.order is None and news.flags & DATA:
            self.place.keep(self.transcript.kept_bytes)
            self.admission.hear(news.data)
        return passed_on

    def offered_later(self) -> bool:
        """It was not admitted here. Returns whether a control plane can go on with it."""
        self.reads_here, self._again = False, True
        return self.order is None and self.begin_again()

    def cancel(self) -> None:
        """Its place is evicted."""
        self.give(Order.EVICTED)

    def drop(self) -> None:
        """Close it at once; nobody is told."""
        super().drop()
        self.arrival.drop()

    def offer(self) -> None:
        """Tell the control plane of it, and of all its bytes."""
        origin, kept = self.origin, self.transcript.between(0, self.transcript.end)
        long = len(origin.certificate) > CERTIFICATE_BYTES
        flags = origin.flags | (ArrivalFlag.AGAIN if self._again else 0) | (ArrivalFlag.HASHED if long else 0)
        self.told = self._again = True
        self._reports.send(
            ArrivedRecord(
                id=self.id,
                listener=origin.listener,
                port=origin.port,
                flags=ArrivalFlag(flags),
                mark=self.mark,
                kept=len(kept),
                age_ms=round(1000 * (trio.current_time() - self._since)),
                host=origin.host[:NAME_BYTES],
                server_name=origin.server_name,
                alpn=origin.alpn,
                tls_version=origin.tls_version,
                certificate=hashlib.sha256(origin.certificate).digest() if long else origin.certificate,
                first=kept[:FIRST_BYTES],
            )
        )
        self._passed_on = min(len(kept), FIRST_BYTES)
        self.pass_on()


class ClientLine:
    """All clients before their GO."""

    def __init__(self, may_offer: Callable[[], bool]) -> None:
        """`may_offer`: whether a control plane sits, reads, and is alive."""
        self._may_offer = may_offer
        self.clients: dict[int, ClientStream] = {}
        self._waiting: dict[int, ClientStream] = {}
        self._unanswered: set[int] = set()

    @property
    def waiting(self) -> int:
        """Clients that were not offered to the present control plane."""
        return len(self._waiting)

    def enter(self, client: ClientStream) -> None:
        """A client has come, or has to be offered again."""
        self.clients[client.id] = client
        client.late_at = trio.current_time() + PARKED_S
        self._waiting[client.id] = client
        self.offer_some()
        client.has_waited = client.id in self._waiting

    def keep(self, client: ClientStream) -> None:
        """A client that may be admitted here is not offered yet."""
        self.clients[client.id] = client

    def enter_again(self, client: ClientStream) -> None:
        """A client was not admitted here: offer it."""
        if client.offered_later():
            self.enter(client)
            client.let_read()
        else:
            client.give(Order.RESET)

    def leave(self, client: ClientStream) -> None:
        """It is over, or a GO has it."""
        self.clients.pop(client.id, None)
        self._waiting.pop(client.id, None)
        self.answered(client.id)

    def offer_some(self) -> None:
        """Offer clients, as long as the control plane answers."""
        while self._waiting and len(self._unanswered) < OFFERED_CLIENTS and self._may_offer():
            about, client = next(iter(self._waiting.items()))
            del self._waiting[about]
            if client.has_waited and client.has_left():
                client.give(Order.RESET)  # else a satellite could be woken for nobody
            if client.order is not None:
                continue
            self._unanswered.add(about)
            client.place.release()
            client.place.scope = None
            client.offer()

    def answered(self, about: int) -> None:
        """The control plane has said something of this client."""
        if about in self._unanswered:
            self._unanswered.discard(about)
            self.offer_some()

    def begin_again(self) -> None:
        """The control plane is gone: keep for the next one what it can go on with, and finish the rest."""
        self._unanswered.clear()
        for client in list(self.clients.values()):
            if client.id in self._waiting or client.order is not None or client.admission is not None:
                continue
            if client.begin_again():
                self.enter(client)
            else:
                client.give(Order.CLOSE)

    async def run_line(self) -> None:
        """Offer what may be offered by now, and end the wait of clients that have waited for too long, for ever."""
        while True:
            await trio.sleep(LATE_LOOK_S)
            self.offer_some()
            now = trio.current_time()
            for about, client in list(itertools.islice(self._waiting.items(), LATE_A_TURN)):
                if client.late_at > now:
                    break
                del self._waiting[about]
                client.give(Order.LATE)
