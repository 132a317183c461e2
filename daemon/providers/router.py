"""Several providers as one: a call for a machine goes to the provider that the machine is configured with.

Owns which machine belongs to which provider, and that the providers run and end together. The service builds it, the fleet
uses it.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

import trio

from bentpipe.config.model import MachineSection
from bentpipe.daemon.errors import MachineNotFound
from bentpipe.daemon.model import Machine, MachineId, MachineState, MachineTraits, SleepMode
from bentpipe.daemon.providers.base import Provider
from bentpipe.daemon.tasks import Decision, Owner, run_owned, start_owned


class RunnableProvider(Provider, Protocol):
    """A provider with background tasks, which the service starts and ends."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the tasks that the other methods need, until cancelled."""
        ...

    async def aclose(self) -> None:
        """End what must not outlive the daemon."""
        ...

    @property
    def call_counts(self) -> Mapping[tuple[str, str], int]:
        """How many calls of a cloud's API were made, by API and error code ("ok" if there was none)."""
        ...


class Providers:
    """Implements `Provider` over several. One instance may serve many machines."""

    def __init__(self, routes: Mapping[MachineId, RunnableProvider], more: Iterable[RunnableProvider] = ()) -> None:
        """`more` are providers that may have no machine yet."""
        self._routes = dict(routes)
        self._all = list(dict.fromkeys((*routes.values(), *more)))

    def add(self, machine_id: MachineId, provider: RunnableProvider) -> None:
        """Route one more machine to its provider, which is one of ours."""
        self._routes[machine_id] = provider

    def forget(self, machine_id: MachineId) -> None:
        """Route a machine to nobody any more."""
        self._routes.pop(machine_id, None)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run all of them, until cancelled. One that fails is started again; meanwhile its calls raise ProviderRetryable."""
        async with trio.open_nursery() as nursery:
            for provider in self._all:
                await nursery.start(start_owned, Owner("provider", type(provider).__name__), provider.run)
            task_status.started()
            await trio.sleep_forever()

    async def aclose(self) -> None:
        """Close all of them, at once."""
        async with trio.open_nursery() as nursery:
            for provider in self._all:
                owner = Owner("provider close", type(provider).__name__, Decision.GIVE_UP)
                nursery.start_soon(run_owned, owner, provider.aclose)

    @property
    def call_counts(self) -> Mapping[tuple[str, str], int]:
        """The counts of all providers."""
        return {key: count for provider in self._all for key, count in provider.call_counts.items()}

    async def describe(self, machine_id: MachineId) -> Machine:
        """See `Provider`; so for all below."""
        return await self._of(machine_id).describe(machine_id)

    async def wait_changed(self, seen: Machine) -> Machine:
        """Return what its provider says; a machine without a provider is TERMINATED."""
        if (provider := self._routes.get(seen.machine_id)) is not None:
            return await provider.wait_changed(seen)
        gone = Machine(seen.machine_id, MachineState.TERMINATED)
        await trio.lowlevel.checkpoint()
        return gone if seen != gone else await trio.sleep_forever()

    def traits_of(self, machine_id: MachineId) -> MachineTraits:
        """Return what its provider says."""
        return self._of(machine_id).traits_of(machine_id)

    def vouches_nowait(self, look: Machine) -> bool:
        """Return what its provider says."""
        provider = self._routes.get(look.machine_id)
        return provider is not None and provider.vouches_nowait(look)

    async def start(self, machine_id: MachineId) -> None:
        """Begin to start or resume the machine."""
        await self._of(machine_id).start(machine_id)

    async def stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool = False) -> None:
        """Begin to put the machine to sleep."""
        await self._of(machine_id).stop(machine_id, mode, force=force)

    async def launch(self, machine_id: MachineId, token: str) -> None:
        """Begin to create the machine."""
        await self._of(machine_id).launch(machine_id, token)

    async def terminate(self, machine_id: MachineId) -> None:
        """Begin to destroy the machine."""
        await self._of(machine_id).terminate(machine_id)

    async def objection_to(self, machine_id: MachineId, section: MachineSection) -> str:
        """Return what its provider says."""
        return await self._of(machine_id).objection_to(machine_id, section)

    async def adapt(self, machine_id: MachineId, section: MachineSection) -> None:
        """Make a sleeping machine what `section` says."""
        await self._of(machine_id).adapt(machine_id, section)

    def _of(self, machine_id: MachineId) -> RunnableProvider:
        try:
            return self._routes[machine_id]
        except KeyError:
            raise MachineNotFound(f"no machine is configured as {machine_id}") from None
