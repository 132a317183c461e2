"""Serves a connection whose first request is a health check, to its end; it never reaches a satellite."""

import contextlib
import functools
import math

import trio

from bentpipe.daemon.connections.outcomes import ConnectionCounters, ConnectionOver, Outcome
from bentpipe.daemon.connections.pacing import take_turn
from bentpipe.daemon.connections.quotas import Place, QuotaKind
from bentpipe.daemon.edge.answered_times import AGE_GRACE_S, SEND_DEADLINE_S, varied_s
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.health import HealthBoard, HealthService
from bentpipe.daemon.edge.identity import Claim, Identities, TlsIdentity
from bentpipe.daemon.errors import LimitReached
from bentpipe.daemon.records.ids import quote
from bentpipe.proto.answering import AnsweredCall, Answering
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.health import HEALTH_PATHS
from bentpipe.proto.refusal import PIECE_BYTES

IDLE_S = 300.0
"""For how long a connection without a Watch may say nothing: load balancers check every few seconds to minutes, on a
connection that they keep."""


def _promote(place: Place, claim: Claim) -> None:
    """Charge the place of a client that may use a satellite to its principal's quota, if there is room."""
    with contextlib.suppress(LimitReached):
        place.promote(claim.payer, None)


class HealthChecks:
    """Takes the connections whose first request is a health check: see `services.py`."""

    def __init__(
        self, board: HealthBoard, identities: Identities, counters: ConnectionCounters, stranger_age_s: float
    ) -> None:
        """`stranger_age_s`: how long such a connection may last."""
        self._board = board
        self._identities = identities
        self._counters = counters
        self.stranger_age_s = stranger_age_s

    def takes(self, path: bytes, *, names_satellite: bool) -> bool:
        """Whether the first request's path is a health check's, of the daemon or of a satellite that it names."""
        return path.startswith(HEALTH_PATHS)

    def open(self, caller: Caller, identity: TlsIdentity, domain: str | None) -> "HealthConnection":
        """Take the connection."""
        answering = Answering()
        answering.tail = quote(caller.record.id)
        promote = functools.partial(_promote, caller.place)
        health = HealthService(self._board, self._identities, answering, identity, domain, promote)
        return HealthConnection(caller, self._board, self._counters, answering, health, self.stranger_age_s)


class HealthConnection:
    """One such connection."""

    def __init__(
        self,
        caller: Caller,
        board: HealthBoard,
        counters: ConnectionCounters,
        answering: Answering,
        health: HealthService,
        age_s: float,
    ) -> None:
        self._caller = caller
        self._board = board
        self._counters = counters
        self._answering = answering
        self._health = health
        self._age_s = varied_s(age_s)
        self._ends_at = math.inf
        self._aged = False
        self._seen = 0
        """How many of the board's changes the Watches have been told of."""

    @property
    def last_stream(self) -> int:
        """The highest stream that the client opened; 0 if none."""
        return self._answering.last_stream

    def dispose(self) -> None:
        """Free its memory now, instead of at some garbage collection."""
        self._answering.dispose()

    async def run(self) -> Outcome:
        """Answer until either side ends it, or it is too old. Raises TransportError, ConnectionOver."""
        self._ends_at = trio.current_time() + self._age_s
        try:
            await self._receive(self._caller.take_all())
            while not self._answering.ended and not self._board.ending:
                if trio.current_time() >= self._ends_at and not self._age():
                    break
                await self._flush()
                data = self._caller.transport.receive_nowait()
                if data is None and not await self._wait():
                    break
                if data == b"":
                    return Outcome.ANSWERED
                if data:
                    await self._receive(data)
        except GreetingError as exc:
            self._counters.count_malformed(exc)
            await self._goodbye()
            return Outcome.MALFORMED
        self._publish()
        if not self._answering.ended:
            self._answering.close()
        await self._goodbye()
        return Outcome.ANSWERED

    async def _receive(self, data: bytes) -> None:
        for at in range(0, len(data), PIECE_BYTES):
            await self._take_turn()
            for event in self._answering.receive_data(data[at : at + PIECE_BYTES], trio.current_time()):
                if isinstance(event, AnsweredCall):
                    self._counters.answers[self._health.handle(event)] += 1
                else:
                    self._health.end(event.stream_id)
            self._publish()
            self._caller.place.keep(self._answering.kept_bytes)

    async def _take_turn(self) -> None:
        await take_turn(last=self._caller.place.kind is not QuotaKind.PRINCIPAL)

    def _publish(self) -> None:
        self._seen = self._board.changes
        self._health.publish()

    def _age(self) -> bool:
        """Tell the client that the connection is too old; if it was told before, end it. Returns whether to go on."""
        if self._aged:
            return False
        self._aged = True
        self._ends_at = trio.current_time() + AGE_GRACE_S
        self._answering.announce_end()
        return True

    async def _wait(self) -> bool:
        """Wait for input, for a change, or for the connection's age. Returns False if it was idle for too long."""
        idle_at = math.inf if self._health.watching else trio.current_time() + IDLE_S
        with trio.move_on_at(min(idle_at, self._ends_at)) as idle:
            async with trio.open_nursery() as nursery:

                async def wait_readable() -> None:
                    await self._caller.transport.wait_readable()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(wait_readable)
                await self._board.wait_change(self._seen)
                nursery.cancel_scope.cancel()
        # Thousands may hear of the same change, or have been idle since the same moment.
        await self._take_turn()
        self._publish()
        return not idle.cancelled_caught or trio.current_time() < idle_at

    async def _flush(self) -> None:
        with trio.move_on_after(SEND_DEADLINE_S) as deadline:
            await self._caller.flush()
            await self._caller.transport.send_all(self._answering.data_to_send())
        if deadline.cancelled_caught:
            raise ConnectionOver(Outcome.BROKEN)

    async def _goodbye(self) -> None:
        await self._flush()
        await self._caller.transport.close_gracefully()
