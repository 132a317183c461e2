"""Gives a machine of the reserve to a satellite that is launched. It must never launch or destroy one: the keeper does.

The store decides whose a machine is: of all who take it, on any host, one does. The satellite's machine of one generation
gets one machine of the reserve at most, and it is the same however often the launch is repeated.
"""

import collections
import dataclasses
import enum
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

import trio

from bentpipe.config.model import MachineTypeSection
from bentpipe.daemon.errors import ProviderError, ProviderRetryable, SpareUnusable
from bentpipe.daemon.model import MachineId, SatelliteKey
from bentpipe.daemon.providers.reserve import SpareProvider
from bentpipe.daemon.registry.reserve import ReserveStore, SpareState, StoredSpare, Taker

log = logging.getLogger("bentpipe.fleet")

GIVE_UP_S = 75.0
"""A satellite that is not operational so long after it has taken a machine gets one by an ordinary launch instead. A resume
takes some ten to twenty seconds, and a held client waits for two minutes at least."""
DISTRUST_S = 600.0
"""For so long after a machine of the reserve has failed it, a satellite is launched ordinarily."""


class Given(enum.Enum):
    """Outcomes of launches for which the type has a reserve."""

    RESERVE = "reserve"
    EMPTY = "empty"
    """No machine of it was ready."""
    FAILED = "failed"
    """One was taken, and could not be used."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReserveWish:
    """The launch of a satellite's machine."""

    key: SatelliteKey
    machine_id: MachineId
    generation: int
    """As in the registry: it counts the satellite's machines."""
    token: str
    """The launch's."""


class ReserveGiver:
    """`digest` returns what a type's machines are made of now."""

    def __init__(
        self,
        store: ReserveStore,
        provider: SpareProvider,
        digest: Callable[[MachineTypeSection], Awaitable[str]],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._provider = provider
        self._digest = digest
        self._wall = wall
        self._kinds: dict[SatelliteKey, MachineTypeSection] = {}
        self._failed: dict[SatelliteKey, float] = {}
        self._counted: set[str] = set()
        """The machines that are in `counts` already, by their ids: a launch may be repeated."""
        self.taken = trio.Event()
        """Set when a machine was taken: its place is filled again."""
        self.counts: collections.Counter[Given] = collections.Counter()

    def know(self, key: SatelliteKey, kind: MachineTypeSection) -> None:
        """A satellite is of a machine type."""
        self._kinds[key] = kind

    def forget(self, key: SatelliteKey) -> None:
        """A satellite is gone, or becomes another type's."""
        self._kinds.pop(key, None)
        self._failed.pop(key, None)

    def distrust(self, key: SatelliteKey) -> None:
        """A machine of the reserve has failed a satellite: its next one is launched ordinarily."""
        self._failed[key] = self._wall()
        self.counts[Given.FAILED] += 1

    async def give(self, wish: ReserveWish, exists: Callable[[], Awaitable[bool]]) -> bool:
        """Let the satellite have a machine of the reserve. Returns whether it has one.

        Call it in the satellite's turn. `exists` looks whether the satellite has a machine already. Raises ProviderError and
        StoreError if nobody knows: then it is called again.
        """
        kind = self._kinds.get(wish.key)
        if kind is None:
            return False
        rows = await self._store.spares()
        self._counted &= {each.spare for each in rows}
        mine = next((each for each in rows if _is_for(each, wish)), None)
        if mine is not None:
            return await self._assign(mine, wish, again=True)
        if not kind.reserve or self._is_distrusted(wish.key, rows) or await exists():
            return False
        taken = await self._take(rows, kind, Taker(wish.key, wish.generation, int(self._wall() * 1e6)))
        if taken is None:
            self.counts[Given.EMPTY] += 1
            return False
        return await self._assign(taken, wish, again=False)

    def _is_distrusted(self, key: SatelliteKey, rows: tuple[StoredSpare, ...]) -> bool:
        """Whether a machine of the reserve has failed the satellite: it has lost one that it was given."""
        if any(each.taker is not None and each.taker.key == key for each in rows):
            return True
        return self._wall() - self._failed.get(key, float("-inf")) < DISTRUST_S

    async def _take(self, rows: tuple[StoredSpare, ...], kind: MachineTypeSection, taker: Taker) -> StoredSpare | None:
        digest = await self._digest(kind)
        fitting = [
            each
            for each in rows
            if each.state is SpareState.READY
            and (each.place.size, each.place.platform, each.digest) == (kind.size, kind.platform, digest)
        ]
        for row in sorted(fitting, key=lambda each: each.created_us):
            taken = dataclasses.replace(row.changed(SpareState.TAKEN), taker=taker)
            if await self._store.put(taken):
                self.taken.set()
                return taken
        return None

    async def _assign(self, row: StoredSpare, wish: ReserveWish, *, again: bool) -> bool:
        fields: Mapping[str, object] = {"satellite": str(wish.key), "machine": row.instance, "spare": row.spare}
        try:
            await self._provider.assign(row.instance, row.spare, wish.machine_id, wish.token, again=again)
        except ProviderError as exc:
            taken_at = self._wall() if row.taker is None else row.taker.at_us / 1e6
            if not isinstance(exc, SpareUnusable) and self._wall() - taken_at < GIVE_UP_S:
                # A launch that is refused is undone; this one is not, however the provider says so.
                raise ProviderRetryable(str(exc), peer_hint=exc.peer_hint) from exc
            log.warning("a machine of the reserve cannot be used", extra={"fields": {**fields, "error": str(exc)}})
            if not await self._store.put(row.changed(SpareState.DOOMED, str(exc))):
                # The keeper has given it up, or another host goes on: the next attempt sees how.
                raise ProviderRetryable(str(exc), peer_hint=exc.peer_hint) from exc
            self.distrust(wish.key)
            return False
        if row.spare not in self._counted:
            self._counted.add(row.spare)
            self.counts[Given.RESERVE] += 1
            log.info("taken from the reserve", extra={"fields": fields})
        return True


def _is_for(row: StoredSpare, wish: ReserveWish) -> bool:
    taker = row.taker
    wanted = (wish.key, wish.generation)
    return row.state is SpareState.TAKEN and taker is not None and (taker.key, taker.generation) == wanted
