"""Token buckets, on trio's own clock."""

import pytest
import trio
from trio.testing import MockClock

from bentpipe.config.rates import RateSection
from bentpipe.daemon.providers.ec2.limiter import FIRST_PAUSE_S, LONGEST_PAUSE_S, Limiter


async def test_a_burst_and_then_the_rate(autojump_clock: MockClock) -> None:
    limiter = Limiter(RateSection(burst=3, per_s=2))
    began = trio.current_time()
    taken = []
    for _ in range(7):
        await limiter.take()
        taken.append(trio.current_time() - began)
    assert taken == pytest.approx([0, 0, 0, 0.5, 1, 1.5, 2])
    await trio.sleep(100)
    began = trio.current_time()
    for _ in range(4):
        await limiter.take()
    assert trio.current_time() - began == pytest.approx(0.5)


async def test_first_come_first_served(autojump_clock: MockClock) -> None:
    limiter = Limiter(RateSection(burst=1, per_s=1))
    served = []

    async def take(name: int) -> None:
        await trio.sleep(name / 100)
        await limiter.take()
        served.append(name)

    async with trio.open_nursery() as nursery:
        for name in (3, 1, 2, 0):
            nursery.start_soon(take, name)
    assert served == [0, 1, 2, 3]


async def test_who_gives_up_takes_nothing(autojump_clock: MockClock) -> None:
    limiter = Limiter(RateSection(burst=1, per_s=0.1))
    await limiter.take()
    with trio.move_on_after(1) as scope:
        await limiter.take()
    assert scope.cancelled_caught
    began = trio.current_time()
    await limiter.take()
    assert trio.current_time() - began == pytest.approx(9)


async def test_after_a_refusal_there_is_silence_that_grows(autojump_clock: MockClock) -> None:
    limiter = Limiter(RateSection(burst=100, per_s=100))
    pauses = []
    for _ in range(7):
        await limiter.take()
        limiter.throttled()
        began = trio.current_time()
        await limiter.take()
        pauses.append(trio.current_time() - began)
    assert pauses == pytest.approx([1, 2, 4, 8, 16, LONGEST_PAUSE_S, LONGEST_PAUSE_S])
    limiter.answered()
    limiter.throttled()
    began = trio.current_time()
    await limiter.take()
    assert trio.current_time() - began == pytest.approx(FIRST_PAUSE_S)
