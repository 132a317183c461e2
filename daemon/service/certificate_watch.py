"""Looks at the configured certificates while the daemon runs: until when they hold, and what clients will refuse.

A certificate that nobody renews ends every client's connections at one moment, months after anybody looked at it. So the
log says it from the last third of its life on, once a day, and the metrics always. Files are read in a thread: a disk that
hangs must never delay a client. Each process looks at the files that it shows itself: with two processes the data plane has
the listeners' and the satellites', and COUNTERS carries their ends to the control plane.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping

import trio

from bentpipe.config.model import Config
from bentpipe.daemon.service.concern import Concern

log = logging.getLogger("bentpipe")

LOOK_S = 3600.0
"""Time between looks. Certificates that live for a day are renewed hours before their end."""

SAY_AGAIN_S = 86_400.0
"""Time until the same concern is logged again."""

Look = Callable[[Config], tuple[Mapping[str, float], list[Concern]]]
"""Reads the files. Returns until when each holds, in seconds since the epoch, and what is wrong with them."""

READ_DEADLINE_S = 30.0
"""For all files. If they are not read in this time, the next look tries again."""


class CertificateWatch:
    """The certificates of the configuration."""

    def __init__(self, config: Callable[[], Config], look: Look, named: Callable[[str], str]) -> None:
        """`config` returns the configuration as it is now. `named` gives a text with paths as operators know them."""
        self._config, self._look_at, self._named = config, look, named
        self._said: dict[Concern, float] = {}
        self._thread = trio.CapacityLimiter(1)  # a thread that hangs keeps its place: no further one is started
        self._asked = trio.Event()
        self.ends: Mapping[str, float] = {}
        """Until when each file's first certificate holds, in seconds since the epoch; without those that cannot be read."""

    def ask(self) -> None:
        """Look soon: the files may have changed."""
        self._asked.set()

    async def run_watch(self) -> None:
        """Look at once, and again whenever an hour has passed or it is asked for."""
        while True:
            self._asked = trio.Event()
            await self._look()
            with trio.move_on_after(LOOK_S):
                await self._asked.wait()

    async def _look(self) -> None:
        with trio.move_on_after(READ_DEADLINE_S) as scope:
            self.ends, concerns = await trio.to_thread.run_sync(
                self._read, limiter=self._thread, abandon_on_cancel=True
            )
            self._tell(concerns)
        if scope.cancelled_caught:
            log.warning("certificates cannot be looked at", extra={"fields": {"error": "the disk hangs"}})

    def _read(self) -> tuple[Mapping[str, float], list[Concern]]:
        ends, concerns = self._look_at(self._config())
        return (
            {self._named(path): end for path, end in ends.items()},
            [dataclasses.replace(each, message=self._named(each.message)) for each in concerns],
        )

    def _tell(self, concerns: list[Concern]) -> None:
        now = trio.current_time()
        self._said = {concern: at for concern, at in self._said.items() if now - at < SAY_AGAIN_S}
        for concern in concerns:
            if concern not in self._said:
                self._said[concern] = now
                fields = {"where": concern.where, "reason": concern.message}
                log.warning("certificate", extra={"fields": fields})
