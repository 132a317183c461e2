"""When the page for operators is served: while the configuration has its section, which a reload may bring or take away."""

from collections.abc import Awaitable, Callable

import trio

from bentpipe.config.admin import AdminSection
from bentpipe.daemon.admin.counters import PageCounters
from bentpipe.daemon.tasks import Owner, run_owned


class AdminPage:
    """`run_page` must run."""

    def __init__(self, section: AdminSection | None) -> None:
        self.counters = PageCounters()
        self._is_wanted = section is not None
        self._changed = trio.Event()

    def follow(self, section: AdminSection | None) -> None:
        """Begin to serve it, or end it with its connections, if the section has come or gone."""
        if (section is not None) is not self._is_wanted:
            self._is_wanted = section is not None
            self._changed.set()

    async def run_page(self, serve: Callable[[], Awaitable[None]]) -> None:
        """Run `serve` whenever the page is wanted, for ever."""
        while True:
            self._changed = trio.Event()
            async with trio.open_nursery() as nursery:
                if self._is_wanted:
                    nursery.start_soon(run_owned, Owner("admin"), serve)
                await self._changed.wait()
                nursery.cancel_scope.cancel()
