"""Tells the other hosts of the fleet whether this host uses one satellite.

A host enters before it lets a client in, and leaves when nobody uses the satellite and it is not awake: while it is awake,
another host must not put it to sleep before this host has found it idle. The rules between hosts are in
`daemon/coordination/contract.py`.
"""

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from bentpipe.daemon.coordination.contract import Coordination
from bentpipe.daemon.fleet.gates import Gates
from bentpipe.daemon.fleet.machine.known import Known
from bentpipe.daemon.fleet.machine.states import WAKING
from bentpipe.daemon.fleet.waiters import Waiting
from bentpipe.daemon.model import SatelliteKey, SatelliteState

KEPT_IN = frozenset({SatelliteState.OPERATIONAL, SatelliteState.STOPPING, *WAKING})
"""In these states the host stays entered, even if nobody uses the satellite."""


class Presence:
    """This host's presence at one satellite. `known` returns what is known of the satellite now."""

    def __init__(self, key: SatelliteKey, coordination: Coordination, known: Callable[[], Known], gates: Gates) -> None:
        self._gates = gates
        self._key = key
        self._coordination = coordination
        self._known = known
        self._entering = 0
        self.is_retired = False
        """The satellite is removed: it does not matter that it is awake."""
        self.is_discarding = False
        """Its machine is destroyed for the clients that wait: they get another one."""

    @property
    def is_entered(self) -> bool:
        """Whether the other hosts know that this host uses the satellite."""
        return self._coordination.is_entered(self._key)

    def is_used(self) -> bool:
        """Whether a client uses the satellite, waits for it, or is about to."""
        known = self._known()
        return bool(self._entering or known.leases or known.waiting)

    def forbids_stop(self) -> bool:
        """Whether the machine must not be stopped. Clients that wait for a restart, or another machine, are for it."""
        known = self._known()
        return bool(known.leases) if known.is_restarting or self.is_discarding else self.is_used()

    async def enter_again(self) -> None:
        """A stop was tried for clients that still wait, so this host is not entered any more: enter for them.

        The machine is not looked at: it is being stopped, and no client uses it before it has been started and probed.
        """
        if self.is_used() and not self.is_entered:
            await self._coordination.enter(self._key, trio.lowlevel.checkpoint)

    @contextlib.asynccontextmanager
    async def entering(self, look: Callable[[], Awaitable[None]], waiting: Waiting) -> AsyncIterator[None]:
        """Enter for a client. The client counts until the block ends: by then the satellite's machine must know of it.

        `look` looks at the machine again. Raises ProviderError.
        """
        self._entering += 1
        try:
            if not self.is_entered:
                await waiting.during(functools.partial(self._coordination.enter, self._key, look))
            yield
        finally:
            self._entering -= 1
            self.leave_if_unused()

    async def check_unused(self) -> None:
        """Raises InUse if a client of any host uses the satellite, or if it is awake for another host; StoreError."""
        async with self._gates.kept_shut(self._key), self._coordination.acting(self._key) as turn:
            await turn.close(self.is_used)

    def leave_if_unused(self) -> None:
        """Tell the other hosts if this host no longer uses it. Called after each step, and once its gate is shut."""
        is_idle = self.is_retired or self._known().state not in KEPT_IN
        if is_idle and not self.is_used() and self._gates.is_shut(self._key):
            self._coordination.leave_nowait(self._key)
