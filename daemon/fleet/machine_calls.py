"""Makes the provider calls that one satellite's machine asks for, and feeds the machine with each result.

A series of failed calls is logged once, with the provider's own message: see `daemon/providers/series.py`.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from bentpipe.config.model import MachineSection
from bentpipe.daemon.errors import LaunchTokenSpent, MachineNotFound, ProviderError, ProviderRetryable
from bentpipe.daemon.fleet.launches import LaunchTokens
from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.fleet.machine.messages import Input
from bentpipe.daemon.fleet.presence import Presence
from bentpipe.daemon.model import MachineId, MachineState, SatelliteKey, SleepMode
from bentpipe.daemon.providers.base import Provider
from bentpipe.daemon.providers.series import Series

log = logging.getLogger("bentpipe.fleet")


class MachineCalls:
    """`feed` takes the results. `waiting` returns how many clients wait. `presence` enters the satellite for them."""

    def __init__(
        self,
        key: SatelliteKey,
        provider: Provider,
        machine_id: MachineId,
        tokens: LaunchTokens,
        look_deadline_s: float,
        *,
        feed: Callable[[Input], None],
        waiting: Callable[[], int],
        presence: Presence,
    ) -> None:
        self._provider = provider
        self._machine_id = machine_id
        self._tokens = tokens
        self._look_deadline_s = look_deadline_s
        self._feed = feed
        self._waiting = waiting
        self._presence = presence
        self._key = str(key)
        fields = {"satellite": self._key}
        self._starts = Series(log, "start a machine", fields)
        self.looks = Series(log, "look at a machine", fields)

    @property
    def launched_generation(self) -> int:
        """The generation of the machine whose launch the provider has accepted from this host; 0 if there is none."""
        return self._tokens.accepted

    async def look(self) -> None:
        """Look at the machine, and feed what is seen. Raises ProviderError.

        If the machine is not found, the watch reports that: it knows for how long a machine may be missing.
        """
        try:
            machine = await self._provider.describe(self._machine_id)
        except MachineNotFound:
            return
        self._feed(msg.Seen(machine))

    async def look_as_asked(self) -> None:
        """Carry out a Look."""
        error: ProviderError | None = ProviderRetryable(f"no look in {self._look_deadline_s:g} s")
        with trio.move_on_after(self._look_deadline_s):
            try:
                await self.look()
                error = None
            except ProviderError as exc:
                error = exc
        self.looks.told(error, trio.current_time())
        self._feed(msg.DescribeDone(error))

    async def start(self) -> None:
        """Carry out a Start."""
        await self._bring_up(self._provider.start(self._machine_id))

    async def create(self, generation: int) -> None:
        """Launch the machine if there is none, for the operator. The watch feeds what comes of it. Raises ProviderError."""
        token = self._tokens.asked(generation)
        try:
            await self._provider.launch(self._machine_id, token)
        except LaunchTokenSpent:  # what an earlier launch has made is gone
            self._tokens.spent()
            await self._provider.launch(self._machine_id, token)

    async def lay_down(self) -> bool:
        """Stop the machine if it is up. Returns whether it is asleep, or does not exist. Raises ProviderError."""
        try:
            machine = await self._provider.describe(self._machine_id)
        except MachineNotFound:
            return True
        if machine.state is MachineState.RUNNING:
            await self._provider.stop(self._machine_id, SleepMode.STOP)
        return machine.state in (MachineState.STOPPED, MachineState.HIBERNATED, MachineState.TERMINATED)

    async def objection_to(self, section: MachineSection) -> str:
        """See Provider."""
        return await self._provider.objection_to(self._machine_id, section)

    async def adapt(self, section: MachineSection) -> None:
        """See Provider."""
        await self._provider.adapt(self._machine_id, section)

    async def terminate(self) -> None:
        """Destroy the machine. Raises ProviderError, of which SleepVetoed says that a client still uses it."""
        await self._provider.terminate(self._machine_id)

    async def discard(self) -> None:
        """Destroy a machine that has not come up, for the clients that wait: they get another one. Raises as `terminate`."""
        error: ProviderError | None = None
        self._presence.is_discarding = True
        try:
            await self._provider.terminate(self._machine_id)
        except ProviderError as exc:
            error = exc
        finally:
            self._presence.is_discarding = False
        await self._presence.enter_again()
        if error is not None:
            raise error

    async def launch(self, generation: int) -> None:
        """Carry out a Launch."""
        await self._bring_up(self._provider.launch(self._machine_id, self._tokens.asked(generation)))

    async def _bring_up(self, call: Awaitable[None]) -> None:
        error: ProviderError | None = None
        try:
            await call
        except ProviderError as exc:
            error = exc
        self._starts.told(error, trio.current_time())
        self._feed(msg.StartDone(error))

    async def stop(self, asked: msg.Stop) -> None:
        """Carry out a Stop. A client may have come since it was decided, and this is the last moment to notice that."""
        if self._waiting() and not (asked.force or asked.restart):
            self._feed(msg.StopWithdrawn())
            return
        error: ProviderError | None = None
        try:
            await self._provider.stop(self._machine_id, asked.mode, force=asked.force)
        except ProviderError as exc:
            error = exc
            log.warning("sleep refused", extra={"fields": {"satellite": self._key, "error": str(exc)}})
        if asked.restart:
            await self._presence.enter_again()
        self._feed(msg.StopDone(error))
