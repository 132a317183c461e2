"""One deadline for many connections, each counted from its own beginning. Those that are late together are ended a few at a
time.

Ten thousand half-open connections that came within one second are late within one second too. With Trio's own deadlines all
of them would end in one turn of the thread, and no other client would be read meanwhile.
"""

import collections
from collections.abc import Callable
from types import TracebackType

import trio

ENDS_A_TURN = 64
"""Each takes some 0.1 ms."""


class Timed:
    """A cancel scope in a queue of deadlines. The queue keeps no scope that is over. Small, since there are thousands."""

    __slots__ = ("_scope",)

    def __init__(self) -> None:
        self._scope: trio.CancelScope | None = trio.CancelScope()

    def __enter__(self) -> trio.CancelScope:
        """Enter the scope; it can be entered once."""
        assert self._scope is not None
        return self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Exit the scope, and let go of it."""
        scope, self._scope = self._scope, None
        assert scope is not None
        return scope.__exit__(kind, error, traceback)

    def end(self) -> bool:
        """Cancel the scope. Returns whether it was still running."""
        if self._scope is None:
            return False
        self._scope.cancel()
        return True


class TimedCall:
    """A call in a queue of deadlines: what ends something that is not a task. As small as `Timed`."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def forget(self) -> None:
        """It came in time: the call is not made."""
        self._call = None

    def end(self) -> bool:
        """Make the call. Returns whether it was still to be made."""
        call, self._call = self._call, None
        if call is not None:
            call()
        return call is not None


class Deadlines:
    """Ends what takes longer than `seconds`, while `run_deadlines` runs."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        """For what begins from now on. After a change to less, they end no sooner than the older ones before them."""
        self._queue: collections.deque[tuple[float, Timed | TimedCall]] = collections.deque()
        self._woken = trio.Event()

    def scope(self) -> Timed:
        """Make a context manager for a cancel scope whose time begins now."""
        timed = Timed()
        self._append(timed)
        return timed

    def call(self, call: Callable[[], None]) -> TimedCall:
        """Have something called once its time, which begins now, is over; it must not wait."""
        timed = TimedCall(call)
        self._append(timed)
        return timed

    def _append(self, timed: Timed | TimedCall) -> None:
        self._queue.append((trio.current_time() + self.seconds, timed))
        self._woken.set()

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
