"""Watches a client that is held: its PINGs are answered, and if it leaves, the work for it is cancelled."""

import contextlib
from collections.abc import AsyncIterator

import trio

from bentpipe.daemon.connections.held_bytes import HELD_BYTES
from bentpipe.daemon.connections.outcomes import ConnectionOver
from bentpipe.daemon.connections.transport import TransportError
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.errors import BentpipeError, LimitReached
from bentpipe.proto.errors import GreetingError

HoldEnd = BentpipeError | GreetingError | TransportError | ConnectionOver
HOLD_ENDS = (BentpipeError, GreetingError, TransportError, ConnectionOver)
"""What can end a hold: the client's side or the work's."""


class Hold:
    """A client that is being held."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._reading = trio.CancelScope()
        self._ended = trio.Event()

    async def watch(self) -> None:
        """Read the client until `stop_watching`. Raises what ends the hold."""
        try:
            with self._reading:
                await self._caller.read_while_held()
        finally:
            self._ended.set()

    async def stop_watching(self) -> None:
        """Stop, before the client's transport is used otherwise. From then on the client's place cannot be evicted."""
        self._caller.place.scope = None
        self._reading.cancel()
        await self._ended.wait()


@contextlib.asynccontextmanager
async def held(caller: Caller) -> AsyncIterator[Hold]:
    """Hold the client for as long as the block runs, and watch it meanwhile.

    The block is cancelled if the client leaves, or if its place has to be given to another principal's client (see
    `quotas.py`). Raises BentpipeError, GreetingError, TransportError, ConnectionOver: what ended the block or the hold.
    """
    hold, place = Hold(caller), caller.place
    failure: HoldEnd | None = None
    async with trio.open_nursery() as nursery:

        async def watch_client() -> None:
            nonlocal failure
            try:
                await hold.watch()
            except HOLD_ENDS as exc:
                failure = exc
                nursery.cancel_scope.cancel()

        nursery.start_soon(watch_client)
        place.scope = nursery.cancel_scope
        place.cost(HELD_BYTES)
        try:
            yield hold
        except HOLD_ENDS as exc:
            failure = exc
        finally:
            place.scope = None
        nursery.cancel_scope.cancel()
    if failure is None and place.eviction_words is not None:
        failure = LimitReached(place.eviction_words)
    if failure is None:
        return
    place.cost(-HELD_BYTES)
    try:
        raise failure
    finally:
        # Or its traceback would keep this frame, and all that hangs on it, until the next collection.
        failure = None
