"""Does something in one block of the caller for as long as a lease lasts, or beside something else."""

from collections.abc import Awaitable, Callable

import trio

from bentpipe.daemon.errors import BentpipeError


async def unless(over: trio.Event, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` until it is done, or cancel it once `over` is set. Raises what it raises of BentpipeError.

    A task must not go on with an address that is no longer the satellite's.
    """
    await beside(over.wait, work)


async def beside(
    companion: Callable[[], Awaitable[None]],
    work: Callable[[], Awaitable[None]],
    errors: tuple[type[Exception], ...] = (BentpipeError,),
) -> None:
    """Run both until one of them ends, and cancel the other. Raises what either raises of `errors`, and no group."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def accompany() -> None:
            nonlocal failure
            try:
                await companion()
            except errors as exc:
                failure = exc
            nursery.cancel_scope.cancel()

        nursery.start_soon(accompany)
        try:
            await work()
        except errors as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is None:
        return
    try:
        raise failure
    finally:
        failure = None  # or its traceback would keep this frame until the next collection
