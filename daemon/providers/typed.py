"""Turns every exception of a provider into a ProviderError, as the contract of `base` demands.

A provider converts the exceptions that it knows (EC2's codes, a program that is missing). An unexpected one (a plug-in's, a
library's, the kernel's) becomes ProviderRetryable here and only here: clients get a message, the log its traceback, and the
fleet tries again.
"""

import contextlib
from collections.abc import Iterator

from bentpipe.config.model import MachineSection
from bentpipe.daemon.errors import ProviderError, ProviderRetryable
from bentpipe.daemon.model import Machine, MachineId, MachineTraits, SleepMode
from bentpipe.daemon.providers.base import Provider
from bentpipe.daemon.tasks import Owner, note_failure

DESCRIBE = "look at the machine"


class TypedProvider:
    """A `Provider` around a provider that may raise any exception; `subject` names the satellite in the log."""

    def __init__(self, provider: Provider, subject: str) -> None:
        self._provider = provider
        self._subject = subject

    async def describe(self, machine_id: MachineId) -> Machine:
        """See Provider; so for all below."""
        with self._typed(DESCRIBE):
            return await self._provider.describe(machine_id)

    async def wait_changed(self, seen: Machine) -> Machine:
        """Wait until the machine differs."""
        with self._typed(DESCRIBE):
            return await self._provider.wait_changed(seen)

    def traits_of(self, machine_id: MachineId) -> MachineTraits:
        """Ask what machines of its kind are like."""
        with self._typed("learn what the machine is like"):
            return self._provider.traits_of(machine_id)

    def vouches_nowait(self, look: Machine) -> bool:
        """Return what the provider says; False if it raises."""
        try:
            return self._provider.vouches_nowait(look)
        except Exception as exc:
            note_failure(Owner("provider call", self._subject), exc, "the machine's address counts as uncertain")
            return False

    async def start(self, machine_id: MachineId) -> None:
        """Begin to start or resume the machine."""
        with self._typed("start the machine"):
            await self._provider.start(machine_id)

    async def stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool = False) -> None:
        """Begin to put the machine to sleep."""
        with self._typed("stop the machine"):
            await self._provider.stop(machine_id, mode, force=force)

    async def launch(self, machine_id: MachineId, token: str) -> None:
        """Begin to create the machine."""
        with self._typed("launch the machine"):
            await self._provider.launch(machine_id, token)

    async def terminate(self, machine_id: MachineId) -> None:
        """Begin to destroy the machine."""
        with self._typed("terminate the machine"):
            await self._provider.terminate(machine_id)

    async def objection_to(self, machine_id: MachineId, section: MachineSection) -> str:
        """Ask whether the machine can be changed."""
        with self._typed("learn whether the machine can be changed"):
            return await self._provider.objection_to(machine_id, section)

    async def adapt(self, machine_id: MachineId, section: MachineSection) -> None:
        """Change the machine."""
        with self._typed("change the machine"):
            await self._provider.adapt(machine_id, section)

    @contextlib.contextmanager
    def _typed(self, what: str) -> Iterator[None]:
        try:
            yield
        except ProviderError:
            raise
        except Exception as exc:
            note_failure(Owner("provider call", self._subject), exc, "it counts as a passing failure of the provider")
            kind = type(exc).__name__
            raise ProviderRetryable(f"cannot {what}: {kind}: {exc}", peer_hint=f"cannot {what} ({kind})") from exc
