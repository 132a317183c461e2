"""The client in hand, until the hand-off: its transport, its greeting, and what is still unsent of our words to it.

Reads and writes on its behalf while it is held, so that its PINGs are answered and its leaving is noticed at once.
"""

import trio

from bentpipe.daemon.edge.arrival import Arrival
from bentpipe.daemon.edge.outcomes import Gone, Outcome
from bentpipe.daemon.edge.transport import PeerLeft, Transport
from bentpipe.proto.events import Event, RequestHeaders
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.one_request import OneRequest


class Caller:
    """A client that has not been handed off."""

    def __init__(self, transport: Transport, arrival: Arrival) -> None:
        self.transport = transport
        self.greeting = Greeting()
        self.arrival = arrival
        self.place = arrival.place
        self.wants_tls = False
        """Whether it speaks in the clear to a port with TLS: it is heard out, and refused."""
        self._one_request: OneRequest | None = None
        self._outbox = bytearray()

    @property
    def peer(self) -> str:
        """Its address, for the logs."""
        return self.arrival.peer

    def receive(self, data: bytes) -> list[Event]:
        """Read on. Raises GreetingError; LimitReached if its principal's clients have said too much."""
        if self._one_request is not None:
            data = self._one_request.receive_data(data)
        events = self.greeting.receive_data(data, trio.current_time())
        if self._one_request is not None:
            self._hold_to_one(self._one_request, events)
        self._outbox += self.greeting.data_to_send()
        self.place.keep(self.greeting.kept_bytes + len(self._outbox))
        return events

    def allow_one_request(self) -> None:
        """Take one request of this connection, before anything was read of it (proto/one_request.py)."""
        self._one_request = OneRequest()

    @property
    def knows_it_is_the_last(self) -> bool:
        """Whether it will open no more streams, where it may not."""
        return self._one_request is None or self._one_request.done

    @property
    def refused_requests(self) -> int:
        """Further requests that were refused."""
        return 0 if self._one_request is None else self._one_request.refused

    def _hold_to_one(self, one_request: OneRequest, events: list[Event]) -> None:
        if any(isinstance(event, RequestHeaders) for event in events):
            self.greeting.speak()
            self._outbox += self.greeting.data_to_send() + one_request.tell()
        self._outbox += one_request.data_to_send()

    def take_all(self) -> bytes:
        """Everything that it said; from now on the greeting has nothing, and whoever takes it counts it."""
        return self.greeting.take_all()

    def send_outbox(self) -> None:
        """Send what fits."""
        if self._outbox:
            del self._outbox[: self.transport.send_nowait(self._outbox)]

    async def flush(self) -> None:
        """Send what the greeting has to say, behind what is still unsent."""
        self._outbox += self.greeting.data_to_send()
        while self._outbox:
            self.send_outbox()
            if self._outbox:
                await self.transport.wait_writable()

    async def read_while_held(self) -> None:
        """Keep the client's bytes and answer its PINGs until cancelled; a cancel falls on a wait, never on a read.

        Raises Gone when it leaves, GreetingError, LimitReached, TransportError.
        """
        try:
            while await self._read_some():
                await trio.lowlevel.checkpoint()
        except PeerLeft as exc:
            raise Gone(Outcome.CLIENT_GONE) from exc
        raise Gone(Outcome.CLIENT_GONE)

    async def _read_some(self) -> bool:
        """Read what there is, or wait for more. Returns whether the client is still there."""
        self.send_outbox()
        data = None if self.greeting.transcript_full else self.transport.receive_nowait()
        if data is None:
            return not await self._wait_held()
        if not data:
            return False
        self.receive(data)
        return not self.greeting.leaving

    async def _wait_held(self) -> bool:
        """Wait for input, or only for the end if the transcript is full; and for room if the outbox has bytes.

        Returns whether the client left.
        """
        if not self._outbox and not self.greeting.transcript_full:
            # Nearly always, and for as long as a wake takes: a herd of thousands waits without a nursery and its tasks.
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
