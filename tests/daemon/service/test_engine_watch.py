"""A stuck engine thread is said to be stuck, and systemd's watchdog is not told that all is well meanwhile."""

import logging

import pytest
import trio
from trio.testing import MockClock

from bentpipe.daemon.service import sd
from bentpipe.daemon.service.engine_watch import LOOK_S, STUCK_S, run_engine_watch, stuck_threads
from bentpipe.native.engine import Engine, EngineOptions, ThreadTurns


class FakeEngine:
    """Two threads; `running_s` is how long the second's turn has lasted."""

    running_s = 0.0

    def thread_turns(self) -> tuple[ThreadTurns, ...]:
        return ThreadTurns(1, 0, 0.001, 0.0), ThreadTurns(1, 0, 0.001, self.running_s)


def test_an_engine_at_rest_is_not_stuck() -> None:
    engine = Engine(EngineOptions(threads=2))
    assert stuck_threads(engine) == {}
    engine.close()


async def test_it_is_said_once_and_taken_back(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    with caplog.at_level(logging.WARNING, logger="bentpipe"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_engine_watch, engine)
            await trio.sleep(3 * LOOK_S)
            assert not caplog.records
            engine.running_s = STUCK_S + 1
            await trio.sleep(3.5 * LOOK_S)
            [record] = caplog.records
            assert record.levelno == logging.CRITICAL
            assert "stuck" in record.getMessage()
            engine.running_s = 0.0
            await trio.sleep(2 * LOOK_S)
            assert [each.levelno for each in caplog.records] == [logging.CRITICAL, logging.WARNING]
            nursery.cancel_scope.cancel()


async def test_the_watchdog_hears_nothing_while_it_is_stuck(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine()
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    pings: list[str] = []

    def notify(state: str) -> bool:
        pings.append(state)
        return True

    monkeypatch.setattr(sd, "notify", notify)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sd.run_watchdog, lambda: not stuck_threads(engine))
        await trio.sleep(12)
        assert len(pings) == 3
        engine.running_s = STUCK_S + 1
        await trio.sleep(20)
        assert len(pings) == 3
        engine.running_s = 0.0
        await trio.sleep(10)
        assert len(pings) == 5
        nursery.cancel_scope.cancel()
