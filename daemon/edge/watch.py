"""Watches a client while something is done for it: its PINGs are answered, and its leaving ends what is done."""

from collections.abc import Awaitable, Callable

import trio

from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.held_bytes import HELD_BYTES
from bentpipe.daemon.edge.outcomes import Gone
from bentpipe.daemon.edge.transport import TransportError
from bentpipe.daemon.errors import BentpipeError, LimitReached
from bentpipe.proto.errors import GreetingError

HoldEnd = BentpipeError | GreetingError | TransportError | Gone
HOLD_ENDS = (BentpipeError, GreetingError, TransportError, Gone)
"""What can end a hold, on either side of it."""

StopWatching = Callable[[], Awaitable[None]]


async def watched(caller: Caller, work: Callable[[StopWatching], Awaitable[None]]) -> None:
    """Run `work`, and watch the client until it is done or has called what it is given.

    Until then the client can be let go for the sake of other principals' (see `accounts.py`).

    Raises BentpipeError, GreetingError, TransportError, Gone: what ended either of them.
    """
    failure: HoldEnd | None = None
    async with trio.open_nursery() as nursery:
        watch = trio.CancelScope()
        ended = trio.Event()

        async def watch_client() -> None:
            nonlocal failure
            try:
                with watch:
                    await caller.read_while_held()
            except HOLD_ENDS as exc:
                failure = exc
                nursery.cancel_scope.cancel()
            ended.set()

        nursery.start_soon(watch_client)

        def give_way(words: str) -> None:
            nonlocal failure
            failure = LimitReached(words)
            nursery.cancel_scope.cancel()

        caller.place.on_put_out(give_way)
        caller.place.cost(HELD_BYTES)

        async def stop_watching() -> None:
            caller.place.on_put_out(None)
            watch.cancel()
            await ended.wait()

        try:
            await work(stop_watching)
        except HOLD_ENDS as exc:
            failure = exc
        caller.place.on_put_out(None)
        nursery.cancel_scope.cancel()
    if failure is None:
        return
    caller.place.cost(-HELD_BYTES)
    try:
        raise failure
    finally:
        # Or its traceback would keep this frame, and all that hangs on it, until the next collection.
        failure = None
