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
        """End the connection, in good order or (`cut`) at once. Its lease is released soon after."""
        ...


class Lease:
    """The right to use an operational satellite.

    While it lives the satellite does not sleep, unless the connection is quiet.
    """

    def __init__(
        self,
        address: Address,
        release: Callable[["Lease"], None],
        metered: Callable[["Lease"], None],
        *,
        over: trio.Event | None = None,
        suspect: Callable[[], None] = lambda: None,
    ) -> None:
        """`over` is set once the satellite is not as it was at the grant: it is asleep, gone, elsewhere or unreachable."""
        self.address = address
        self.over = trio.Event() if over is None else over
        self.suspect = suspect
        """Call it if the machine may have changed since it was last seen: the fleet then looks at it."""
        self.meter: Meter | None = None
        self._release = release
        self._metered = metered
        self._used: Callable[[], None] = lambda: None
        self._live = True
        self._kept = False

    def keep(self) -> None:
        """Let the lease outlive its context manager. The new holder calls `release`."""
        self._kept = True

    @property
    def kept(self) -> bool:
        """Whether `keep` was called."""
        return self._kept

    def measure(self, meter: Meter) -> None:
        """Give the lease a meter, once. From now on only traffic keeps the satellite awake. Not after `release`."""
        if self._live and self.meter is None:
            self.meter = meter
            self._metered(self)

    def rehome(self, given: "Lease") -> None:
        """Become the lease that `given` is, which nobody has used: its satellite was not known when this one was made."""
        self.address, self.over, self.suspect = given.address, given.over, given.suspect
        self._release, self._metered, self._used = given._release, given._metered, given._used
        if self.meter is not None:
            self._metered(self)

    def on_used(self, used: Callable[[], None]) -> "Lease":
        """Call `used` if a connection that was to be ended as quiet goes on."""
        self._used = used
        return self

    def tell_used(self) -> None:
        """The connection was to be ended as quiet, and goes on."""
        if self._live:
            self._used()

    def release(self) -> None:
        """Give the lease back; idempotent."""
        if self._live:
            self._live = False
            self._release(self)
