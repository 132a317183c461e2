"""A provider that acts on a machine only in this host's turn, and puts it to sleep only if no host uses it.

It stands between one satellite and the real provider. Looks pass through. If another host is the reason that a call cannot
be made, the satellite gets that as a provider's error: a sleep that another host forbids is SleepVetoed.
"""

import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import trio

from bentpipe.config.model import MachineSection
from bentpipe.daemon.coordination.contract import IN_USE_HERE, Coordination, InUse
from bentpipe.daemon.errors import MachineNotFound, ProviderRetryable, SleepVetoed, StoreError
from bentpipe.daemon.fleet.launches import LaunchTokens
from bentpipe.daemon.fleet.reserve_giver import ReserveGiver, ReserveWish
from bentpipe.daemon.model import Machine, MachineId, MachineState, MachineTraits, SatelliteKey, SleepMode
from bentpipe.daemon.providers.attempts import recorded_by
from bentpipe.daemon.providers.base import Provider
from bentpipe.daemon.providers.permit import permitted_by

log = logging.getLogger("bentpipe.fleet")

TURN_LOST = "this host was paused for so long that another may be acting on the satellite now"

SETTLE_S, SETTLE_LOOK_S = 5.0, 0.5
"""How long the machine of an earlier process may take to show that its stop call was accepted, and how often it is looked
at. A cloud's descriptions are consistent within seconds."""


class CoordinatedProvider:
    """`Provider` for the machine of one satellite. `is_used` says whether a client of this host forbids to stop it."""

    def __init__(
        self,
        provider: Provider,
        coordination: Coordination,
        key: SatelliteKey,
        is_used: Callable[[], bool],
        tokens: LaunchTokens,
        confirm: Callable[[], Awaitable[None]] | None = None,
        reserve: ReserveGiver | None = None,
        noting_stop: Callable[[SatelliteKey], AbstractAsyncContextManager[object]] = contextlib.nullcontext,
        kept_shut: Callable[[SatelliteKey], AbstractAsyncContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        """`noting_stop`: see FleetContext. `kept_shut`: see Gates.

        `confirm` is called in the turn, before a machine is launched, changed or destroyed. It raises ProviderRetryable if
        another host has made something else of the satellite meanwhile, and StoreError.
        """
        self._confirm = confirm
        self._reserve = reserve
        self._noting_stop = noting_stop
        self._kept_shut = kept_shut
        self._unsettled = False
        self._settled_at: float | None = None
        self._provider = provider
        self._coordination = coordination
        self._key = key
        self._is_used = is_used
        self._tokens = tokens

    def expect_stop(self) -> None:
        """An earlier process was about to stop the machine when it died: no look shows it before that is settled."""
        self._unsettled = True

    async def describe(self, machine_id: MachineId) -> Machine:
        """See Provider. A machine whose stop call may have been sent is shown once it goes down, or SETTLE_S later."""
        while self._unsettled:
            now = trio.current_time()
            self._settled_at = now + SETTLE_S if self._settled_at is None else self._settled_at
            seen = await self._provider.describe(machine_id)
            self._unsettled = seen.state is MachineState.RUNNING and now < self._settled_at
            if self._unsettled:
                await trio.sleep(SETTLE_LOOK_S)
        return await self._provider.describe(machine_id)

    async def wait_changed(self, seen: Machine) -> Machine:
        """See Provider."""
        return await self._provider.wait_changed(seen)

    def traits_of(self, machine_id: MachineId) -> MachineTraits:
        """See Provider."""
        return self._provider.traits_of(machine_id)

    def vouches_nowait(self, look: Machine) -> bool:
        """See Provider."""
        return self._provider.vouches_nowait(look)

    async def start(self, machine_id: MachineId) -> None:
        """See Provider. If the store cannot be reached, it starts without the turn: two starts have the effect of one."""
        try:
            async with self._coordination.acting(self._key) as turn:
                if not turn.alone:
                    seen = await self._provider.describe(machine_id)
                    if seen.state in (MachineState.PENDING, MachineState.RUNNING):
                        return  # the host that had the turn before has started it
                    if not turn.is_ours():
                        raise ProviderRetryable(TURN_LOST)
                with permitted_by(turn.is_ours):
                    await self._provider.start(machine_id)
                return
        except StoreError as exc:
            log.warning("started out of turn", extra={"fields": {"satellite": str(self._key), "error": str(exc)}})
        await self._provider.start(machine_id)

    async def stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool = False) -> None:
        """See Provider. Raises SleepVetoed too if a client uses the satellite, or if the store cannot be reached."""
        if force:
            await self._stop(machine_id, mode, force=True)
            return
        # Before the turn: who comes through the gate has not entered, and is known only once the gate is shut.
        async with self._kept_shut(self._key):
            await self._stop(machine_id, mode, force=False)

    async def _stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool) -> None:
        try:
            async with self._coordination.acting(self._key) as turn:
                if force:
                    # A stopping machine cannot be used, and clients that wait for it need the stop to end.
                    seen = await self._provider.describe(machine_id)
                    if seen.state is not MachineState.STOPPING:
                        return
                else:
                    await turn.close(self._is_used)
                    if self._is_used():
                        raise SleepVetoed(IN_USE_HERE)
                if not turn.is_ours():
                    raise SleepVetoed(TURN_LOST)
                async with self._noting_stop(self._key):
                    if not force and self._is_used():
                        raise SleepVetoed(IN_USE_HERE)
                    with turn.while_ours() as scope, permitted_by(turn.is_ours):
                        await self._provider.stop(machine_id, mode, force=force)
                if scope.cancelled_caught:
                    raise SleepVetoed(TURN_LOST)
        except StoreError as exc:
            raise SleepVetoed(str(exc)) from exc

    async def launch(self, machine_id: MachineId, token: str) -> None:
        """See Provider. Raises ProviderRetryable if the store cannot be reached: two launches would cost money."""
        try:
            async with self._coordination.acting(self._key) as turn:
                await self._check_current()
                token = await self._tokens.begin(token)
                if not turn.is_ours():
                    raise ProviderRetryable(TURN_LOST)
                with permitted_by(turn.is_ours), recorded_by(self._tokens.record):
                    if not await self._is_given(machine_id, token):
                        await self._provider.launch(machine_id, token)
                await self._tokens.done(machine_id)
        except StoreError as exc:
            raise ProviderRetryable(str(exc), peer_hint=exc.peer_hint) from exc

    async def _is_given(self, machine_id: MachineId, token: str) -> bool:
        """Whether it gets a machine from the reserve. An earlier launch that may have made one is repeated first."""
        if self._reserve is None or self._tokens.generation == 0 or self._tokens.record.open is not None:
            return False
        wish = ReserveWish(self._key, machine_id, self._tokens.generation, token)
        return await self._reserve.give(wish, functools.partial(self._exists, machine_id))

    async def _exists(self, machine_id: MachineId) -> bool:
        try:
            seen = await self._provider.describe(machine_id)
        except MachineNotFound:
            return False
        return seen.state is not MachineState.TERMINATED

    async def objection_to(self, machine_id: MachineId, section: MachineSection) -> str:
        """See Provider."""
        return await self._provider.objection_to(machine_id, section)

    async def adapt(self, machine_id: MachineId, section: MachineSection) -> None:
        """See Provider. Raises SleepVetoed too if a client uses the satellite, ProviderRetryable without the store."""
        async with self._alone():
            await self._provider.adapt(machine_id, section)

    async def terminate(self, machine_id: MachineId) -> None:
        """See Provider. Raises SleepVetoed too if a client uses the satellite, ProviderRetryable without the store."""
        async with self._alone():
            await self._provider.terminate(machine_id)

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """This host's turn, with no client on any host."""
        try:
            async with self._kept_shut(self._key), self._coordination.acting(self._key) as turn:
                await turn.close(self._is_used)
                await self._check_current()
                if not turn.is_ours():
                    raise ProviderRetryable(TURN_LOST)
                with permitted_by(turn.is_ours):
                    yield
        except InUse as exc:
            raise SleepVetoed(str(exc), peer_hint=exc.peer_hint) from exc
        except StoreError as exc:
            raise ProviderRetryable(str(exc), peer_hint=exc.peer_hint) from exc

    async def _check_current(self) -> None:
        if self._confirm is not None:
            await self._confirm()
