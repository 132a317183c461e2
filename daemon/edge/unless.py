"""Does something while a lease holds: a task must not go on with an address that is no longer the satellite's."""

from collections.abc import Awaitable, Callable

import trio

from bentpipe.daemon.errors import BentpipeError
from bentpipe.daemon.tasks import Decision, Owner, run_owned


async def unless(over: trio.Event, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` until it is done, or cancel it once `over` is set. Raises what it raises of BentpipeError."""
    failure: BentpipeError | None = None
    async with trio.open_nursery() as nursery:

        async def end_if_over() -> None:
            await over.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(run_owned, Owner("lease", decision=Decision.GIVE_UP), end_if_over)
        try:
            await work()
        except BentpipeError as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is None:
        return
    try:
        raise failure
    finally:
        failure = None  # or its traceback would keep this frame until the next collection
