"""Lets a crowd that waits for one thing go on a few at a time.

When a wake ends, every waiter is free in the same instant, and each has work to do at once: dial, replay, or a refusal. If
all of them did it in one turn of the Trio thread, no other client would be read for a second. So the decision holds at once,
and only the tasks learn of it in turns. A client that comes later does not wait behind the crowd.
"""

import collections
from collections.abc import Callable

import trio

WAKES_A_TURN = 16
"""Waiters in one turn. Each needs some 0.3 ms in all, and earlier ones are still at work: that makes a turn of about 5 to
10 ms."""


class BatchedRelease:
    """Makes events, and sets them for their waiters in the order of `set`."""

    def __init__(self) -> None:
        self._queue: collections.deque[Callable[[], object]] = collections.deque()

    def event(self) -> "BatchedEvent":
        """A new one."""
        return BatchedEvent(self)

    def release(self, wake: Callable[[], object]) -> None:
        """Call `wake`, which must not raise, when its turn comes."""
        if not self._queue:
            self._next_turn()
        self._queue.append(wake)

    def _next_turn(self) -> None:
        trio.lowlevel.current_trio_token().run_sync_soon(self._wake_some)

    def _wake_some(self) -> None:
        for _ in range(min(WAKES_A_TURN, len(self._queue))):
            self._queue.popleft()()
        if self._queue:
            self._next_turn()


class BatchedEvent:
    """Like trio.Event, but the waiting task goes on when its turn comes."""

    def __init__(self, batches: BatchedRelease) -> None:
        self._batches = batches
        self._is_set = False
        self._event = trio.Event()
        self._wake: Callable[[], object] | None = None

    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._is_set

    def set(self) -> None:
        """Let the waiter go on. If it does not wait yet, it will not have to."""
        if self._is_set:
            return
        self._is_set = True
        if self._wake is not None:
            self._batches.release(self._wake)
        elif self._event.statistics().tasks_waiting:
            self._batches.release(self._event.set)
        else:
            self._event.set()

    async def wait(self) -> None:
        """Wait for it."""
        await self._event.wait()

    def when_set(self, wake: Callable[[], object]) -> None:
        """For a task that does something else instead of `wait`: call `wake`, which must not raise, in the task's turn.

        If the event is set already, that is now.
        """
        if self._is_set:
            wake()
        else:
            self._wake = wake
