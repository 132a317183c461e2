"""The recorder between a fleet that never waits and a ledger that fails when it likes; time is the test's."""

import logging
from collections.abc import Collection, Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from beds.contracts.ledger import A, B, Clock
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.ledger.contract import Interval, LedgerSpan, Stamp, StampedTransition
from bentpipe.daemon.ledger.recorder import BATCH_LIMIT, BEAT_S, RETRY_S, Recorder
from bentpipe.daemon.model import SatelliteKey, SatelliteState, Transition

S = SatelliteState


class FakeLedger:
    """Notes what it is told; raises `error` while it is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.begun: list[tuple[SatelliteKey, ...]] = []
        self.changes: list[StampedTransition] = []
        self.batches: list[int] = []
        self.beats = 0
        self.ended = self.closed = False

    def _check(self) -> None:
        assert not self.closed
        if self.error is not None:
            raise self.error

    async def begin(self, keys: Collection[SatelliteKey], at: Stamp, in_use: Collection[SatelliteKey] = ()) -> None:
        self._check()
        self.begun.append(tuple(keys))

    async def record(self, transitions: Sequence[StampedTransition]) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        assert self.begun
        self.changes += transitions
        self.batches.append(len(transitions))

    async def beat(self, at: Stamp) -> None:
        self._check()
        self.beats += 1

    async def end(self, at: Stamp, in_use: Collection[SatelliteKey] = ()) -> None:
        self._check()
        self.ended = True

    async def intervals(self, since_us: int, until_us: int) -> list[Interval]:
        raise NotImplementedError

    async def span(self, since_us: int, until_us: int) -> LedgerSpan:
        raise NotImplementedError

    async def aclose(self) -> None:
        self.closed = True


def move(key: SatelliteKey, after: SatelliteState, cause: str = "test") -> Transition:
    return Transition(key, S.UNKNOWN, after, 0.0, cause)


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


async def test_changes_in_order_then_the_end(
    ledger: FakeLedger, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    recorder = Recorder(ledger, [A, B])
    states = [S.SLEEP, S.STARTING, S.OPERATIONAL] * BATCH_LIMIT
    recorder.record_nowait(move(A, S.FAILED, "before it runs"))
    nursery.start_soon(recorder.run_recorder)
    for state in states:
        recorder.record_nowait(move(B, state))
    await wait_all_tasks_blocked()
    assert ledger.begun == [(A, B)]
    assert [change.transition.after for change in ledger.changes] == [S.FAILED, *states]
    assert [change.serial for change in ledger.changes] == list(range(1, len(states) + 2))
    assert max(ledger.batches) == BATCH_LIMIT
    recorder.record_nowait(move(A, S.SLEEP, "in the last moment"))
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await wait_all_tasks_blocked()
    assert ledger.changes[-1].transition.cause == "in the last moment"
    assert ledger.ended
    assert ledger.closed
    assert recorder.statistics().recorded == len(states) + 2


async def test_a_sign_of_life_while_nothing_happens(
    ledger: FakeLedger, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(Recorder(ledger, [A]).run_recorder)
    await trio.sleep(10.5 * BEAT_S)
    assert ledger.beats == 11


@pytest.mark.parametrize("error", [StoreError("disk full"), RuntimeError("a bug")])
async def test_a_ledger_that_fails_is_told_once_counted_and_tried_again(
    ledger: FakeLedger,
    nursery: trio.Nursery,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.setattr(logging.getLogger("bentpipe"), "propagate", True)
    recorder = Recorder(ledger, [A])
    ledger.error = error
    nursery.start_soon(recorder.run_recorder)
    recorder.record_nowait(move(A, S.SLEEP))
    await trio.sleep(3.5 * RETRY_S)
    recorder.record_nowait(move(A, S.STARTING))
    assert recorder.statistics().failures == 4
    assert [record.message for record in caplog.records].count("ledger fails") == 1
    ledger.error = None
    await trio.sleep(RETRY_S)
    assert [change.transition.after for change in ledger.changes] == [S.SLEEP, S.STARTING]
    assert recorder.statistics().queued == recorder.statistics().lost == 0
    assert caplog.records[-1].message == "ledger works again"


async def test_past_the_limit_the_newest_is_kept_and_the_rest_is_unknown(
    ledger: FakeLedger, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    clock = Clock()
    recorder = Recorder(ledger, [A, B], queue_limit=2, now=clock.now)
    ledger.error = StoreError("disk full")
    nursery.start_soon(recorder.run_recorder)
    await wait_all_tasks_blocked()
    for key, state in (
        *((A, S.SLEEP), (A, S.STARTING)),
        *((A, S.OPERATIONAL), (B, S.SLEEP), (A, S.STOPPING), (A, S.SLEEP)),
    ):
        clock.advance(1)
        recorder.record_nowait(move(key, state))
    ledger.error = None
    await trio.sleep(2 * RETRY_S)
    seen = [
        (change.transition.key.name, change.transition.after.value, change.at.boot_us // 1_000_000 - 5)
        for change in ledger.changes
    ]
    assert seen == [("a", "sleep", 1), ("a", "starting", 2), ("a", "unknown", 3), ("b", "sleep", 4), ("a", "sleep", 6)]
    assert [change.serial for change in ledger.changes] == sorted({change.serial for change in ledger.changes})
    assert ledger.changes[2].transition.cause == "2 changes could not be recorded"
    assert recorder.statistics().lost == 2


async def test_a_ledger_that_fails_at_the_end_holds_nobody_up(
    ledger: FakeLedger, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    recorder = Recorder(ledger, [A])
    ledger.error = StoreError("disk full")
    async with trio.open_nursery() as own:
        own.start_soon(recorder.run_recorder)
        await wait_all_tasks_blocked()
        own.cancel_scope.cancel()
    assert ledger.closed
    assert not ledger.ended
