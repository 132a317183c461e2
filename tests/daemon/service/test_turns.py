"""The meter sees a turn that lasts, by the clock and by the CPU."""

import time

import trio

from bentpipe.daemon.service.turns import LONG_TURN_S, TurnMeter


async def test_a_long_turn_is_counted() -> None:
    meter = TurnMeter()
    trio.lowlevel.add_instrument(meter)
    try:
        await trio.lowlevel.checkpoint()
        before = meter.statistics()
        until = time.thread_time() + 1.2 * LONG_TURN_S
        while time.thread_time() < until:
            pass
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
    finally:
        trio.lowlevel.remove_instrument(meter)
    after = meter.statistics()
    assert after.long_turns >= before.long_turns + 1
    assert after.turns >= before.turns + 2
    assert after.longest_s >= after.longest_cpu_s >= LONG_TURN_S
    assert after.busy_s >= before.busy_s + LONG_TURN_S
