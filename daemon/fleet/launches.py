"""The token of each launch of a satellite's machine. One token makes one machine, however often and from whichever host.

The satellite itself knows when its machine was lost and another one is needed. It then asks with another token. That is
enough within one daemon. Between daemons, and over a restart, the registry's generation says which machine is meant, and the
registry's attempt says what the provider was asked for without an answer.
"""

import contextlib
import time
from collections.abc import Callable

from bentpipe.daemon.errors import ProviderRetryable, StoreError
from bentpipe.daemon.ids import launch_token
from bentpipe.daemon.model import MachineId, SatelliteKey
from bentpipe.daemon.providers.attempts import Attempt, LaunchRecord, UnsharedRecord
from bentpipe.daemon.registry.contract import Registry, StoredAttempt, StoredSatellite

PERIOD_S = 3600.0
"""Without a registry, launches of one generation within one such period of the wall clock are one launch, even if the daemon
is started again between them: a machine that was launched and cannot be seen yet is not launched twice."""

SETTLED_S = 3600.0
"""If a generation is younger than this, its machine may exist and not be seen yet. Then this host joins the other's
launch."""


class LaunchTokens:
    """The launches of one satellite. Without a registry only its own tokens count."""

    def __init__(
        self, key: SatelliteKey, registry: Registry | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        self._key = key
        self._registry = registry
        self._wall = wall
        self._newest = (-1, "")
        """The generation of the last request, and its token."""
        self._asked = ""
        self._registered: StoredSatellite | None = None
        self.accepted = 0
        """The generation whose launch the provider has accepted from this host; 0 if there is none."""
        self.record: LaunchRecord = UnsharedRecord()
        """What the provider was asked for with the token that `begin` has returned last."""

    def asked(self, generation: int) -> str:
        """Return the token that the satellite asks with: the same for repeated calls, another one after a loss."""
        if self._newest[0] != generation:
            self._newest = (generation, self._token(generation, period=int(self._wall() // PERIOD_S)))
        return self._newest[1]

    async def begin(self, asked: str) -> str:
        """Return the token to launch with; `record` is its record. If `asked` is not the last one, it is another machine's.

        Raises StoreError. Call it in this host's turn: another host may have launched meanwhile.
        """
        if self._registry is None:
            if self._asked != asked:
                self._asked, self.record = asked, UnsharedRecord()
            return asked
        if self._registered is None:
            known = {each.key: each for each in await self._registry.satellites()}.get(self._key)
            if known is None or self._wall() - known.created_us / 1e6 >= SETTLED_S:
                known = await self._begin_another(self._registry, known.generation if known else 0)
        elif asked != self._asked:
            known = await self._begin_another(self._registry, self._registered.generation)
        else:
            found = {each.key: each for each in await self._registry.satellites()}.get(self._key)
            known = found or await self._begin_another(self._registry, self._registered.generation)
        self._registered, self._asked = known, asked
        self.record = _StoredRecord(self._registry, known)
        return self._token(known.generation)

    @property
    def generation(self) -> int:
        """The generation of the token that `begin` has returned last; 0 without a registry."""
        return 0 if self._registered is None else self._registered.generation

    def spent(self) -> None:
        """The newest token's machine is gone: the next launch makes another one, even if the same token is asked."""
        self._asked = ""

    async def done(self, machine_id: MachineId) -> None:
        """The launch was accepted. If that cannot be stored, no harm is done: only the generation matters."""
        if self._registry is not None and self._registered is not None:
            self.accepted = self._registered.generation
            with contextlib.suppress(StoreError):
                await self._registry.set_machine(self._key, self._registered.generation, machine_id)

    async def _begin_another(self, registry: Registry, after: int) -> StoredSatellite:
        return await registry.begin_generation(self._key, after=after, owner="", at_us=int(self._wall() * 1e6))

    def _token(self, generation: int, period: int | None = None) -> str:
        """If there is no period, `generation` is the registry's."""
        return launch_token(self._key, generation=generation, period=period)


class _StoredRecord:
    """`LaunchRecord` in the registry."""

    def __init__(self, registry: Registry, known: StoredSatellite) -> None:
        self._registry = registry
        self._known = known
        self._stored = known.attempt

    @property
    def open(self) -> Attempt | None:
        """See LaunchRecord."""
        return None if self._stored is None else Attempt(self._stored.alternative, self._stored.at_us)

    async def write(self, attempt: Attempt | None) -> None:
        """See LaunchRecord."""
        wanted = None if attempt is None else StoredAttempt(attempt.alternative, attempt.at_us)
        if wanted == self._stored:
            return
        try:
            await self._registry.set_attempt(
                self._known.key, self._known.generation, after=self._stored, attempt=wanted
            )
        except StoreError as exc:
            raise ProviderRetryable(str(exc), peer_hint=exc.peer_hint) from exc
        self._stored = wanted
