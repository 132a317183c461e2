"""The contract between the fleet and a provider, which runs machines.

A provider knows its machines and nothing of satellites, tokens or clients. A call may take long and may be cancelled at any
checkpoint; after a cancelled call `describe` still returns the machine's real state. A provider sends a call that changes a
machine only while the caller's permit holds (see `permit`): it repeats no call and takes none from a queue after another
host may have had its turn.
`tests/beds/contracts/provider.py` is this text as tests.
"""

from typing import Protocol

from bentpipe.config.model import MachineSection
from bentpipe.daemon.model import Machine, MachineId, MachineTraits, SleepMode


class Provider(Protocol):
    """Starts, watches and stops machines. Every method raises a `ProviderError` subclass and nothing else."""

    async def describe(self, machine_id: MachineId) -> Machine:
        """Return the machine's present state. Raises MachineNotFound."""
        ...

    async def wait_changed(self, seen: Machine) -> Machine:
        """Return as soon as the machine differs from `seen` (at once if it does already).

        Never raises MachineNotFound for a machine that was seen before: a machine that is gone is TERMINATED.
        """
        ...

    def traits_of(self, machine_id: MachineId) -> MachineTraits:
        """What machines of this kind are like, which never changes. No I/O. Raises MachineNotFound if it is nobody's."""
        ...

    def vouches_nowait(self, look: Machine) -> bool:
        """Whether the provider is sure that this machine has the look's address now. No I/O that waits; never raises.

        False if `look` is not the newest, has no address, or is so old that another machine may have got its address.
        For a moment after `describe` it is True for what that returned, unless the provider knows of another machine
        with the address.
        """
        ...

    async def start(self, machine_id: MachineId) -> None:
        """Begin to start or resume the machine; returns when the provider has accepted that, not when the machine runs.

        Does nothing if the machine is PENDING or RUNNING. Raises ProviderRetryable if it is STOPPING, MachineNotFound if
        it is TERMINATED.
        """
        ...

    async def stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool = False) -> None:
        """Begin to put the machine to sleep; returns when accepted. Raises SleepModeRefused, SleepTooEarly.

        Does nothing if the machine is STOPPING, STOPPED or HIBERNATED. With `force`, a machine that is stuck in STOPPING
        loses power: what it had in memory is lost.
        """
        ...

    async def launch(self, machine_id: MachineId, token: str) -> None:
        """Begin to create the machine as the configuration says; returns when accepted. The machine then starts by itself.

        One token (64 ASCII characters at most) makes one machine, however often the call is repeated. Does nothing if
        the machine exists. If the configuration has alternatives and the first has no capacity, the next is tried. If a
        machine can appear after the call has failed, the caller's record says so: see `attempts`.

        Raises ProviderPermanent if the configuration does not say how to create it, LaunchTokenSpent if
        the token's machine is known to be gone.
        """
        ...

    async def objection_to(self, machine_id: MachineId, section: MachineSection) -> str:
        """Why the machine cannot become what `section` says with its disks kept, in words for clients; "" if it can.

        Changes nothing. A machine that does not exist can become anything.
        """
        ...

    async def adapt(self, machine_id: MachineId, section: MachineSection) -> None:
        """Make a sleeping machine what `section` says, with its disks kept. What it had in memory is lost.

        Does nothing if it is that already, or does not exist. Raises ProviderPermanent with `objection_to`'s words,
        ProviderRetryable if it is not asleep.
        """
        ...

    async def terminate(self, machine_id: MachineId) -> None:
        """Begin to destroy the machine and its disks; returns when accepted. Does nothing if the machine is gone.

        Raises ProviderPermission for a machine that is not marked as ours.
        """
        ...
