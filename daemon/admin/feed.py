"""Live updates for open pages: one task looks once a second while anybody listens, and tells each listener what has changed.

A listener has no queue. What it was not told yet is what differs from what it was told last, so a slow browser gets less
often, and never more. One that takes nothing for a while is dropped.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import trio

from bentpipe.daemon.admin.facts import AdminParts, HostFacts
from bentpipe.daemon.admin.http1 import Send
from bentpipe.daemon.admin.look import FleetLook, Looker
from bentpipe.daemon.admin.pages import cell_id, cells_of, event
from bentpipe.daemon.admin.viewer import Viewer

LISTENERS = 32
"""Open pages at once; a browser has one for each that is visible."""
EVERY_S = 1.0
"""Between looks while anybody listens."""
SILENCE_S = 15.0
"""After this time without an event a comment is sent, so that neither proxies nor we keep a dead connection."""
LIST_EVERY_S = 2.0
"""Between two notes that a list of connections is old: a browser then asks for the list."""
COMMENT = b": nothing new\n\n"


@dataclasses.dataclass(slots=True)
class _Told:
    """What a listener was told last."""

    anything: bool = False
    cells: dict[str, str] = dataclasses.field(default_factory=dict)
    rows: tuple[str, ...] = ()
    held: tuple[object, ...] = ()
    connections: int = -1
    connections_at: float = float("-inf")
    host: object = None


class Feed:
    """`run_feed` is the task that looks."""

    def __init__(self, looker: Looker, parts: AdminParts) -> None:
        self._looker = looker
        self._parts = parts
        self._listeners = 0
        self._wanted = trio.Event()
        self._looked = trio.Event()
        self._look: FleetLook | None = None
        self._host: HostFacts | None = None

    @property
    def listeners(self) -> int:
        """Pages that listen now."""
        return self._listeners

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another listener."""
        return self._listeners >= LISTENERS

    async def run_feed(self) -> None:
        """Look for ever, whenever anybody listens."""
        while True:
            if not self._listeners:
                self._wanted = trio.Event()
                await self._wanted.wait()
            self._look, self._host = await self._looker.look(), self._parts.host()
            self._looked.set()
            self._looked = trio.Event()
            await trio.sleep(EVERY_S)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        self._listeners += 1
        self._parts.counters.listeners += 1
        self._wanted.set()
        try:
            yield
        finally:
            self._listeners -= 1
            self._parts.counters.listeners -= 1

    async def listen(self, find: Callable[[], Viewer | None], send: Send) -> None:
        """Tell a listener of changes until it may not look any more. Raises BrokenResourceError if it is gone.

        `find` says who it is by now.
        """
        told = _Told()
        with self._listening():
            while True:
                with trio.move_on_after(SILENCE_S) as silence:
                    await self._looked.wait()
                viewer = find()
                if viewer is None:
                    await send(event("end", "signed out"))
                    return
                news = COMMENT if silence.cancelled_caught else self._news(viewer, told)
                if news:
                    await send(news)

    def _news(self, viewer: Viewer, told: _Told) -> bytes:
        look = self._look
        if look is None:
            return b""
        rows = [row for row in look.rows if viewer.sees(row.key)]
        cells = {cell_id(str(row.key), name): text for row in rows for name, text in cells_of(row, viewer).items()}
        found = b""
        if changed := {key: text for key, text in cells.items() if told.cells.get(key) != text}:
            found += event("cells", changed)
        titles = tuple(str(row.key) for row in rows)
        held = tuple(each["id"] for each in look.held if viewer.sees_connection(each))
        host = None if self._host is None or not viewer.sees_host else (self._host.problems, self._host.planes)
        stale = [
            name
            for name, is_old in (
                ("satellites", titles != told.rows),
                ("held", held != told.held),
                ("host", host != told.host),
                ("connections", self._is_old(look, told)),
            )
            if is_old or not told.anything
        ]
        told.anything, told.cells, told.rows, told.held, told.host = True, cells, titles, held, host
        return found + (event("stale", stale) if stale else b"")

    @staticmethod
    def _is_old(look: FleetLook, told: _Told) -> bool:
        """Whether a list of connections is old, and it is time to say so."""
        now = trio.current_time()
        if look.connections_seen == told.connections or now - told.connections_at < LIST_EVERY_S:
            return False
        told.connections, told.connections_at = look.connections_seen, now
        return True
