"""The keeper's event loop: one thread, one epoll, callbacks by descriptor, timers. A callback that fails ends no other."""

import heapq
import itertools
import select
import sys
import time
import traceback
from collections.abc import Callable

Ready = Callable[[int], None]
"""Called with the epoll events of its descriptor."""
READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Loop:
    """Waits for descriptors and times. Every method is short and waits for nothing, except `run_once`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def watch(self, fd: int, ready: Ready, events: int = READ) -> None:
        """Call `ready` whenever the descriptor has one of `events`. Watching it anew replaces what was asked for."""
        if fd in self._ready:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._ready[fd] = ready

    def forget(self, fd: int) -> None:
        """Watch a descriptor no more; call it before the descriptor is closed. Does nothing if it is not watched."""
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call once, after `delay_s`."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._numbers), call))

    def run_once(self) -> None:
        """Wait until something is ready or due, and make the calls."""
        timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        for fd, events in self._epoll.poll(timeout):
            ready = self._ready.get(fd)
            if ready is not None:  # an earlier call of this round may have closed it
                self._guard(lambda ready=ready, events=events: ready(events))  # type: ignore[misc]
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            self._guard(heapq.heappop(self._timers)[2])

    def close(self) -> None:
        """Close the epoll."""
        self._epoll.close()

    @staticmethod
    def _guard(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            traceback.print_exc(file=sys.stderr)
