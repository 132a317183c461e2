"""The gates of satellites: through an open one other processes of this host bring clients to the satellite without asking.

A satellite is put to sleep, changed or destroyed only after its gate was shut everywhere. Every client that came through it
has a lease by then.
"""

import contextlib
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from bentpipe.daemon.model import Address, SatelliteKey


class Gated(Protocol):
    """A satellite, as its gate sees it."""

    key: SatelliteKey

    @property
    def open_address(self) -> Address | None:
        """Where clients may be brought; None if each of them has to ask for a lease."""
        ...

    def is_certain(self) -> bool:
        """Whether it is certainly at that address now: see Whereabouts."""
        ...

    def leave_if_unused(self) -> None:
        """Its gate is shut: the other hosts of the fleet may be told that nobody uses it here, if that is so."""
        ...


class Gates(Protocol):
    """All gates."""

    def stepped(self, satellite: Gated) -> None:
        """The satellite's state may have changed. Never waits."""
        ...

    def gone(self, key: SatelliteKey) -> None:
        """There is no such satellite any more. Never waits."""
        ...

    def is_shut(self, key: SatelliteKey) -> bool:
        """Whether nobody comes through the gate, and everybody that has come has a lease."""
        ...

    def kept_shut(self, key: SatelliteKey) -> AbstractAsyncContextManager[None]:
        """In the block nobody comes through the gate, and everybody that has come has a lease.

        Raises SleepVetoed if a process that may let clients through does not answer.
        """
        ...


class NoGates:
    """Every client has to ask for a lease."""

    def stepped(self, satellite: Gated) -> None:
        """See Gates."""

    def gone(self, key: SatelliteKey) -> None:
        """See Gates."""

    def is_shut(self, key: SatelliteKey) -> bool:
        """See Gates."""
        return True

    def kept_shut(self, key: SatelliteKey) -> AbstractAsyncContextManager[None]:
        """See Gates."""
        return contextlib.nullcontext()
