"""Who owns a task, and what its failure means: every task of the daemon's tree runs in one of these three ways.

A failure stays as small as its cause. So an exception in one part must never reach the nursery of its neighbours. The code
that starts a task also says what a failure means: `run_owned` runs a task that goes on for ever or may be given up,
`contained` runs one step of a task. Each failure is logged with its traceback and counted by the owner's name
(`bentpipe_task_failures_total`). `tests/daemon/test_owners.py` finds tasks without an owner.

Cancellation, KeyboardInterrupt and SystemExit pass through. A nursery inside may raise them in one group with exceptions
(something fails while it is being cancelled). Then the exceptions are noted, and only the rest is raised.
"""

import collections
import contextlib
import dataclasses
import enum
import logging
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Protocol, TypeVarTuple

import trio

log = logging.getLogger("bentpipe")

FIRST_PAUSE_S, MOST_PAUSE_S = 0.1, 30.0
"""The wait before a task is started again, doubling. A task that fails at once must not fill the log and the core."""
LEFT_OUT = "the step is left out"
SOUND_S = 60.0
"""A task that has run for this long has worked. Its next failure is the first of a new series."""

Ts = TypeVarTuple("Ts")
"""A task's arguments."""

_failures: trio.lowlevel.RunVar[collections.Counter[str]] = trio.lowlevel.RunVar("bentpipe_task_failures")


class Decision(enum.Enum):
    """What an owner does after a failure of its task."""

    RESTART = "it is started again"
    GIVE_UP = "it is given up"


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """Who decides about a task. `told` is called with each failure, before anything else is done about it."""

    task: str
    """Names the kind of task in the log and in the metric. There are few kinds, and no peer can choose one."""
    subject: str = ""
    """Which task of the kind: the name of a satellite, or a peer."""
    decision: Decision = Decision.RESTART
    told: Callable[[Exception], None] | None = None


def task_failures() -> Mapping[str, int]:
    """Failures since the beginning of this run of Trio, by the owner's name."""
    return _counter()


def _counter() -> collections.Counter[str]:
    try:
        return _failures.get()
    except LookupError:
        counter: collections.Counter[str] = collections.Counter()
        _failures.set(counter)
        return counter


def note_failure(owner: Owner, failure: Exception, decision: str | None = None) -> None:
    """Count a failure and log it; `decision` is what is done about it, by default the owner's own."""
    _counter()[owner.task] += 1
    fields = {"task": owner.task, "error": f"{type(failure).__name__}: {failure}"}
    if owner.subject:
        fields["subject"] = owner.subject
    fields["decision"] = decision or owner.decision.value
    with contextlib.suppress(Exception):  # a log that fails does not count as a second failure
        log.error("a task failed", extra={"fields": fields}, exc_info=failure)
    if owner.told is not None:
        with contained(Owner(owner.task, owner.subject)):
            owner.told(failure)


class contained:
    """`with contained(owner):` runs a step. If it fails, the failure is noted, and the code after the block goes on."""

    __slots__ = ("_decision", "_owner")

    def __init__(self, owner: Owner, decision: str = LEFT_OUT) -> None:
        self._owner = owner
        self._decision = decision

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Note an Exception. Of a group, raise only the rest."""
        if error is None:
            return False
        if isinstance(error, Exception):
            note_failure(self._owner, error, self._decision)
            return True
        if isinstance(error, BaseExceptionGroup):
            _pass_on(self._owner, error, self._decision)
        return False


class Starts(Protocol[*Ts]):
    """A task for `nursery.start`: it says when it has started."""

    def __call__(self, *arguments: *Ts, task_status: trio.TaskStatus[None]) -> Awaitable[object]:
        """Run the task."""


async def run_owned(owner: Owner, task: Callable[[*Ts], Awaitable[object]], *arguments: *Ts) -> None:
    """Run `task` until it returns or is cancelled. `owner` decides what follows a failure. Raises no Exception."""
    if (
        owner.decision is Decision.GIVE_UP
    ):  # thousands of connections are such tasks, so this adds no loop and no frame to each
        with contained(owner, owner.decision.value):
            await task(*arguments)
    else:
        await _run(owner, lambda: task(*arguments))


async def start_owned(
    owner: Owner,
    task: Starts[*Ts],
    *arguments: *Ts,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """As `run_owned`, for `nursery.start`: `task` takes a `task_status`.

    If it fails before it has started, it still counts as started. Nobody waits for the next attempts.
    """
    once = _StartedOnce(task_status)
    await _run(owner, lambda: task(*arguments, task_status=once), once.started)
    once.started()


async def _run(
    owner: Owner, attempt: Callable[[], Awaitable[object]], on_failure: Callable[[], None] = lambda: None
) -> None:
    pause_s = FIRST_PAUSE_S
    while True:
        began = trio.current_time()
        try:
            await attempt()
            return
        except Exception as exc:
            note_failure(owner, exc)
        except BaseExceptionGroup as group:
            _pass_on(owner, group)
        on_failure()
        if owner.decision is Decision.GIVE_UP:
            return
        if trio.current_time() - began >= SOUND_S:
            pause_s = FIRST_PAUSE_S
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, MOST_PAUSE_S)


def _pass_on(owner: Owner, group: BaseExceptionGroup[BaseException], decision: str | None = None) -> None:
    """Note the exceptions of a group that has more than these, and raise the rest."""
    exceptions, rest = group.split(Exception)
    if isinstance(exceptions, ExceptionGroup):
        note_failure(owner, exceptions, decision)
    if rest is not None:
        raise rest


class _StartedOnce(trio.TaskStatus[None]):
    """Passes on the first `started` only: a task that is started again calls it again."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status
        self._done = False

    def started(self, value: None = None) -> None:
        """See trio.TaskStatus."""
        if not self._done:
            self._done = True
            self._task_status.started()
