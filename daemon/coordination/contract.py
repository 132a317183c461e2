"""Who may act on a satellite, and who has it in use, when several hosts share a fleet: the contract.

1. One host at a time has the **turn** on a satellite: only it may start, stop or launch its machine.
2. A host is **entered** before it lets anybody use the satellite, and stays entered while anybody does.
3. A machine is put to sleep only in a turn that was **closed**: which fails while any other host that lives is entered,
   and until the turn's end lets nobody enter. So use and sleep never overlap.
4. A host that died loses its turn and its entries; one that was only paused or cut off finds out before it acts.
5. While the store cannot be reached, who is entered stays so, others are let in unentered (an edge host that refuses
   everybody would be worse than a machine that falls asleep under a few), starts are allowed and no sleep is.

`tests/beds/contracts/coordination.py` has them as tests. `LocalCoordination` is for one host alone.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.model import SatelliteKey

IN_USE_HERE = "somebody came"


class InUse(StoreError):
    """Somebody has the satellite in use, here or on another host: it is not to be put to sleep now."""


class Turn(Protocol):
    """The right to act on one satellite."""

    @property
    def alone(self) -> bool:
        """Whether there are no other hosts, so that what this one knows of the machine is all there is to know."""
        ...

    def is_ours(self) -> bool:
        """Whether a call to the provider that is sent in this very moment is sent by the only host that may."""
        ...

    def while_ours(self) -> trio.CancelScope:
        """A scope, to be entered once, that is cancelled when the turn is ours no more: for calls that may queue."""
        ...

    async def close(self, is_used: Callable[[], bool]) -> None:
        """Let nobody enter until the turn ends, this host included. Raises InUse, StoreError.

        `is_used` says whether anybody here uses the satellite or wants to; whoever wants to says so before `enter`.
        Unless it does, this host is not entered any more, whatever comes of the call.
        """
        ...


class Coordination(Protocol):
    """One host's view of all satellites; `run` must be running."""

    def is_entered(self, key: SatelliteKey) -> bool:
        """Whether the satellite may be used right now, without `enter`. No I/O."""
        ...

    async def enter(self, key: SatelliteKey, look: Callable[[], Awaitable[None]]) -> None:
        """Enter, after a sleep that is under way. Never raises StoreError: see rule 5.

        `look` is called before anybody is let in: others may have done anything to the machine meanwhile. What it
        raises is raised, and then the host is not entered.
        """
        ...

    def leave_nowait(self, key: SatelliteKey) -> None:
        """Nobody uses the satellite here any more. Idempotent and cheap."""
        ...

    def acting(self, key: SatelliteKey) -> AbstractAsyncContextManager[Turn]:
        """Wait for the turn and have it inside the block. Raises StoreError at the entry only."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep alive what the host holds, for ever; when cancelled give it all back."""
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
