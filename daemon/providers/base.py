"""The contract between the fleet and whatever runs its machines.

A provider is the truth about its machines: it keeps no opinion of satellites, tokens or clients. Calls may take long
and may be cancelled at any checkpoint; a cancelled call leaves the machine in a state that `describe` tells truly. What
changes a machine is sent only while the caller's permit holds (see `permit`): nothing is repeated, or taken out of a
queue, after another host may have had its turn.
`tests/beds/contracts/provider.py` is this text as tests.
"""

from typing import Protocol

from bentpipe.daemon.model import Machine, MachineId, MachineTraits, SleepMode


class Provider(Protocol):
    """Starts, watches and stops machines. Every method raises a `ProviderError` subclass and nothing else."""

    async def describe(self, machine_id: MachineId) -> Machine:
        """Say how the machine is now. Raises MachineNotFound."""
        ...

    async def wait_changed(self, seen: Machine) -> Machine:
        """Return as soon as a look at the machine differs from `seen` (at once if it does already).

        Never raises MachineNotFound for a machine that was seen: one that is gone is TERMINATED.
        """
        ...

    def traits_of(self, machine_id: MachineId) -> MachineTraits:
        """What machines of this kind are like, which never changes. No I/O. Raises MachineNotFound if it is nobody's."""
        ...

    def vouches_nowait(self, look: Machine) -> bool:
        """Whether what answers at the look's address now is known to be this machine. No I/O that waits; never raises.

        False if `look` is not the newest, has no address, or is too old for the provider to be sure that nobody else has
        been given its address. For a moment after `describe` it is True of what that returned, unless the provider knows
        of another that has the address.
        """
        ...

    async def start(self, machine_id: MachineId) -> None:
        """Begin to start or resume the machine; returns once the provider has accepted, not when it runs.

        On a machine that is PENDING or RUNNING already it does nothing. On one that is STOPPING it raises
        ProviderRetryable, on one that is TERMINATED MachineNotFound.
        """
        ...

    async def stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool = False) -> None:
        """Begin to put the machine to sleep; returns once accepted. Raises SleepModeRefused, SleepTooEarly.

        On a machine that is STOPPING, STOPPED or HIBERNATED already it does nothing. With `force` one that is stuck in
        STOPPING is cut off: what it kept in memory is lost.
        """
        ...

    async def launch(self, machine_id: MachineId, token: str) -> None:
        """Begin to create the machine as the configuration says; returns once accepted. It then comes up by itself.

        However often it is called, one token (64 ASCII characters at most) makes one machine. On a machine that exists
        it does nothing. Raises ProviderPermanent if the configuration does not say how to create it, LaunchTokenSpent if
        the token's machine is known to be gone.
        """
        ...

    async def terminate(self, machine_id: MachineId) -> None:
        """Begin to destroy the machine and all that it kept; returns once accepted. On one that is gone it does nothing.

        Raises ProviderPermission for a machine that is not marked as ours.
        """
        ...
