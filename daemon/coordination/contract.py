"""The coordination's contract: which host may act on a satellite, and which use it, when several hosts share a fleet.

1. One host at a time has the **turn** on a satellite. Only that host may start, stop or launch the machine.
2. A host **enters** a satellite before it lets a client use it, and stays entered while a client does.
3. A machine is put to sleep only in a turn that was **closed**. Closing fails while another living host is entered, and no
   host can enter until the turn ends. So use and sleep never overlap.
4. A dead host loses its turn and its entries. A host that was only paused or cut off finds that out before it acts.
5. While the store cannot be reached, a host that is entered stays so, and other hosts let clients in without entering: an
   edge host that refuses everybody would be worse than a machine that falls asleep under a few clients. Starts are allowed,
   and no machine is put to sleep.

`tests/beds/contracts/coordination.py` tests these rules. `LocalCoordination` is for one host alone.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.model import SatelliteKey

IN_USE_HERE = "somebody came"


class InUse(StoreError):
    """A client uses the satellite, here or on another host, so it must not be put to sleep now."""


class Turn(Protocol):
    """The right to act on one satellite."""

    @property
    def alone(self) -> bool:
        """Whether this is the only host, so that no other one can have changed the machine."""
        ...

    def is_ours(self) -> bool:
        """Whether this host may still send a call to the provider, at this very moment."""
        ...

    def while_ours(self) -> trio.CancelScope:
        """A scope, to be entered once, that is cancelled when this host loses the turn: for calls that may queue."""
        ...

    async def close(self, is_used: Callable[[], bool]) -> None:
        """Let no host enter until the turn ends, this one included. Raises InUse, StoreError.

        `is_used` tells whether a client of this host uses the satellite or is about to: it must be true before `enter` is
        called. If it is false, this host is not entered any more, even if the call fails.
        """
        ...


class Coordination(Protocol):
    """One host's view of all satellites. The task `run` must be running."""

    def is_entered(self, key: SatelliteKey) -> bool:
        """Whether a client may use the satellite now, without `enter`. No I/O."""
        ...

    async def enter(self, key: SatelliteKey, look: Callable[[], Awaitable[None]]) -> None:
        """Enter; if the machine is about to be put to sleep, wait for that. Never raises StoreError: see rule 5.

        `look` is called first, since other hosts may have changed the machine meanwhile. If it raises, the exception is
        passed on and the host is not entered.
        """
        ...

    def leave_nowait(self, key: SatelliteKey) -> None:
        """No client of this host uses the satellite any more. Idempotent and cheap."""
        ...

    def acting(self, key: SatelliteKey) -> AbstractAsyncContextManager[Turn]:
        """Wait for the turn and hold it inside the block. Raises StoreError, but only at the block's entry."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Renew what the host holds, until cancelled; then give all of it back.

        If connections outlive this process, nothing is given back before `drained`: the next process does that.
        """
        ...

    @property
    def stays(self) -> tuple[str, ...]:
        """By which names this host may have entered satellites: what the next process gives to `succeed`."""
        ...

    def announce_by(self, announce: Callable[[], Awaitable[None]]) -> None:
        """Await this before the host enters anything by another name than those that `stays` had."""
        ...

    def succeed(self, stays: Iterable[str]) -> None:
        """Give back what an earlier process of this host has entered. Call it after `enter` for all that is still used."""
        ...

    def drained(self) -> None:
        """No connection outlives this process after all."""
        ...


class LocalCoordination:
    """One host alone: always entered, always its turn."""

    alone = True

    def is_entered(self, key: SatelliteKey) -> bool:
        """See Coordination."""
        return True

    async def enter(self, key: SatelliteKey, look: Callable[[], Awaitable[None]]) -> None:
        """See Coordination."""

    def leave_nowait(self, key: SatelliteKey) -> None:
        """See Coordination."""

    @contextlib.asynccontextmanager
    async def acting(self, key: SatelliteKey) -> AsyncIterator[Turn]:
        """See Coordination."""
        yield self

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See Coordination."""
        task_status.started()
        await trio.sleep_forever()

    @property
    def stays(self) -> tuple[str, ...]:
        """See Coordination."""
        return ()

    def announce_by(self, announce: Callable[[], Awaitable[None]]) -> None:
        """See Coordination."""

    def succeed(self, stays: Iterable[str]) -> None:
        """See Coordination."""

    def drained(self) -> None:
        """See Coordination."""

    def is_ours(self) -> bool:
        """See Turn."""
        return True

    def while_ours(self) -> trio.CancelScope:
        """See Turn."""
        return trio.CancelScope()

    async def close(self, is_used: Callable[[], bool]) -> None:
        """See Turn."""
        if is_used():
            raise InUse(IN_USE_HERE)
