"""One deadline for everybody, each from its own beginning; those who are late together are ended a few at a time.

Ten thousand half-open connections that came within a second are late within a second too. Trio's own deadlines would
all fall in one turn of the thread, in which nobody else is heard.
"""

import collections
import contextlib
from collections.abc import Iterator

import trio

ENDS_A_TURN = 64
"""At some 0.1 ms each."""


class Deadlines:
    """Cancels what takes longer than `seconds`, while `run_deadlines` runs."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # In the order of their ends, since all have the same time. What ended in time has left an empty list.
        self._queue: collections.deque[tuple[float, list[trio.CancelScope]]] = collections.deque()
        self._woken = trio.Event()

    @contextlib.contextmanager
    def scope(self) -> Iterator[trio.CancelScope]:
        """A cancel scope that is cancelled when its time is up."""
        with trio.CancelScope() as scope:
            live = [scope]
            self._queue.append((trio.current_time() + self._seconds, live))
            self._woken.set()
            try:
                yield scope
            finally:
                live.clear()

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
            _, live = self._queue.popleft()
            for scope in live:
                scope.cancel()
                ended += 1
