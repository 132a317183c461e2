"""The provider of machines that have registered themselves: it knows them by their heartbeats alone.

Owns when a machine was last heard of. Such a machine is never started, stopped, launched or terminated: it runs while its
heartbeats come, and counts as gone without them. The registrar (daemon/fleet/registrar.py) tells each heartbeat.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import trio

from bentpipe.config.model import MachineSection
from bentpipe.daemon.errors import MachineNotFound, ProviderPermanent
from bentpipe.daemon.model import Address, Machine, MachineId, MachineState, MachineTraits, SleepMode

PLAINTEXT_AGE_S = 15.0
"""For so long after a heartbeat, which comes from the machine's own address, the address counts as the machine's if nothing
else proves that. It is one and a half times the interval of heartbeats that docs/registered.md asks for."""

TRAITS = MachineTraits(
    look_deadline_s=5.0,  # a look asks nobody
    address_age_s=5.0,  # for a boot id: an address may pass to another machine as soon as this one is off
    appear_grace_s=0.0,  # nothing is launched
    start_grace_s=0.0,  # nothing is started
    stop_grace_s=0.0,  # nothing is stopped
    stuck_stopping_s=600.0,  # never: a machine without heartbeats is gone
    too_early_retry_s=60.0,  # never asked for
    hibernation_limit_s=math.inf,  # it does not hibernate
)
NOT_OURS = "the satellite has registered itself: bentpipe neither starts nor stops its machine"


@dataclasses.dataclass(slots=True)
class _Known:
    address: Address
    proven: bool
    """Whether its certificate proves who answers, so that its address need not."""
    beat_us: int
    heard_at: float
    """When its last heartbeat came, on `clock`."""


class RegisteredProvider:
    """`Provider` for such machines."""

    def __init__(self, offline_after_s: float, clock: Callable[[], float] = trio.current_time) -> None:
        self._offline_after_s = offline_after_s
        self._clock = clock
        self._known: dict[MachineId, _Known] = {}
        self._changed = trio.Event()

    def follow(self, offline_after_s: float) -> None:
        """From now on a machine without heartbeats counts as gone after so long."""
        self._offline_after_s = offline_after_s
        self._tell()

    def heard(self, machine_id: MachineId, address: Address, beat_us: int, *, proven: bool, age_s: float = 0.0) -> None:
        """The machine is registered at `address`, and its newest heartbeat is the one of `beat_us`.

        `age_s` is the age of that heartbeat, if it is known here for the first time.
        """
        known = self._known.get(machine_id)
        if known is not None and known.beat_us == beat_us and known.address == address and known.proven == proven:
            return
        self._known[machine_id] = _Known(address, proven, beat_us, self._clock() - age_s)
        self._tell()

    def forget(self, machine_id: MachineId) -> None:
        """The machine is not registered any more."""
        if self._known.pop(machine_id, None) is not None:
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _seen(self, machine_id: MachineId) -> Machine:
        known = self._known.get(machine_id)
        if known is None:
            return Machine(
                machine_id, MachineState.TERMINATED, reason="it is not registered", hint="it is not registered"
            )
        if self._clock() >= known.heard_at + self._offline_after_s:
            words = f"it has sent no heartbeat for {self._offline_after_s:g} s"
            return Machine(machine_id, MachineState.TERMINATED, reason=words, hint=words)
        return Machine(machine_id, MachineState.RUNNING, known.address)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run nothing: there is no task."""
        task_status.started()
        await trio.sleep_forever()

    async def aclose(self) -> None:
        """Close nothing."""
        await trio.lowlevel.checkpoint()

    @property
    def call_counts(self) -> Mapping[tuple[str, str], int]:
        """None: there is no API to call."""
        return {}

    async def describe(self, machine_id: MachineId) -> Machine:
        """See Provider; so for all below."""
        await trio.lowlevel.checkpoint()
        if machine_id not in self._known:
            raise MachineNotFound(f"no machine is registered as {machine_id}")
        return self._seen(machine_id)

    async def wait_changed(self, seen: Machine) -> Machine:
        """Return when a heartbeat comes, none has come for too long, or it is registered elsewhere."""
        await trio.lowlevel.checkpoint()
        while (now := self._seen(seen.machine_id)) == seen:
            known = self._known.get(seen.machine_id)
            running = known is not None and now.state is MachineState.RUNNING
            with trio.move_on_at(known.heard_at + self._offline_after_s if known is not None and running else math.inf):
                await self._changed.wait()
        return now

    def traits_of(self, machine_id: MachineId) -> MachineTraits:
        """The same for all of them."""
        return TRAITS

    def vouches_nowait(self, look: Machine) -> bool:
        """Whether the machine's certificate will prove it, or it has just called from that address."""
        known = self._known.get(look.machine_id)
        if known is None or known.address != look.address or self._seen(look.machine_id) != look:
            return False
        return known.proven or self._clock() < known.heard_at + PLAINTEXT_AGE_S

    async def start(self, machine_id: MachineId) -> None:
        """Refuse."""
        raise ProviderPermanent(NOT_OURS)

    async def stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool = False) -> None:
        """Refuse."""
        raise ProviderPermanent(NOT_OURS)

    async def launch(self, machine_id: MachineId, token: str) -> None:
        """Refuse."""
        raise ProviderPermanent(NOT_OURS)

    async def terminate(self, machine_id: MachineId) -> None:
        """Refuse."""
        raise ProviderPermanent(NOT_OURS)

    async def objection_to(self, machine_id: MachineId, section: MachineSection) -> str:
        """Object."""
        await trio.lowlevel.checkpoint()
        return NOT_OURS

    async def adapt(self, machine_id: MachineId, section: MachineSection) -> None:
        """Refuse."""
        raise ProviderPermanent(NOT_OURS)
