"""The right to use a satellite, as the edge holds it."""

from collections.abc import Callable
from typing import Protocol

import trio

from bentpipe.daemon.model import Address


class Meter(Protocol):
    """A connection whose traffic can be read, and which can be ended, while its lease lives."""

    def moved_bytes(self) -> int:
        """Bytes moved so far, both directions added; read without waiting."""
        ...

    def end(self, *, cut: bool) -> None:
        """End the connection, in good order or (`cut`) at once; its lease is then released, sooner or later."""
        ...


class Lease:
    """The right to use an operational satellite; while it lives the satellite does not sleep, unless it is quiet."""

    def __init__(
        self,
        address: Address,
        release: Callable[["Lease"], None],
        metered: Callable[["Lease"], None],
        *,
        over: trio.Event | None = None,
        suspect: Callable[[], None] = lambda: None,
    ) -> None:
        """`over` is set once the satellite is not what it was at the grant: asleep, gone, elsewhere or unreachable."""
        self.address = address
        self.over = trio.Event() if over is None else over
        self.suspect = suspect
        """Call it if something says that the machine is not what was last seen: it is then looked at."""
        self.meter: Meter | None = None
        self._release = release
        self._metered = metered
        self._live = True
        self._kept = False

    def keep(self) -> None:
        """Let the lease outlive its context manager: whoever keeps it calls `release`."""
        self._kept = True

    @property
    def kept(self) -> bool:
        """Whether `keep` was called."""
        return self._kept

    def measure(self, meter: Meter) -> None:
        """Give the lease a meter, once: from now on only traffic keeps the satellite awake. No use after `release`."""
        if self._live and self.meter is None:
            self.meter = meter
            self._metered(self)

    def release(self) -> None:
        """Give it back; idempotent."""
        if self._live:
            self._live = False
            self._release(self)
