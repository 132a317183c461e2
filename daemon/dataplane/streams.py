"""All connections that the joiner's thread has, and the one task that takes what is new of them.

If the control plane does not read, nothing more is read for it: the joiner is paused until there is room again.
"""

from collections.abc import Callable
from typing import Protocol

import trio

from bentpipe.daemon.planes.records import Record
from bentpipe.daemon.tasks import Owner, contained
from bentpipe.native.joiner import FROM_LANE, Joiner, News, StreamId
from bentpipe.native.tls import TlsConnection

NEWS_A_TURN = 64
"""Streams of which something is new that are looked at in one turn, at some 20 us each."""

ROOM_LOOK_S = 0.1
"""Between two looks whether the control plane reads again."""


class Reports(Protocol):
    """Where records for the control plane go."""

    def send(self, record: Record) -> None: ...  # noqa: D102
    @property
    def has_room(self) -> bool: ...  # noqa: D102
    @property
    def link(self) -> object | None: ...  # noqa: D102


class HasNews(Protocol):
    """A stream: see `Stream`."""

    native: StreamId

    def take(self, news: News) -> bool: ...  # noqa: D102
    def pass_on(self) -> bool: ...  # noqa: D102
    def abandon(self, news: News) -> None: ...  # noqa: D102
    def drop(self) -> None: ...  # noqa: D102


class Streams:
    """By the joiner's ids."""

    def __init__(self, joiner: Joiner, reports: Reports) -> None:
        self.joiner = joiner
        self.reports = reports
        self._streams: dict[StreamId, HasNews] = {}
        self.by_lane: Callable[[News], None] = _unknown
        """Takes the first news of a client that C has had until now: UP or COMMITTED."""
        self._full = trio.Event()
        self._waiting: set[HasNews] = set()
        """Those with bytes for a control plane that does not read."""
        self._after: list[Callable[[], None]] = []
        """Steps for which all news that were taken must have been given."""

    def add(self, stream: HasNews) -> None:
        """From now on its news are given to it."""
        self._streams[stream.native] = stream

    def find(self, native: StreamId) -> HasNews | None:
        """The stream of this id."""
        return self._streams.get(native)

    def after_news(self, step: Callable[[], None]) -> None:
        """Do something once all news that were taken from the joiner have been given. Call it from `HasNews.take`.

        A join must be done so. It sends on what is known of both streams and what the joiner still has; of news that were
        taken and not given neither is true.
        """
        self._after.append(step)

    def free(self, stream: HasNews) -> TlsConnection | None:
        """Forget a stream that is released. Returns its TLS."""
        self.forget(stream)
        return self.joiner.free(stream.native)

    def forget(self, stream: HasNews) -> None:
        """Forget a stream that the joiner does not have any more."""
        del self._streams[stream.native]
        self._waiting.discard(stream)

    async def run_news(self) -> None:
        """Take what is new, for ever. When this is cancelled, all connections that are left are closed."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self.joiner.event_fd)
                while some := self.joiner.take(NEWS_A_TURN):
                    with self.joiner.gather():
                        self._take(some)
                    await trio.lowlevel.checkpoint()
        finally:
            trio.lowlevel.notify_closing(self.joiner.event_fd)
            self.joiner.close()
            for stream in self._streams.values():
                stream.drop()
            self._streams.clear()

    def _take(self, some: list[News]) -> None:
        # Looked up before any of them is handled: an id is used again once its stream is freed.
        came: dict[StreamId, HasNews | None] = {}
        for found, news in [(self._streams.get(each.stream), each) for each in some]:
            if found is None and news.flags & FROM_LANE:
                with contained(Owner("lane")):
                    self.by_lane(news)
                came[news.stream] = self._streams.get(news.stream)
                continue
            # What C had may have news twice among these: the first, and what has happened since.
            stream = found or came.get(news.stream)
            if stream is None or self._streams.get(news.stream) is not stream:
                continue
            with contained(Owner("stream")):
                try:
                    if not stream.take(news):
                        self._wait_for_room(stream)
                except BaseException:
                    stream.abandon(news)
                    raise
        steps, self._after = self._after, []
        for step in steps:
            with contained(Owner("stream")):
                step()

    def _wait_for_room(self, stream: HasNews) -> None:
        self._waiting.add(stream)
        self.joiner.pause(paused=True)
        self._full.set()

    async def run_room(self) -> None:
        """Let the joiner read again once the control plane does, for ever."""
        while True:
            await self._full.wait()
            while not self.reports.has_room:
                await trio.sleep(ROOM_LOOK_S)
            self._full = trio.Event()
            self.joiner.pause(paused=False)
            waiting, self._waiting = self._waiting, set()
            for stream in waiting:
                if not stream.pass_on():
                    self._wait_for_room(stream)


def _unknown(news: News) -> None:
    raise AssertionError(f"news of a client that C has had: {news}")
