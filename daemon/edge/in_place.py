"""Serves a connection that asked for the daemon's own services, to its end; it never reaches a satellite."""

import trio

from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.health import HealthBoard, HealthService
from bentpipe.daemon.edge.identity import Identities, TlsIdentity
from bentpipe.daemon.edge.outcomes import Counters, Gone, Outcome
from bentpipe.daemon.edge.pacing import take_turn
from bentpipe.proto.answering import Answering, Call
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.events import RequestHeaders
from bentpipe.proto.health import SERVICE_PATH
from bentpipe.proto.refusal import PIECE_BYTES

IDLE_S = 300.0
"""Without a word and without a Watch: load balancers check every few seconds to minutes, on a connection they keep."""

OURS = (SERVICE_PATH.encode(), b"/AWS.ALB/")
"""Paths. AWS' Application Load Balancer checks gRPC targets by `/AWS.ALB/healthcheck`, a method that no server has, and by
default takes UNIMPLEMENTED for health: so there is nothing to know of a satellite for the answer."""

SEND_DEADLINE_S = 10.0
"""To take what we say; a client that does not read is let go."""


def is_ours(headers: RequestHeaders) -> bool:
    """Whether the daemon answers this request itself."""
    return dict(headers.headers).get(b":path", b"").startswith(OURS)


class InPlace:
    """One such connection."""

    def __init__(
        self,
        caller: Caller,
        board: HealthBoard,
        identities: Identities,
        counters: Counters,
        identity: TlsIdentity,
        domain: str | None,
    ) -> None:
        self._caller = caller
        self._board = board
        self._counters = counters
        self._answering = Answering()
        self._health = HealthService(board, identities, self._answering, identity, domain)

    async def run(self) -> Outcome:
        """Answer until either side ends it. Raises TransportError, Gone."""
        try:
            await self._receive(self._caller.take_all())
            while not self._answering.ended and not self._board.draining:
                await self._flush()
                data = self._caller.transport.receive_nowait()
                if data is None and not await self._wait():
                    break
                if data == b"":
                    return Outcome.ANSWERED
                if data:
                    await self._receive(data)
        except GreetingError as exc:
            self._counters.malformed[exc.limit or exc.error_code.name] += 1
            await self._goodbye()
            return Outcome.MALFORMED
        self._health.publish()
        if not self._answering.ended:
            self._answering.close()
        await self._goodbye()
        return Outcome.ANSWERED

    async def _receive(self, data: bytes) -> None:
        for at in range(0, len(data), PIECE_BYTES):
            await take_turn()
            for event in self._answering.receive_data(data[at : at + PIECE_BYTES], trio.current_time()):
                if isinstance(event, Call):
                    self._counters.answers[self._health.handle(event)] += 1
                else:
                    self._health.end(event.stream_id)
            self._health.publish()

    async def _wait(self) -> bool:
        """Wait for input or for news. Returns False if there was neither for too long."""
        changed = self._board.changed
        with trio.move_on_after(float("inf") if self._health.watching else IDLE_S) as idle:
            async with trio.open_nursery() as nursery:

                async def wait_readable() -> None:
                    await self._caller.transport.wait_readable()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(wait_readable)
                await changed.wait()
                nursery.cancel_scope.cancel()
        self._health.publish()
        return not idle.cancelled_caught

    async def _flush(self) -> None:
        with trio.move_on_after(SEND_DEADLINE_S) as deadline:
            await self._caller.flush()
            await self._caller.transport.send_all(self._answering.data_to_send())
        if deadline.cancelled_caught:
            raise Gone(Outcome.BROKEN)

    async def _goodbye(self) -> None:
        await self._flush()
        await self._caller.transport.close_gracefully()
