"""Reads the listeners' certificates again, in threads. A disk that hangs must never delay a client."""

import functools
import logging
from collections.abc import Callable, Sequence

import trio

from bentpipe.config.model import ListenerSection
from bentpipe.daemon.connections.listener import Listener
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.service import sd
from bentpipe.daemon.tasks import Decision, Owner, run_owned
from bentpipe.native.tls import TlsError

log = logging.getLogger("bentpipe")

READ_DEADLINE_S = 10.0
"""For the files of one listener. If they are not read in this time, its old ones stay until the next SIGHUP."""


class CertificateReload:
    """For all listeners, each with its section. `read` blocks and raises TlsError."""

    def __init__(
        self, listeners: Sequence[tuple[Listener, ListenerSection]], read: Callable[[ListenerSection], Port]
    ) -> None:
        self._listeners = listeners
        self._read = read
        # A thread that hangs keeps its place, so that further signals do not start further threads.
        self._threads = {id(listener): trio.CapacityLimiter(1) for listener, _ in listeners}
        self._asked = trio.Event()

    def ask(self) -> None:
        """Read them again, soon."""
        sd.notify_reloading()
        self._asked.set()

    async def run_reload(self) -> None:
        """Read them again whenever that is asked for, for ever."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            async with trio.open_nursery() as nursery:
                for listener, section in self._listeners:
                    owner = Owner("certificates", _name(listener), Decision.GIVE_UP)
                    nursery.start_soon(run_owned, owner, self._reload, listener, section)
            if not self._asked.is_set():
                sd.notify("READY=1")

    async def _reload(self, listener: Listener, section: ListenerSection) -> None:
        read = functools.partial(self._read, section)
        error = f"no answer within {READ_DEADLINE_S:g} s: the disk hangs"
        with trio.move_on_after(READ_DEADLINE_S):
            try:
                listener.port = await trio.to_thread.run_sync(
                    read, limiter=self._threads[id(listener)], abandon_on_cancel=True
                )
            except (TlsError, OSError) as exc:
                error = str(exc)
            else:
                log.info("certificate reloaded", extra={"fields": {"listener": _name(listener)}})
                return
        log.error("certificate not reloaded", extra={"fields": {"listener": _name(listener), "error": error}})


def _name(listener: Listener) -> str:
    return ":".join(map(str, listener.address))
