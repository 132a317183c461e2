"""Lets a crowd that waits for one thing go on a few at a time.

A wake that ends frees every waiter in the same instant, and each has work to do at once: dial, replay, or a refusal. All
of them in one turn of the Trio thread would be a second in which nobody else is heard. What was decided stands at once;
only the tasks learn of it in turns. Nobody who comes later waits behind the crowd.
"""

import collections

import trio

WAKES_A_TURN = 16
"""At some 0.6 ms of work each in all, and with those let in before still under way, a turn of about 10 ms."""


class Usher:
    """Makes events, and sets them for their waiters in the order of `set`."""

    def __init__(self) -> None:
        self._queue: collections.deque[trio.Event] = collections.deque()

    def event(self) -> "UsheredEvent":
        """A new one."""
        return UsheredEvent(self)

    def let_in(self, event: trio.Event) -> None:
        """Set `event` when its turn comes."""
        if not self._queue:
            self._next_turn()
        self._queue.append(event)

    def _next_turn(self) -> None:
        trio.lowlevel.current_trio_token().run_sync_soon(self._wake_some)

    def _wake_some(self) -> None:
        for _ in range(min(WAKES_A_TURN, len(self._queue))):
            self._queue.popleft().set()
        if self._queue:
            self._next_turn()


class UsheredEvent:
    """As trio.Event, but who waits for it goes on in its turn."""

    def __init__(self, usher: Usher) -> None:
        self._usher = usher
        self._is_set = False
        self._event = trio.Event()

    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._is_set

    def set(self) -> None:
        """Let the waiter go on; at once, if it does not wait yet."""
        if self._is_set:
            return
        self._is_set = True
        if self._event.statistics().tasks_waiting:
            self._usher.let_in(self._event)
        else:
            self._event.set()

    async def wait(self) -> None:
        """Wait for it."""
        await self._event.wait()
