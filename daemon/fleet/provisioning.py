"""Launches and removes satellites at run time, and keeps this host's satellites as the store of launched ones says.

A launch first stores the satellite, then takes it up in this host's fleet, then launches its machine. A removal first
stores that it is being removed, so that each host refuses its clients and ends their connections within REFRESH_S; then the
machine is terminated in this host's turn; then the satellite is deleted from the store. If a host dies between any two of
these steps, the others go on, or the same host when it is started again: a stored satellite without a machine gets one by
the next launch or build, with the same token, and a removal that was begun is finished.

An update is stored first, too. Each host then refuses new clients, and the machine is changed or destroyed in a host's turn,
while nobody uses it. If somebody does, or the provider refuses, the update is given up and the satellite stays what it was.
If a host dies, the others go on.

Owns: which launched satellites are in the fleet. Knows no client and no configuration file.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Collection, Mapping

import trio

from bentpipe.config.model import MachineTypeSection
from bentpipe.daemon.coordination.contract import InUse
from bentpipe.daemon.errors import (
    SATELLITE_WORDS,
    BentpipeError,
    InvalidRequest,
    LimitReached,
    NoSuchSatellite,
    ProviderCapacity,
    ProviderError,
    ProviderPermanent,
    ProviderRetryable,
    ProviderThrottled,
    RemovalUnfinished,
    SatelliteBeingRemoved,
    SatelliteBeingUpdated,
    SatelliteExists,
    SatelliteInUse,
    SleepVetoed,
    StoreError,
    UpdateGivenUp,
    UpdateUnfinished,
)
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.machine.rules import backed_off
from bentpipe.daemon.fleet.row_reader import RowReader
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.fleet.satellite_parts import Parts
from bentpipe.daemon.fleet.taken_up import TakenUp, is_gone, is_settled, newest_machine
from bentpipe.daemon.fleet.updating import (
    WantedUpdate,
    adapt_machine,
    check_possible,
    decide_change,
    section_of,
    words_of,
)
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.providers.base import Provider
from bentpipe.daemon.providers.series import Series
from bentpipe.daemon.registry.contract import Registry
from bentpipe.daemon.registry.launched import LaunchedSatellite, LaunchedStore, OrgFull, SatelliteChange
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
STILL_UPDATED = "is still being updated, and the edge host goes on with that"
NO_NEW_MACHINE = "is updated, but its new machine could not be launched, and the next build tries again"
MAY_BE_LEFT = "the launch may have made a machine, and the edge host goes on looking for it to destroy it"


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
        self._taken: dict[SatelliteKey, TakenUp] = {}
        self._changing = trio.Lock()
        """Held while the store is read or written and this host's satellites follow, so that nothing acts on an old read."""
        self._rows = RowReader(store.satellites, "launched satellites")
        self._unknown: set[LaunchedSatellite] = set()

    def has(self, key: SatelliteKey) -> bool:
        """Whether it is a launched satellite, and not one of the configuration."""
        return key in self._taken

    @property
    def served(self) -> Mapping[SatelliteKey, MachineTypeSection]:
        """The launched satellites that this host has, with the types that they were taken up with."""
        return {key: taken.kind for key, taken in self._taken.items()}

    def follow(self, types: Collection[MachineTypeSection], *, most_per_org: int) -> None:
        """Other machine types and another limit hold from now on, for launches and updates.

        A satellite that was launched before takes over the rules of its sleep. The rest of its type it gets as soon as it
        sleeps: see `run_provisioning`.
        """
        self._types = {(each.size, each.platform): each for each in types}
        self._most_per_org = most_per_org
        self._unknown.clear()
        for taken in self._taken.values():
            kind = self._types.get((taken.row.size, taken.row.platform), taken.kind)
            self._fleet.follow(taken.satellite, kind.satellite(taken.row.key.org, taken.row.key.name))

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
            if known == row and not await self._undo(taken):
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
        known = words_of(self._types)
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
        if known.change is not None:
            raise SatelliteBeingUpdated(f"{key} is being updated: try again in a moment")
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

    async def _undo(self, taken: TakenUp) -> bool:
        """Remove what a failed launch has stored, and the machine that it may have made nevertheless.

        Returns whether nothing is left.
        """
        with trio.CancelScope(shield=True), contextlib.suppress(BentpipeError):  # what is left is finished by the task
            await self._begin_removal(taken)
            with trio.move_on_after(FINISH_S):
                while not await self._finish(taken):
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
            await self._check_unused(taken, "remove it with --force, or when nobody uses it")
        await self._begin_removal(taken)
        refusal = await self._see_through(taken)
        if refusal is not None:
            words = f"{key} {STILL_THERE}: "
            raise RemovalUnfinished(words + str(refusal), peer_hint=words + refusal.peer_hint)

    async def _see_through(self, taken: TakenUp) -> ProviderError | None:
        """Finish a removal or an update, for FINISH_S at most. Returns why it is not finished, if that is known."""
        refusal: ProviderError | None = None
        with trio.move_on_after(FINISH_S):
            while True:
                try:
                    if await self._finish(taken):
                        return None
                except ProviderError as exc:
                    refusal = exc
                    if not exc.retryable:
                        break
                await trio.sleep(FINISH_AGAIN_S)
        return refusal

    async def _begin_removal(self, taken: TakenUp) -> None:
        async with self._changing:
            await self._store.begin_removal(taken.row)
            taken.row = dataclasses.replace(taken.row, removing=True, change=None)
            self._retire(taken)

    def _retire(self, taken: TakenUp) -> None:
        taken.satellite.retire()
        self._parts.end_use(taken.row.key)

    async def _finish(self, taken: TakenUp) -> bool:
        """Take the next step of a removal or an update. Returns whether it was the last one.

        Raises ProviderError, StoreError.
        """
        async with taken.working:
            if self._taken.get(taken.row.key) is not taken or not taken.satellite.retired:
                return True
            if taken.satellite.is_acting:
                return False
            return await (self._finish_removal(taken) if taken.row.removing else self._finish_update(taken))

    async def _destroy(self, taken: TakenUp) -> bool:
        """Destroy a satellite's machine. Returns whether it is gone, and none can appear that is not seen yet."""
        # Read before the turn of the termination, in which the store is asked whether the row is still this one: a machine
        # that another host launches after that has a higher number.
        newest = await newest_machine(self._registry, taken.row.key)
        taken.gone_generation = 0 if newest is None else newest.generation
        await taken.satellite.calls.terminate()
        gone = not taken.satellite.is_acting and await is_gone(self._provider, taken.row.key)
        return gone and await is_settled(self._registry, taken.satellite, self._wall())

    async def _finish_removal(self, taken: TakenUp) -> bool:
        key = taken.row.key
        if not await self._destroy(taken):
            return False
        async with self._changing:
            if self._taken.get(key) is taken:
                await self._registry.forget(key, generation=taken.gone_generation)
                await self._store.remove(taken.row)
                self._give_up(taken)
                log.info("removed", extra={"fields": {"satellite": str(key)}})
        return True

    # -- update --------------------------------------------------------------------------------------------------------

    async def update(self, key: SatelliteKey, wanted: WantedUpdate) -> None:
        """Make a launched satellite what the client wants. Returns once it is that, or after FINISH_S: then it goes on.

        Raises NoSuchSatellite, InvalidRequest, NotServed, SatelliteInUse, SatelliteBeingRemoved, SatelliteBeingUpdated,
        StoreError, ProviderError before anything has changed; UpdateGivenUp if it is what it was; UpdateUnfinished.
        """
        taken = self._taken.get(key)
        if taken is None:
            raise NoSuchSatellite(f"no launched satellite {key}", peer_hint=SATELLITE_WORDS)
        row = taken.row
        if row.removing:
            raise SatelliteBeingRemoved(f"{key} is being removed")
        change = decide_change(row, wanted, self._types, int(self._wall() * 1e6))
        if change is None and row.change is None:
            return
        if change is None or (row.change is not None and not change.has_target_of(row.change)):
            raise SatelliteBeingUpdated(f"{key} is being updated to something else: try again in a moment")
        if row.change is None:
            await check_possible(taken.satellite, row, change, self._types)
            await self._check_unused(taken, "update it when nobody uses it")
            await self._begin_update(taken, row, change)
        refusal = await self._see_through(taken)
        if taken.outcome is not None:
            raise taken.outcome
        if refusal is not None:
            words = f"{key} {STILL_UPDATED}: "
            raise UpdateUnfinished(words + str(refusal), peer_hint=words + refusal.peer_hint)

    async def _begin_update(self, taken: TakenUp, row: LaunchedSatellite, change: SatelliteChange) -> None:
        async with self._changing:
            found = await self._store.begin_change(row, change)
            if found is None or found.change is None or not change.has_target_of(found.change):
                raise SatelliteBeingUpdated(f"{row.key} has just been changed by somebody else: try again in a moment")
            taken.row, taken.outcome, taken.attempts, taken.again_at = found, None, 0, float("-inf")
            taken.satellite.retire(SatelliteState.UPDATING)

    async def _finish_update(self, taken: TakenUp) -> bool:
        """Take the next step of an update, and give it up if it cannot be taken."""
        row = taken.row
        if row.change is None or (row.change.size, row.change.platform) not in self._types:
            return False  # another host, which has the machine type, carries it out
        try:
            if row.change.replace:
                done = await self._destroy(taken)
            else:
                done = await adapt_machine(taken.satellite, section_of(row, row.change, self._types))
        except ProviderError as exc:
            if not isinstance(exc, SleepVetoed) and exc.retryable:
                raise
            if row.change.replace and await is_gone(self._provider, row.key):
                raise  # the way back is gone with it
            return await self._give_update_up(taken, row.change, exc)
        return done and await self._end_update(taken, row, row.change)

    async def _end_update(self, taken: TakenUp, row: LaunchedSatellite, change: SatelliteChange) -> bool:
        renewed: TakenUp | None = None
        async with self._changing:
            if self._taken.get(row.key) is taken:
                if change.replace:
                    await self._registry.forget(row.key, generation=taken.gone_generation)
                if not await self._store.end_change(row, change, done=True):
                    return True  # another host has ended it, and the next look at the store shows how
                self._give_up(taken)
                renewed = await self._take_up(row.changed(), self._types[change.size, change.platform])
        log.info("updated", extra={"fields": {"satellite": str(row.key), "size": change.size, "anew": change.replace}})
        if renewed is not None and change.replace:
            try:
                await self._create(renewed.satellite)
            except ProviderError as exc:
                words = f"{row.key} {NO_NEW_MACHINE}: "
                log.warning(words, extra={"fields": {"error": str(exc)}})
                taken.outcome = UpdateUnfinished(words + str(exc), peer_hint=words + exc.peer_hint)
        return True

    async def _give_update_up(self, taken: TakenUp, change: SatelliteChange, reason: ProviderError) -> bool:
        async with self._changing:
            if await self._store.end_change(taken.row, change, done=False):
                words = f"{taken.row.key} is not updated, and stays what it was: "
                log.warning("an update was given up", extra={"fields": {"error": words + str(reason)}})
                taken.outcome = UpdateGivenUp(words + str(reason), peer_hint=words + reason.peer_hint)
                taken.row = dataclasses.replace(taken.row, change=None)
                taken.satellite.revive()
        return True

    async def _check_unused(self, taken: TakenUp, instead: str) -> None:
        try:
            await taken.satellite.check_unused()
        except InUse as exc:
            raise SatelliteInUse(f"{taken.row.key} is used now: {instead}") from exc

    async def _check_current(self, key: SatelliteKey) -> None:
        """Raises ProviderRetryable if the store does not say of the satellite what this host knows of it; StoreError."""
        taken = self._taken.get(key)
        if taken is None or await self._store.find(key) != taken.row:
            raise ProviderRetryable(f"{key} has just been changed, by another host or a client")

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

    async def _go_on(self, taken: TakenUp) -> None:
        """Try to finish a removal or an update. A series of failures is logged once."""
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
            rows = await self._rows.read()
            if rows is None:
                return
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
            taken = self._taken.get(row.key)
            if taken is not None and taken.kind != kind and not taken.satellite.retired and taken.satellite.is_dormant:
                await self._renew(taken, kind)
            self._show(await self._take_up(row, kind), row)
        elif row not in self._unknown:
            self._unknown.add(row)
            fields = {"satellite": str(row.key), "error": why}
            log.error("a launched satellite is not served by this host", extra={"fields": fields})

    def _show(self, taken: TakenUp, row: LaunchedSatellite) -> None:
        """Take over what the store says of a satellite that is in the fleet."""
        taken.row = row
        if row.removing:
            if taken.satellite.shown_state is not SatelliteState.DESTROYING:
                self._retire(taken)
        elif row.change is not None:
            if not taken.satellite.retired:
                taken.attempts, taken.again_at = 0, float("-inf")
            taken.satellite.retire(SatelliteState.UPDATING)
        elif taken.satellite.retired:
            taken.satellite.revive()

    async def _take_up(self, row: LaunchedSatellite, kind: MachineTypeSection) -> TakenUp:
        """Have the satellite in this host's fleet."""
        taken = self._taken.get(row.key)
        mark = (row.created_us, row.size, row.platform)
        if taken is not None and mark == (taken.row.created_us, taken.row.size, taken.row.platform):
            return taken
        if taken is not None:
            self._retire(taken)
            self._give_up(taken)
        section = kind.satellite(row.key.org, row.key.name)
        with trio.CancelScope(shield=True):  # a client that leaves must not leave half of it
            self._parts.add(section, kind)
            series = Series(log, "remove or update a satellite", {"satellite": str(row.key)})
            confirm = functools.partial(self._check_current, row.key)
            taken_up = self._taken[row.key] = TakenUp(row, kind, await self._fleet.add(section, confirm), series)
        return taken_up

    async def _renew(self, taken: TakenUp, kind: MachineTypeSection) -> None:
        """Its machine type is another one, and it sleeps: take it up anew."""
        key = taken.row.key
        section, confirm = kind.satellite(key.org, key.name), functools.partial(self._check_current, key)
        with trio.CancelScope(shield=True):
            self._parts.forget(key)
            self._parts.add(section, kind)
            satellite = await self._fleet.renew(taken.satellite, section, confirm)
            self._taken[key] = dataclasses.replace(taken, kind=kind, satellite=satellite)

    def _give_up(self, taken: TakenUp) -> None:
        del self._taken[taken.row.key]
        self._fleet.remove(taken.satellite)
        self._parts.forget(taken.row.key)
