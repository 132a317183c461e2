"""Does something unless a lease is over first: nobody goes on talking to what is no longer the satellite."""

from collections.abc import Awaitable, Callable

import trio

from bentpipe.daemon.errors import BentpipeError
from bentpipe.daemon.tasks import Decision, Owner, run_owned


async def unless(over: trio.Event, work: Callable[[], Awaitable[None]]) -> bool:
    """Run `work` until it is done or `over` is set. Returns whether it is done; raises what it raises of BentpipeError."""
    done = False
    failure: BentpipeError | None = None
    async with trio.open_nursery() as nursery:

        async def end_if_over() -> None:
            await over.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(run_owned, Owner("lease", decision=Decision.GIVE_UP), end_if_over)
        try:
            await work()
            done = True
        except BentpipeError as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is None:
        return done
    try:
        raise failure
    finally:
        failure = None  # or its traceback would keep this frame until the next collection
