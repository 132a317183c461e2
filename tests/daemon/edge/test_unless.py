"""Work that is cancelled once a lease is over."""

import pytest
import trio
import trio.testing

from bentpipe.daemon.edge.unless import unless
from bentpipe.daemon.errors import DialFailed


async def test_work_that_ends_ends_the_wait(autojump_clock: trio.testing.MockClock) -> None:
    done: list[float] = []

    async def work() -> None:
        await trio.sleep(1)
        done.append(trio.current_time())

    await unless(trio.Event(), work)
    assert len(done) == 1


@pytest.mark.parametrize("at_s", [0, 1])
async def test_work_is_cancelled_once_the_lease_is_over(autojump_clock: trio.testing.MockClock, at_s: float) -> None:
    over = trio.Event()
    cancelled: list[float] = []

    async def work() -> None:
        try:
            await trio.sleep(10)
        except trio.Cancelled:
            cancelled.append(trio.current_time())
            raise

    async with trio.open_nursery() as nursery:
        began = trio.current_time()

        async def end_lease() -> None:
            await trio.sleep(at_s)
            over.set()

        nursery.start_soon(end_lease)
        await unless(over, work)
    assert cancelled == [pytest.approx(began + at_s)]


async def test_an_error_of_the_work_is_raised_by_itself() -> None:
    """Not in a group of the nursery's."""

    async def work() -> None:
        raise DialFailed("refused")

    with pytest.raises(DialFailed, match="refused"):
        await unless(trio.Event(), work)
