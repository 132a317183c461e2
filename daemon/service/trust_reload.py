"""Reads the satellites' certificates of the data plane's configuration again, in a thread."""

import logging
from collections.abc import Callable

import trio

from bentpipe.config.sources import ConfigErrors
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.native.tls import TlsError

log = logging.getLogger("bentpipe.dataplane")

READ_DEADLINE_S = 10.0
"""For all files. If they are not read in this time, the old certificates stay until somebody asks again."""


class TrustReload:
    """The satellites' TLS by the names that OPEN uses. `read` blocks, and raises ConfigErrors, OSError, TlsError."""

    def __init__(self, trust: dict[str, SatelliteTls], read: Callable[[], dict[str, SatelliteTls]]) -> None:
        self._trust = trust
        self._read = read
        self._asked = trio.Event()
        self._thread = trio.CapacityLimiter(1)  # a thread that hangs keeps its place: no further one is started

    def find(self, name: str) -> SatelliteTls | None:
        """The TLS of this name; None if the configuration has none."""
        return self._trust.get(name)

    def ask(self) -> None:
        """Read again, soon."""
        self._asked.set()

    async def run_reload(self) -> None:
        """Read again whenever that is asked for, for ever."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            error = f"no answer within {READ_DEADLINE_S:g} s: the disk hangs"
            with trio.move_on_after(READ_DEADLINE_S):
                try:
                    self._trust = await trio.to_thread.run_sync(
                        self._read, limiter=self._thread, abandon_on_cancel=True
                    )
                except (ConfigErrors, OSError, TlsError) as exc:
                    error = str(exc)
                else:
                    log.info("certificates of satellites reloaded", extra={"fields": {"names": len(self._trust)}})
                    continue
            log.error("certificates of satellites not reloaded", extra={"fields": {"error": error}})
