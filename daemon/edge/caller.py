"""The client until its hand-off: its transport, its greeting, and those of our words to it that are not sent yet.

While the client is held this reads and writes for it, so that its PINGs are answered and its end is noticed at once.
"""

import dataclasses
import logging

import trio

from bentpipe.daemon.connections.arrival import Arrival
from bentpipe.daemon.connections.ends import OUTCOME_ENDS
from bentpipe.daemon.connections.native_greeting import NativeGreeting
from bentpipe.daemon.connections.outcomes import ConnectionOver, Outcome
from bentpipe.daemon.connections.transport import PeerLeft
from bentpipe.daemon.edge.channel import Channel
from bentpipe.daemon.edge.dial import Dials, dial_here
from bentpipe.daemon.edge.identity import TlsIdentity
from bentpipe.daemon.edge.plane_channel import PlaneChannel
from bentpipe.proto.events import Event, RequestHeaders
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.one_request import OneRequest

log = logging.getLogger("bentpipe.edge")


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """What the data plane has found out about a client: TLS and a PROXY header are behind it."""

    identity: TlsIdentity
    plaintext: bool
    """It speaks in the clear to a port with TLS."""
    mark: int | None
    """What an earlier control plane has said to it: see Greeting.mark. None: none has."""


class Caller:
    """A client that has not been handed off."""

    def __init__(
        self,
        transport: Channel,
        arrival: Arrival,
        dials: Dials = dial_here,
        greeting: Greeting | NativeGreeting | None = None,
    ) -> None:
        """`dials` connects to satellites from the process that has the client's socket. `greeting`: by default in Python."""
        self.transport = transport
        self.dials = dials
        self._offered = transport if isinstance(transport, PlaneChannel) else None
        """Set if the next control plane goes on with the client when this one dies: see plane_channel.py."""
        self.greeting = greeting or Greeting()
        if self._offered is not None:
            self.greeting.take_removed()  # from now on they are remembered
        self.offer: Offer | None = None
        """What the data plane says of the client, if it is the data plane's."""
        self.arrival = arrival
        self.place = arrival.place
        self.record = arrival.record
        self.identity = TlsIdentity()
        """What the TLS handshake has shown of it."""
        self.wants_tls = False
        """Whether it speaks in the clear to a port with TLS: its first request is read, and refused."""
        self._one_request: OneRequest | None = None
        self._outbox = bytearray()

    def note_end(self, outcome: Outcome) -> None:
        """Write down how the connection ended, for which it was not handed off."""
        record = self.record
        record.principal = record.principal or self.place.principal
        record.up_bytes, record.down_bytes = self.transport.received_bytes, self.transport.sent_bytes
        record.finish(OUTCOME_ENDS[outcome])

    @property
    def peer(self) -> str:
        """The client's address, for the logs."""
        return self.arrival.peer

    def receive(self, data: bytes) -> list[Event]:
        """Take what the client has sent. Raises GreetingError; LimitReached if its principal's clients have sent too
        much."""
        if self._one_request is not None:
            data = self._one_request.receive_data(data)
        events = self._read(data)
        if self._one_request is not None:
            self._hold_to_one(self._one_request, events)
        self._outbox += self.greeting.data_to_send()
        self._note_answered()
        self.place.keep(self.greeting.kept_bytes + len(self._outbox))
        return events

    def _read(self, data: bytes) -> list[Event]:
        """Let the greeting read. Where the one in C stops, the one in Python goes on for good."""
        greeting, now_s = self.greeting, trio.current_time()
        events = greeting.receive_data(data, now_s)
        if isinstance(greeting, NativeGreeting) and greeting.stopped is not None:
            self.greeting, rest = greeting.hand_over()
            events += self.greeting.receive_data(rest, now_s)
            if greeting.stopped.error_code is not None:
                fields = {"id": self.record.id, "peer": self.peer, "limit": greeting.stopped.limit}
                log.error("the greeting in C refuses what Python accepts; please report this", extra={"fields": fields})
        return events

    def _note_answered(self) -> None:
        if self._offered is not None:
            self._offered.answer(self.greeting.mark, self.greeting.take_removed())
            if not self._outbox:
                self._offered.say_answered()

    def own(self) -> None:
        """From now on this process answers the client itself, and no other one can go on with it."""
        if self._offered is not None:
            self._offered.own()

    @property
    def reads_frames_from(self) -> int:
        """The offset in the client's stream at which the next frame begins that is not complete here."""
        taken = self._offered.taken if self._offered is not None else 0
        return taken - (self.greeting.unframed_bytes if self.greeting.awaiting_ack else 0)

    @property
    def has_one_request(self) -> bool:
        """Whether bytes were removed that belong to further requests, so that nobody else has the transcript."""
        return self._one_request is not None

    def allow_one_request(self) -> None:
        """Allow one request on this connection; call it before anything is read (proto/one_request.py)."""
        self._one_request = OneRequest()

    @property
    def knows_it_is_the_last(self) -> bool:
        """Whether the client knows that it may open no more streams, if that is so."""
        return self._one_request is None or self._one_request.done

    @property
    def refused_requests(self) -> int:
        """How many further requests were refused."""
        return 0 if self._one_request is None else self._one_request.refused

    def _hold_to_one(self, one_request: OneRequest, events: list[Event]) -> None:
        if any(isinstance(event, RequestHeaders) for event in events):
            self.own()
            self.greeting.speak()
            self._outbox += self.greeting.data_to_send() + one_request.tell()
        self._outbox += one_request.data_to_send()

    def take_all(self) -> bytes:
        """Take everything that the client has sent. The greeting keeps none of it, and the taker counts its bytes."""
        self.own()
        return self.greeting.take_all()

    def send_outbox(self) -> None:
        """Send as much of the unsent words as the socket takes."""
        if self._outbox:
            del self._outbox[: self.transport.send_nowait(self._outbox)]

    def flush_nowait(self) -> bool:
        """Send what the socket takes of the greeting's words, behind what is still unsent. Returns whether all went."""
        self._outbox += self.greeting.data_to_send()
        if self._outbox:
            self._note_answered()
            self.send_outbox()
        return not self._outbox

    async def flush(self) -> None:
        """Send all of them."""
        while not self.flush_nowait():
            await self.transport.wait_writable()

    async def read_while_held(self) -> None:
        """Keep the client's bytes and answer its PINGs, until cancelled; a cancellation meets a wait, never a read.

        Raises ConnectionOver when the client leaves, GreetingError, LimitReached, TransportError.
        """
        try:
            while await self._read_some():
                await trio.lowlevel.checkpoint()
        except PeerLeft as exc:
            raise ConnectionOver(Outcome.CLIENT_GONE) from exc
        raise ConnectionOver(Outcome.CLIENT_GONE)

    async def _read_some(self) -> bool:
        """Read what has come, or wait for more. Returns whether the client is still connected."""
        self.send_outbox()
        data = None if self.greeting.transcript_full else self.transport.receive_nowait()
        if data is None:
            return not await self._wait_held()
        if not data:
            return False
        self.receive(data)
        return not self.greeting.leaving

    async def _wait_held(self) -> bool:
        """Wait for input, or for the end alone if the transcript is full; and for room if the outbox has bytes.

        Returns whether the client has left.
        """
        if not self._outbox and not self.greeting.transcript_full:
            # Nearly always so, and for as long as a wake takes: thousands of clients wait without a nursery and its tasks.
            await self.transport.wait_readable()
            return False
        left = False
        async with trio.open_nursery() as nursery:
            if self._outbox:
                nursery.start_soon(self._cancel_after_writable, nursery.cancel_scope)
            if self.greeting.transcript_full:
                await self.transport.wait_hangup()
                left = True
            else:
                await self.transport.wait_readable()
            nursery.cancel_scope.cancel()
        return left

    async def _cancel_after_writable(self, scope: trio.CancelScope) -> None:
        await self.transport.wait_writable()
        scope.cancel()
