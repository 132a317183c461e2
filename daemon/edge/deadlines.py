"""One deadline for everybody, each from its own beginning; those who are late together are ended a few at a time.

Ten thousand half-open connections that came within a second are late within a second too. Trio's own deadlines would
all fall in one turn of the thread, in which nobody else is heard.
"""

import collections
from types import TracebackType

import trio

ENDS_A_TURN = 64
"""At some 0.1 ms each."""


class Timed:
    """A cancel scope in a queue of deadlines; it leaves nothing there once it is over. Small: there are thousands."""

    __slots__ = ("_scope",)

    def __init__(self) -> None:
        self._scope: trio.CancelScope | None = trio.CancelScope()

    def __enter__(self) -> trio.CancelScope:
        """Enter the scope, which is entered once."""
        assert self._scope is not None
        return self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Exit the scope, and be no more in anybody's way."""
        scope, self._scope = self._scope, None
        assert scope is not None
        return scope.__exit__(kind, error, traceback)

    def end(self) -> bool:
        """Cancel the scope. Returns whether it was still there."""
        if self._scope is None:
            return False
        self._scope.cancel()
        return True


class Deadlines:
    """Cancels what takes longer than `seconds`, while `run_deadlines` runs."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # In the order of their ends, since all have the same time.
        self._queue: collections.deque[tuple[float, Timed]] = collections.deque()
        self._woken = trio.Event()

    def scope(self) -> Timed:
        """A context manager for a cancel scope that is cancelled when its time is up, from now on."""
        timed = Timed()
        self._queue.append((trio.current_time() + self._seconds, timed))
        self._woken.set()
        return timed

    async def run_deadlines(self) -> None:
        """Watch the time for ever."""
        while True:
            if not self._queue:
                self._woken = trio.Event()
                await self._woken.wait()
            await trio.sleep_until(self._queue[0][0])
            self._end_some()

    def _end_some(self) -> None:
        ended, now = 0, trio.current_time()
        while self._queue and self._queue[0][0] <= now and ended < ENDS_A_TURN:
            ended += self._queue.popleft()[1].end()
