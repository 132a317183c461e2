"""Which launch of a satellite's machine this is, as the registry has it: one token a machine, whoever launches it.

Within a daemon the satellite itself knows when its machine was lost and another is wanted: it then asks with another
token of its own. Between daemons, and over a restart, the registry's generation says which machine is meant.
"""

import contextlib
import time
from collections.abc import Callable

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.ids import launch_token
from bentpipe.daemon.model import MachineId, SatelliteKey
from bentpipe.daemon.registry.contract import Registry, StoredSatellite

PERIOD_S = 3600.0
"""Launches of one generation within one such period of the wall clock are one launch, a restart of the daemon between
them included: within it a machine that was launched and cannot be seen yet is not launched twice."""

SETTLED_S = 3600.0
"""A machine of a generation younger than this may be there and not be seen yet: another daemon's launch of it is ours."""


class LaunchNames:
    """Of one satellite, without the registry: one token for each machine that there is to be."""

    def __init__(self, key: SatelliteKey, wall: Callable[[], float]) -> None:
        self._key = key
        self._wall = wall
        self._newest = (-1, "")

    def of(self, generation: int) -> str:
        """The same token for repeated calls, another after a loss."""
        if self._newest[0] != generation:
            period = int(self._wall() // PERIOD_S)
            self._newest = (generation, launch_token(self._key, generation=generation, period=period))
        return self._newest[1]


class Launches:
    """Of one satellite."""

    def __init__(self, registry: Registry, key: SatelliteKey, *, wall: Callable[[], float] = time.time) -> None:
        self._registry = registry
        self._key = key
        self._wall = wall
        self._asked = ""
        self._registration: StoredSatellite | None = None

    async def begin(self, asked: str) -> str:
        """Return the token to launch with. `asked` is the satellite's own: another one asks for another machine.

        Raises StoreError.
        """
        if self._registration is None:
            known = {each.key: each for each in await self._registry.satellites()}.get(self._key)
            if known is not None and self._wall() - known.created_us / 1e6 < SETTLED_S:
                self._registration, self._asked = known, asked
            else:
                await self._begin_another(known.generation if known else 0, asked)
        elif asked != self._asked:
            await self._begin_another(self._registration.generation, asked)
        if self._registration is None:
            raise AssertionError("no generation was begun")
        return launch_token(self._key, generation=self._registration.generation)

    async def done(self, machine_id: MachineId) -> None:
        """The launch was accepted. The books of it may fail: the generation is what counts."""
        if self._registration is not None:
            with contextlib.suppress(StoreError):
                await self._registry.set_machine(self._key, self._registration.generation, machine_id)

    async def _begin_another(self, after: int, asked: str) -> None:
        at_us = int(self._wall() * 1e6)
        self._registration = await self._registry.begin_generation(self._key, after=after, owner="", at_us=at_us)
        self._asked = asked
