"""The states of satellites as the API has them, since when, and those who want to hear each change.

A watcher hears every state, in order. If it is BACKLOG states behind, those that it has not read are dropped and the newest
is kept.
"""

import collections
import contextlib
from collections.abc import Iterator

import trio

from bentpipe.daemon.model import SatelliteKey, SatelliteState, Transition
from bentpipe.proto.compute_pb2 import SatelliteStatus

STATUS: dict[SatelliteState, SatelliteStatus] = {
    SatelliteState.UNKNOWN: SatelliteStatus.SATELLITE_STATUS_UNKNOWN,
    SatelliteState.CREATING: SatelliteStatus.SATELLITE_STATUS_CREATING,
    SatelliteState.OPERATIONAL: SatelliteStatus.SATELLITE_STATUS_OPERATIONAL,
    SatelliteState.OFFLINE: SatelliteStatus.SATELLITE_STATUS_OFFLINE,
    SatelliteState.DESTROYING: SatelliteStatus.SATELLITE_STATUS_DESTROYING,
    SatelliteState.FAILED: SatelliteStatus.SATELLITE_STATUS_FAILED,
    SatelliteState.SLEEP: SatelliteStatus.SATELLITE_STATUS_SLEEP,
    SatelliteState.STARTING: SatelliteStatus.SATELLITE_STATUS_STARTING,
    SatelliteState.STOPPING: SatelliteStatus.SATELLITE_STATUS_STOPPING,
    SatelliteState.UPDATING: SatelliteStatus.SATELLITE_STATUS_UPDATING,
}
BACKLOG = 16
"""Several whole lives of a satellite, each of four states."""


class StateWatch:
    """The states of one satellite from a moment on."""

    def __init__(self) -> None:
        self._unread: collections.deque[SatelliteState] = collections.deque()
        self._news = trio.Event()

    def tell(self, state: SatelliteState) -> None:
        """The satellite has come into a state."""
        if len(self._unread) == BACKLOG:
            self._unread.clear()
        self._unread.append(state)
        self._news.set()

    async def next(self) -> SatelliteState:
        """Wait for the next state."""
        while not self._unread:
            self._news = trio.Event()
            await self._news.wait()
        return self._unread.popleft()


class StateBoard:
    """Tells watchers of changes."""

    def __init__(self) -> None:
        self._watches: dict[SatelliteKey, set[StateWatch]] = {}
        self._since: dict[SatelliteKey, float] = {}

    def since(self, key: SatelliteKey) -> float | None:
        """When the satellite came into its state, in seconds of time.time(); None if it was not seen to change."""
        return self._since.get(key)

    def observe(self, transition: Transition) -> None:
        """A satellite has changed its state."""
        self._since[transition.key] = transition.at
        if transition.before is SatelliteState.DESTROYING:  # it is gone
            del self._since[transition.key]
        for watch in self._watches.get(transition.key, ()):
            watch.tell(transition.after)

    @contextlib.contextmanager
    def watch(self, key: SatelliteKey) -> Iterator[StateWatch]:
        """Hear every change of a satellite inside the block."""
        watch = StateWatch()
        watches = self._watches.setdefault(key, set())
        watches.add(watch)
        try:
            yield watch
        finally:
            watches.discard(watch)
            if not watches:
                self._watches.pop(key, None)
