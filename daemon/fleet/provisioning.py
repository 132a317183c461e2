"""Launches and removes satellites at run time, and keeps this host's satellites as the store of launched ones says.

A launch first stores the satellite, then takes it up in this host's fleet, then launches its machine. A removal first
stores that it is being removed, so that each host refuses its clients and ends their connections within REFRESH_S; then the
machine is terminated in this host's turn; then the satellite is deleted from the store. If a host dies between any two of
these steps, the others go on, or the same host when it is started again: a stored satellite without a machine gets one by
the next launch or build, with the same token, and a removal that was begun is finished.

Owns: which launched satellites are in the fleet. Knows no client and no configuration file.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import trio

from bentpipe.config.model import MachineTypeSection, SatelliteSection
from bentpipe.daemon.coordination.contract import InUse
from bentpipe.daemon.errors import (
    SATELLITE_WORDS,
    BentpipeError,
    InvalidRequest,
    LimitReached,
    MachineNotFound,
    NoSuchSatellite,
    ProviderCapacity,
    ProviderError,
    ProviderPermanent,
    ProviderRetryable,
    ProviderThrottled,
    RemovalUnfinished,
    SatelliteBeingRemoved,
    SatelliteExists,
    SatelliteInUse,
    StoreError,
)
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.machine.rules import backed_off
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.ids import machine_id_of
from bentpipe.daemon.model import MachineState, SatelliteKey
from bentpipe.daemon.providers.base import Provider
from bentpipe.daemon.providers.series import Series
from bentpipe.daemon.registry.contract import Registry
from bentpipe.daemon.registry.launched import LaunchedSatellite, LaunchedStore, OrgFull
from bentpipe.daemon.registry.registered import NameTaken
from bentpipe.daemon.tasks import Owner, contained

log = logging.getLogger("bentpipe.fleet")

REFRESH_S = 1.0
"""Between reads of the store: with a slow read, a change is taken up within two seconds, as those of tokens are."""
LAUNCH_ATTEMPTS = 3
"""Of a launch that the provider has not answered: with one token they make one machine."""
RETRY_S = 0.5
FINISH_S = 15.0
"""For so long a client waits for the end of a removal. After that it goes on without the client."""
FINISH_AGAIN_S = 0.25
"""Between a client's looks whether connections, on all hosts, and the machine have ended."""
GO_ON_FIRST_S, GO_ON_MOST_S = 1.0, 30.0
"""Between the attempts to finish a removal whose client waits no longer."""
REFUSED = (ProviderCapacity, ProviderPermanent, ProviderThrottled)
"""The provider has refused a launch, so that it has made no machine."""
STILL_THERE = (
    "takes no clients any more, but its machine is still there, and the edge host goes on trying to destroy it"
)
MAY_BE_LEFT = "the launch may have made a machine, and the edge host goes on looking for it to destroy it"


class Parts(Protocol):
    """What the rest of the daemon keeps of each satellite."""

    def add(self, section: SatelliteSection, kind: MachineTypeSection) -> None:
        """A satellite is about to be taken up, whose section was made of its machine type."""
        ...

    def end_use(self, key: SatelliteKey) -> None:
        """End the connections to a satellite, and what keeps it awake."""
        ...

    def forget(self, key: SatelliteKey) -> None:
        """A satellite is gone."""
        ...


@dataclasses.dataclass(slots=True)
class _Taken:
    row: LaunchedSatellite
    satellite: Satellite
    removals: Series
    attempts: int = 0
    """To finish its removal, by the task."""
    again_at: float = float("-inf")


class Provisioner:
    """`run_provisioning` must run."""

    def __init__(
        self,
        fleet: Fleet,
        provider: Provider,
        store: LaunchedStore,
        registry: Registry,
        parts: Parts,
        types: Collection[MachineTypeSection],
        *,
        most_per_org: int,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._fleet = fleet
        self._provider = provider
        self._store = store
        self._registry = registry
        self._parts = parts
        self._types: Mapping[tuple[str, str], MachineTypeSection] = {(each.size, each.platform): each for each in types}
        self._most_per_org = most_per_org
        self._wall = wall
        self._taken: dict[SatelliteKey, _Taken] = {}
        self._changing = trio.Lock()
        """Held while the store is read or written and this host's satellites follow, so that nothing acts on an old read."""
        self._read_failed = False
        self._unknown: set[LaunchedSatellite] = set()

    def has(self, key: SatelliteKey) -> bool:
        """Whether it is a launched satellite, and not one of the configuration."""
        return key in self._taken

    # -- launch --------------------------------------------------------------------------------------------------------

    async def launch(self, key: SatelliteKey, size: str, platform: str, principal: str) -> None:
        """Make a satellite and launch its machine; returns when the provider has accepted that. Idempotent.

        Raises InvalidRequest (no such machine type), SatelliteExists, SatelliteBeingRemoved, LimitReached, ProviderError,
        StoreError. If the machine cannot be launched, the satellite is removed again; RemovalUnfinished says that this
        goes on.
        """
        kind = self._type(size, platform)
        row = LaunchedSatellite(key, kind.size, kind.platform, principal, int(self._wall() * 1e6))
        async with self._changing:
            known = await self._add(row)
            taken = await self._take_up(known, kind)
        try:
            await self._create(taken.satellite)
        except ProviderError as exc:
            if known == row and not await self._undo(taken, refused=isinstance(exc, REFUSED)):
                words = f"; {MAY_BE_LEFT}"
                raise RemovalUnfinished(str(exc) + words, peer_hint=exc.peer_hint + words) from exc
            raise
        if taken.satellite.retired:
            raise SatelliteBeingRemoved(f"{key} was removed while it was launched")
        log.info("launched", extra={"fields": {"satellite": str(key), "size": kind.size, "principal": principal}})

    def _type(self, size: str, platform: str) -> MachineTypeSection:
        """The type of a size and a platform; the first of the configuration that fits what is not empty."""
        for each in self._types.values():
            if size in ("", each.size) and platform in ("", each.platform):
                return each
        known = ", ".join(f"{size} ({platform})" for size, platform in self._types)
        raise InvalidRequest(f"no machine type has size {size!r} and platform {platform!r}; there are: {known}")

    async def _add(self, row: LaunchedSatellite) -> LaunchedSatellite:
        key = row.key
        if key not in self._taken and self._fleet.find(key) is not None:
            raise SatelliteExists(f"there is another satellite {key} already")
        try:
            known = await self._store.add(row, most=self._most_per_org)
        except NameTaken as exc:
            raise SatelliteExists(str(exc)) from exc
        except OrgFull as exc:
            words = f"limits.max_launched_per_org: the org has {self._most_per_org} launched satellites already"
            raise LimitReached(str(exc), peer_hint=words) from exc
        if known.removing:
            raise SatelliteBeingRemoved(f"{key} is being removed: try again in a moment")
        if (known.size, known.platform) != (row.size, row.platform):
            raise SatelliteExists(f"there is a satellite {key} already, of size {known.size} for {known.platform}")
        return known

    async def _create(self, satellite: Satellite) -> None:
        for _ in range(LAUNCH_ATTEMPTS - 1):
            try:
                return await satellite.create()
            except ProviderError as exc:
                if isinstance(exc, REFUSED) or not exc.retryable:
                    raise
                await trio.sleep(RETRY_S)
        await satellite.create()

    async def _undo(self, taken: _Taken, *, refused: bool) -> bool:
        """Remove what a failed launch has stored, and the machine that it may have made nevertheless.

        Returns whether nothing is left.
        """
        with trio.CancelScope(shield=True), contextlib.suppress(BentpipeError):  # what is left is finished by the task
            await self._begin_removal(taken)
            certain = refused and not taken.satellite.wakes
            with trio.move_on_after(FINISH_S):
                while not await self._finish(taken, certain=certain):
                    await trio.sleep(FINISH_AGAIN_S)
                return True
        return False

    # -- removal -------------------------------------------------------------------------------------------------------

    async def remove(self, key: SatelliteKey, *, force: bool) -> None:
        """Remove a launched satellite and destroy its machine. With `force` even if it is used.

        Returns once it is gone, or after FINISH_S: then it goes on. Raises NoSuchSatellite, SatelliteInUse, StoreError,
        and RemovalUnfinished if the provider refuses to destroy the machine.
        """
        taken = self._taken.get(key)
        if taken is None:
            raise NoSuchSatellite(f"no launched satellite {key}", peer_hint=SATELLITE_WORDS)
        if not force and not taken.satellite.retired:
            try:
                await taken.satellite.check_unused()
            except InUse as exc:
                raise SatelliteInUse(f"{key} is used now: remove it with --force, or when nobody uses it") from exc
        await self._begin_removal(taken)
        refusal: ProviderError | None = None
        with trio.move_on_after(FINISH_S):
            while True:
                try:
                    if await self._finish(taken):
                        return
                except ProviderError as exc:
                    refusal = exc
                    if not exc.retryable:
                        break
                await trio.sleep(FINISH_AGAIN_S)
        if refusal is not None:
            words = f"{key} {STILL_THERE}: "
            raise RemovalUnfinished(words + str(refusal), peer_hint=words + refusal.peer_hint)

    async def _begin_removal(self, taken: _Taken) -> None:
        async with self._changing:
            await self._store.begin_removal(taken.row)
            self._retire(taken)

    def _retire(self, taken: _Taken) -> None:
        taken.satellite.retire()
        self._parts.end_use(taken.row.key)

    async def _finish(self, taken: _Taken, *, certain: bool = False) -> bool:
        """Destroy the machine of a satellite that has retired, and delete it. Returns whether that is done.

        `certain`: no machine can appear that is not seen yet. Raises ProviderError, StoreError.
        """
        key, satellite = taken.row.key, taken.satellite
        if self._taken.get(key) is not taken:
            return True
        if satellite.is_acting:
            return False
        await satellite.destroy()
        if satellite.is_acting or not await self._is_gone(key) or not (certain or await self._is_settled(satellite)):
            return False
        async with self._changing:
            if self._taken.get(key) is taken:
                await self._registry.forget(key)
                await self._store.remove(taken.row)
                self._give_up(taken)
                log.info("removed", extra={"fields": {"satellite": str(key)}})
        return True

    async def _is_gone(self, key: SatelliteKey) -> bool:
        try:
            machine = await self._provider.describe(machine_id_of(key))
        except MachineNotFound:
            return True
        return machine.state is MachineState.TERMINATED

    async def _is_settled(self, satellite: Satellite) -> bool:
        """Whether the newest machine is known, or would have appeared by now."""
        newest = next((each for each in await self._registry.satellites() if each.key == satellite.key), None)
        if newest is None or newest.attempt is None or newest.generation == satellite.launched_generation:
            return True
        return self._wall() - newest.attempt.at_us / 1e6 >= satellite.rules.traits.appear_grace_s

    # -- as the store says ---------------------------------------------------------------------------------------------

    async def run_provisioning(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the store for ever. It has started when the store was read once, or could not be."""
        while True:
            await self._refresh()
            task_status.started()
            for taken in list(self._taken.values()):
                if taken.satellite.retired and trio.current_time() >= taken.again_at:
                    with contained(Owner("satellite removal", str(taken.row.key))):
                        await self._go_on(taken)
            await trio.sleep(REFRESH_S)

    async def _go_on(self, taken: _Taken) -> None:
        """Try to finish a removal. A series of failures is logged once."""
        failure: ProviderError | None = None
        try:
            await self._finish(taken)
        except ProviderError as exc:
            failure = exc
        except StoreError as exc:
            failure = ProviderRetryable(str(exc))
        taken.removals.told(failure, trio.current_time())
        taken.again_at = trio.current_time() + backed_off(GO_ON_FIRST_S, GO_ON_MOST_S, taken.attempts)
        taken.attempts += 1

    async def _refresh(self) -> None:
        async with self._changing:
            try:
                rows = {row.key: row for row in await self._store.satellites()}
            except StoreError as exc:
                if not self._read_failed:
                    log.error("cannot read the launched satellites", extra={"fields": {"error": str(exc)}})
                self._read_failed = True
                return
            self._read_failed = False
            for key, taken in list(self._taken.items()):
                row = rows.get(key)
                if row is None or row.created_us != taken.row.created_us:
                    self._retire(taken)  # another host has removed it
                    self._give_up(taken)
            for row in rows.values():
                with contained(Owner("satellite launch", str(row.key))):
                    await self._follow(row)
            self._unknown &= set(rows.values())

    async def _follow(self, row: LaunchedSatellite) -> None:
        kind = self._types.get((row.size, row.platform))
        why = "" if kind is not None else f"no machine type has size {row.size} and platform {row.platform}"
        if row.key not in self._taken and self._fleet.find(row.key) is not None:
            why = "there is another satellite of this name"
        if kind is not None and not why:
            taken = await self._take_up(row, kind)
            if row.removing and not taken.satellite.retired:
                self._retire(taken)
        elif row not in self._unknown:
            self._unknown.add(row)
            fields = {"satellite": str(row.key), "error": why}
            log.error("a launched satellite is not served by this host", extra={"fields": fields})

    async def _take_up(self, row: LaunchedSatellite, kind: MachineTypeSection) -> _Taken:
        """Have the satellite in this host's fleet."""
        taken = self._taken.get(row.key)
        if taken is not None and taken.row.created_us == row.created_us:
            return taken
        if taken is not None:
            self._retire(taken)
            self._give_up(taken)
        section = kind.satellite(row.key.org, row.key.name)
        with trio.CancelScope(shield=True):  # a client that leaves must not leave half of it
            self._parts.add(section, kind)
            series = Series(log, "remove a satellite", {"satellite": str(row.key)})
            taken_up = self._taken[row.key] = _Taken(row, await self._fleet.add(section), series)
        return taken_up

    def _give_up(self, taken: _Taken) -> None:
        del self._taken[taken.row.key]
        self._fleet.remove(taken.satellite)
        self._parts.forget(taken.row.key)
