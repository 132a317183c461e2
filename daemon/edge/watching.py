"""Holds a client: it is read while it waits, its PINGs are answered, and if it leaves, the work for it is cancelled.

A client that only waits is read by its own task. When its satellite is awake, this task connects them at once, and reads
nothing meanwhile. Only work that takes longer has a second task beside it, which reads. So a herd of thousands has one task
for each client, and nothing more to be ended when all are let go.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterator

import trio

from bentpipe.daemon.connections.held_bytes import HELD_BYTES
from bentpipe.daemon.connections.outcomes import ConnectionOver
from bentpipe.daemon.connections.transport import TransportError
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.unless import beside
from bentpipe.daemon.errors import BentpipeError, LimitReached
from bentpipe.daemon.fleet.batched_release import BatchedEvent
from bentpipe.proto.errors import GreetingError

HOLD_ENDS = (BentpipeError, GreetingError, TransportError, ConnectionOver)
"""What can end a hold: the client's side or the work's."""


class Hold:
    """A client that is being held: see fleet's `Waiting`. What waits raises one of HOLD_ENDS if the client ends the hold."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def until(self, over: BatchedEvent) -> None:
        """Read the client until `over` is set."""
        with trio.CancelScope() as reading:
            over.when_set(reading.cancel)
            await self._caller.read_while_held()

    async def rest(self, seconds: float) -> None:
        """Read the client for so long."""
        with trio.move_on_after(seconds):
            await self._caller.read_while_held()

    async def during(self, work: Callable[[], Awaitable[None]]) -> None:
        """Read the client until `work` is done. Raises what it raises of HOLD_ENDS."""
        await beside(self._caller.read_while_held, work, HOLD_ENDS)

    def end(self) -> None:
        """The client's transport is used otherwise from now on, and its place cannot be evicted."""
        self._caller.place.scope = None


@contextlib.contextmanager
def held(caller: Caller) -> Iterator[Hold]:
    """Hold the client for as long as the block runs.

    The block is cancelled if the client's place has to be given to another principal's client (see `quotas.py`). Raises
    BentpipeError, GreetingError, TransportError, ConnectionOver: what ended the block or the hold.
    """
    place = caller.place
    try:
        with trio.CancelScope() as place.scope:
            place.cost(HELD_BYTES)
            try:
                yield Hold(caller)
            finally:
                place.scope = None
        if place.eviction_words is not None:
            raise LimitReached(place.eviction_words)
    except HOLD_ENDS:
        place.cost(-HELD_BYTES)
        raise
