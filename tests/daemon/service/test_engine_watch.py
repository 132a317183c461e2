"""A stuck thread in C is said to be stuck, and systemd's watchdog is not told that all is well meanwhile."""

import logging
import socket

import pytest
import trio
from trio.testing import MockClock

from bentpipe.daemon.service import engine_watch, sd
from bentpipe.daemon.service.engine_watch import LOOK_S, STUCK_S, run_engine_watch, stuck_threads
from bentpipe.native.engine import Engine, EngineOptions
from bentpipe.native.joiner import Joiner
from bentpipe.native.turns import ThreadTurns, ThreadUse

PATIENCE_S = 60.0


class FakeThreads:
    """Two threads; `running_s` is how long the second's turn has lasted."""

    running_s = 0.0

    def threads(self) -> dict[str, ThreadUse]:
        return {
            "0": ThreadUse(ThreadTurns(1, 0, 0.001, 0.0), 1.0),
            "joiner-0": ThreadUse(ThreadTurns(1, 0, 0.001, self.running_s), 1.0),
        }


def test_an_engine_at_rest_is_not_stuck() -> None:
    engine = Engine(EngineOptions(threads=2))
    assert stuck_threads(engine.threads()) == {}
    engine.close()


async def test_a_joiner_that_is_stuck_is_found(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is really stuck: in a read of a socket that blocks, which no caller may give it."""
    monkeypatch.setattr(engine_watch, "STUCK_S", 0.05)
    monkeypatch.setattr(engine_watch, "LOOK_S", 0.01)
    joiner = Joiner()
    near, far = socket.socketpair()
    try:
        with near, far, caplog.at_level(logging.WARNING, logger="bentpipe"), trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_engine_watch, joiner.threads)
                stream = joiner.open(far.fileno(), None)
                joiner.allow(stream, 1)
                while not caplog.records:
                    await trio.sleep(0.01)
                assert stuck_threads(joiner.threads()).keys() == {"joiner-0"}
                near.send(b"x")
                while len(caplog.records) < 2:
                    await trio.sleep(0.01)
                assert stuck_threads(joiner.threads()) == {}
                assert joiner.threads()["joiner-0"].turns.longest_s > 0.05
                nursery.cancel_scope.cancel()
            near.close()  # if the assertions fail, the thread reads the end
    finally:
        joiner.close()
    assert [(each.levelno, vars(each)["fields"]["thread"]) for each in caplog.records] == [
        (logging.CRITICAL, "joiner-0"),
        (logging.WARNING, "joiner-0"),
    ]
    assert joiner.threads() == {}


async def test_it_is_said_once_and_taken_back(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeThreads()
    with caplog.at_level(logging.WARNING, logger="bentpipe"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_engine_watch, engine.threads)
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
    engine = FakeThreads()
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    pings: list[str] = []

    def notify(state: str) -> bool:
        pings.append(state)
        return True

    monkeypatch.setattr(sd, "notify", notify)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sd.run_watchdog, lambda: not stuck_threads(engine.threads()))
        await trio.sleep(12)
        assert len(pings) == 3
        engine.running_s = STUCK_S + 1
        await trio.sleep(20)
        assert len(pings) == 3
        engine.running_s = 0.0
        await trio.sleep(10)
        assert len(pings) == 5
        nursery.cancel_scope.cancel()
