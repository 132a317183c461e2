"""The client in hand, until the hand-off: its transport, its greeting, and what is still unsent of our words to it.

Reads and writes on its behalf while it is held, so that its PINGs are answered and its leaving is noticed at once.
"""

import trio

from bentpipe.daemon.edge.outcomes import Gone, Outcome
from bentpipe.daemon.edge.transport import Transport
from bentpipe.proto.events import GoAwayReceived
from bentpipe.proto.greeting import Greeting


class Caller:
    """A client that has not been handed off."""

    def __init__(self, transport: Transport, peer: str) -> None:
        self.transport = transport
        self.greeting = Greeting()
        self.peer = peer
        self._outbox = bytearray()

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

        Raises Gone when it leaves, GreetingError, TransportError.
        """
        while True:
            self.send_outbox()
            data = None if self.greeting.transcript_full else self.transport.receive_nowait()
            if data is None:
                if await self._wait_held():
                    raise Gone(Outcome.CLIENT_GONE)
                continue
            if not data:
                raise Gone(Outcome.CLIENT_GONE)
            for event in self.greeting.receive_data(data, trio.current_time()):
                if isinstance(event, GoAwayReceived):
                    raise Gone(Outcome.CLIENT_GONE)
            self._outbox += self.greeting.data_to_send()
            await trio.lowlevel.checkpoint()

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
