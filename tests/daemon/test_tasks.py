"""The supervisor: what fails is started again, later every time, or given up; what is not a failure passes through."""

import logging
from collections.abc import Callable

import pytest
import trio

from bentpipe.daemon.tasks import (
    FIRST_PAUSE_S,
    MOST_PAUSE_S,
    SOUND_S,
    Decision,
    Owner,
    contained,
    run_owned,
    start_owned,
    task_failures,
)

OWNER = Owner("test", "one")


class Failing:
    """Fails as it is told, and notes when it was started."""

    def __init__(self, failure: Callable[[], BaseException], times: int, *, sound_s: float = 0.0) -> None:
        self.failure, self.times, self.sound_s = failure, times, sound_s
        self.began: list[float] = []

    async def run(self) -> None:
        self.began.append(trio.current_time())
        await trio.sleep(self.sound_s)
        if len(self.began) <= self.times:
            raise self.failure()


@pytest.mark.parametrize(
    "failure",
    [ValueError, MemoryError, AssertionError, OSError, lambda: ExceptionGroup("two", [KeyError(), OSError()])],
)
async def test_it_is_started_again_until_it_ends(
    autojump_clock: trio.testing.MockClock, failure: Callable[[], BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    task = Failing(failure, 20)
    with caplog.at_level(logging.ERROR, "bentpipe"):
        await run_owned(OWNER, task.run)
    pauses = [after - before for before, after in zip(task.began, task.began[1:], strict=False)]
    assert pauses[:3] == pytest.approx([FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S])
    assert max(pauses) == pytest.approx(MOST_PAUSE_S)
    assert task_failures() == {"test": 20}


async def test_what_ran_for_long_begins_a_new_series(autojump_clock: trio.testing.MockClock) -> None:
    task = Failing(ValueError, 5, sound_s=SOUND_S + 1)
    await run_owned(OWNER, task.run)
    pauses = [after - before - SOUND_S - 1 for before, after in zip(task.began, task.began[1:], strict=False)]
    assert pauses == pytest.approx([FIRST_PAUSE_S] * 5)


async def test_it_is_given_up_and_who_waits_is_told() -> None:
    told: list[Exception] = []
    task = Failing(ValueError, 5)
    await run_owned(Owner("test", decision=Decision.GIVE_UP, told=told.append), task.run)
    assert len(task.began) == 1
    assert [type(each) for each in told] == [ValueError]


async def test_one_that_fails_before_it_has_started_holds_up_nobody(autojump_clock: trio.testing.MockClock) -> None:
    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        if len(attempts) < 3:
            attempts.append(trio.current_time())
            raise OSError("no")
        task_status.started()
        await trio.sleep_forever()

    attempts: list[float] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(start_owned, OWNER, run)
        assert len(attempts) == 1
        await trio.sleep(MOST_PAUSE_S)
        assert len(attempts) == 3
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("grouped", [False, True])
async def test_interrupts_pass(kind: type[BaseException], grouped: bool) -> None:
    def failure() -> BaseException:
        return BaseExceptionGroup("both", [kind(), ValueError()]) if grouped else kind()

    with pytest.raises(BaseExceptionGroup if grouped else kind) as raised:
        await run_owned(OWNER, Failing(failure, 1).run)
    if grouped:
        assert isinstance(raised.value, BaseExceptionGroup)
        assert [type(each) for each in raised.value.exceptions] == [kind]
        assert task_failures() == {"test": 1}


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_failure_while_it_is_cancelled_is_noted_and_the_cancelling_goes_on(grouped: bool) -> None:
    async def fail_at_the_end() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("at the end")

    async def run() -> None:
        if not grouped:
            await fail_at_the_end()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_at_the_end)
            nursery.start_soon(trio.sleep_forever)

    with trio.move_on_after(0.01) as scope:
        await run_owned(OWNER, run)
    assert scope.cancelled_caught
    assert task_failures() == {"test": 1}


async def test_a_step_is_left_out_and_a_log_or_listener_that_fails_does_not_count_as_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("this too")

    monkeypatch.setattr(logging.getLogger("bentpipe"), "error", fail)
    with contained(Owner("test", told=fail)):
        raise ValueError("no")
    assert task_failures() == {"test": 2}
    with pytest.raises(KeyboardInterrupt), contained(OWNER):
        raise KeyboardInterrupt
