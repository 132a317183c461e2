"""The contract between the fleet and a provider that keeps a reserve: machines without a satellite, asleep.

A machine of the reserve is known by the id in its tag, and by the provider's own name for it. It has neither a satellite's
tag nor its identity until it is assigned. The provider sends no call after the caller's permit has ended (see `permit`).
"""

import dataclasses
from collections.abc import Collection
from typing import Protocol

from bentpipe.config.model import MachineTypeSection
from bentpipe.daemon.model import Address, Fault, MachineId, MachineState, SleepMode


@dataclasses.dataclass(frozen=True, slots=True)
class SpareMachine:
    """One look at a machine that has the reserve's tag, or had it when it was looked at before."""

    spare: str
    """The id in its tag; "" if it has no such tag any more."""
    instance: str
    """The provider's name for it."""
    state: MachineState
    address: Address | None = None
    """None unless it runs."""
    up_since: float = 0.0
    """time.time() seconds of its newest start."""
    fault: Fault | None = None
    """Set if it is down because it could not come up."""
    reason: str = ""
    satellite: str = ""
    """ORG/NAME of the satellite whose tag it has; "" if it has none."""
    can_hibernate: bool = True


class SpareProvider(Protocol):
    """Launches machines of the reserve, and gives them to satellites. Every method raises ProviderError and nothing else."""

    async def look(self, known: Collection[str]) -> tuple[SpareMachine, ...]:
        """All living machines with the reserve's tag, and those of the names `known`, which may have lost the tag."""
        ...

    async def launch(self, kind: MachineTypeSection, spare: str) -> None:
        """Begin to create a machine. One id makes one machine, however often the call is repeated, by one daemon.

        A daemon that was started again may make a second one, if the type has alternatives. `look` shows both then.
        """
        ...

    def forget(self, spare: str) -> None:
        """The machine is not launched any more: forget what an unanswered launch needs."""
        ...

    async def lay_down(self, machine: SpareMachine, mode: SleepMode) -> None:
        """Begin to put a running machine to sleep. Raises SleepTooEarly, SleepModeRefused."""
        ...

    async def destroy(self, machine: SpareMachine) -> None:
        """Begin to destroy it. Does nothing if it is gone."""
        ...

    async def assign(self, instance: str, spare: str, machine_id: MachineId, token: str, *, again: bool) -> None:
        """Make a machine of the reserve the machine of a satellite, and start it. The satellite's machine exists then.

        It gets what it needs to enrol before it is started, and the satellite's tags after that. `token` is the launch's.
        `again`: an earlier attempt for the same launch may have done a part of it. Does nothing if the satellite has a
        machine already. Raises SpareUnusable if it can never be the satellite's; then it has no satellite's tag.
        """
        ...

    async def release(self, machine: SpareMachine) -> None:
        """Take the reserve's tag from a machine that is a satellite's."""
        ...
