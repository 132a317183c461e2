"""A provider whose machines are a few words in memory: for tests of what stands above it. It keeps the contract.

Transitions are made lazily, by trio's clock, so that a mocked clock moves them. Machines misbehave as they are told to.
"""

import dataclasses
import enum
import itertools

import trio

from beds.machines.unchanging import Unchanging
from bentpipe.daemon.errors import (
    LaunchTokenSpent,
    MachineNotFound,
    ProviderError,
    ProviderPermission,
    ProviderRetryable,
    SleepModeRefused,
    SleepTooEarly,
)
from bentpipe.daemon.model import Address, Fault, Machine, MachineId, MachineState, MachineTraits, SleepMode
from bentpipe.daemon.providers.ec2.traits import TRAITS

M = MachineState
HANGS = float("inf")
ADDRESS = Address("192.0.2.1", 8372)


class OnStart(enum.Enum):
    RUN = None
    NO_CAPACITY = Fault.CAPACITY
    NO_KEY = Fault.PERMISSION
    DIE = Fault.OTHER
    HANG = "hang"


class OnHibernate(enum.Enum):
    KEEP = "keep"
    REFUSE = "refuse"
    TOO_EARLY = "too early"
    FALL_BACK = "fall back"


@dataclasses.dataclass
class FakeMachine:
    """One machine and its habits; times are in seconds."""

    machine_id: MachineId
    address: Address = ADDRESS
    state: MachineState = M.STOPPED
    reason: str = ""
    fault: Fault | None = None
    memory: str = ""
    on_start: OnStart = OnStart.RUN
    on_hibernate: OnHibernate = OnHibernate.KEEP
    stop_hangs: bool = False
    forbidden: bool = False
    vouched: bool = True
    """Whether its address is certain without another look."""
    call_s: float = 0.0
    pending_s: float = 0.01
    stopping_s: float = 0.01
    errors: list[ProviderError] = dataclasses.field(default_factory=list)
    """Raised by the next calls, one each, after `call_s` and with nothing done."""
    unlooked: ProviderError | None = None
    """Raised by every look."""
    looks: int = 0
    starts: int = 0
    """That led from sleep to PENDING."""
    tokens: list[str] = dataclasses.field(default_factory=list)
    calls: list[str] = dataclasses.field(default_factory=list)
    under_way: int = 0
    due: float | None = None
    next: tuple[MachineState, str, Fault | None] = (M.STOPPED, "", None)
    changed: trio.Event = dataclasses.field(default_factory=trio.Event)

    def look(self) -> Machine:
        self.settle()
        address = self.address if self.state is M.RUNNING else None
        return Machine(self.machine_id, self.state, address, self.reason, self.fault)

    def become(self, state: MachineState, reason: str = "", fault: Fault | None = None) -> None:
        self.state, self.reason, self.fault, self.due = state, reason, fault, None
        self.changed.set()
        self.changed = trio.Event()

    def later(self, after_s: float, state: MachineState, reason: str = "", fault: Fault | None = None) -> None:
        self.due = trio.current_time() + after_s
        self.next = (state, reason, fault)

    def settle(self) -> None:
        if self.due is not None and trio.current_time() >= self.due:
            self.become(*self.next)


class MemoryProvider(Unchanging):
    """Implements `Provider`. Machines are added and told what to do by the test. They are like EC2's unless it says else."""

    def __init__(self, traits: MachineTraits = TRAITS) -> None:
        self.traits = traits
        self.machines: dict[MachineId, FakeMachine] = {}
        self._boots = itertools.count(1)

    def add(self, name: str, **habits: object) -> FakeMachine:
        machine = FakeMachine(MachineId(name))
        # No two machines are at one address, unless a test says so.
        machine.address = Address(f"192.0.2.{len(self.machines) % 250 + 1}", ADDRESS.port + len(self.machines) // 250)
        for habit, value in habits.items():
            setattr(machine, habit, value)
        self.machines[machine.machine_id] = machine
        return machine

    # -- the contract ------------------------------------------------------------------------------------------------

    async def describe(self, machine_id: MachineId) -> Machine:
        await trio.lowlevel.checkpoint()
        machine = self._find(machine_id)
        machine.looks += 1
        if machine.unlooked is not None:
            raise machine.unlooked
        return machine.look()

    async def wait_changed(self, seen: Machine) -> Machine:
        await trio.lowlevel.checkpoint()
        machine = self.machines.get(seen.machine_id)
        if machine is None:
            gone = Machine(seen.machine_id, M.TERMINATED)
            return gone if seen != gone else await trio.sleep_forever()
        while (look := machine.look()) == seen:
            with trio.move_on_at(HANGS if machine.due is None else machine.due):
                await machine.changed.wait()
        return look

    def traits_of(self, machine_id: MachineId) -> MachineTraits:
        return self.traits

    def vouches_nowait(self, look: Machine) -> bool:
        machine = self.machines.get(look.machine_id)
        return machine is not None and machine.vouched and look.address is not None and machine.look() == look

    async def start(self, machine_id: MachineId) -> None:
        machine = await self._call("start", machine_id)
        match machine.state:
            case M.PENDING | M.RUNNING:
                return
            case M.STOPPING:
                raise ProviderRetryable("it is stopping")
            case M.TERMINATED:
                raise MachineNotFound("it was terminated")
            case _:
                self._come_up(machine)

    async def stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool = False) -> None:
        machine = await self._call("force" if force else mode.value, machine_id)
        if machine.state is M.STOPPING and force:
            machine.memory = ""
            machine.later(machine.stopping_s, M.STOPPED, "cut off")
            machine.changed.set()
            machine.changed = trio.Event()
        if machine.state not in (M.PENDING, M.RUNNING):
            return
        hibernate = mode is SleepMode.HIBERNATE and not force
        if hibernate and machine.on_hibernate is OnHibernate.REFUSE:
            raise SleepModeRefused("not configured for it")
        if hibernate and machine.on_hibernate is OnHibernate.TOO_EARLY:
            raise SleepTooEarly("it has just started")
        self._go_down(machine, keep=hibernate and machine.on_hibernate is OnHibernate.KEEP)

    async def launch(self, machine_id: MachineId, token: str) -> None:
        machine = await self._call("launch", machine_id)
        if machine.state is M.TERMINATED:
            if token in machine.tokens:
                raise LaunchTokenSpent("its machine is gone")
            machine.tokens.append(token)
            self._come_up(machine)

    async def terminate(self, machine_id: MachineId) -> None:
        machine = await self._call("terminate", machine_id)
        if machine.state is not M.TERMINATED:
            machine.memory = ""
            machine.become(M.TERMINATED, "terminated")

    # -- others, behind everybody's back -----------------------------------------------------------------------------

    def others_start(self, machine: FakeMachine) -> None:
        machine.settle()
        if machine.state in (M.STOPPED, M.HIBERNATED):
            self._come_up(machine)

    def others_stop(self, machine: FakeMachine) -> None:
        machine.settle()
        if machine.state in (M.PENDING, M.RUNNING):
            self._go_down(machine, keep=False)

    def others_terminate(self, machine: FakeMachine) -> None:
        machine.settle()
        if machine.state is not M.TERMINATED:
            machine.memory = ""
            machine.become(M.TERMINATED, "terminated by others")

    # -- inside ------------------------------------------------------------------------------------------------------

    def _find(self, machine_id: MachineId) -> FakeMachine:
        try:
            return self.machines[machine_id]
        except KeyError:
            raise MachineNotFound(f"no machine {machine_id}") from None

    async def _call(self, name: str, machine_id: MachineId) -> FakeMachine:
        machine = self._find(machine_id)
        machine.calls.append(name)
        machine.under_way += 1
        try:
            await trio.sleep(machine.call_s)
        finally:
            machine.under_way -= 1
        machine.settle()
        if machine.forbidden:
            raise ProviderPermission("not allowed")
        if machine.errors:
            raise machine.errors.pop(0)
        return machine

    def _come_up(self, machine: FakeMachine) -> None:
        machine.starts += 1
        if not (machine.state is M.HIBERNATED and machine.memory):
            machine.memory = f"boot {next(self._boots)}"
        machine.become(M.PENDING)
        match machine.on_start:
            case OnStart.RUN:
                machine.later(machine.pending_s, M.RUNNING)
            case OnStart.HANG:
                pass
            case _:
                machine.later(
                    machine.pending_s, M.STOPPED, f"it would not run: {machine.on_start.name}", machine.on_start.value
                )

    def _go_down(self, machine: FakeMachine, *, keep: bool) -> None:
        if not keep:
            machine.memory = ""
        machine.become(M.STOPPING)
        if not machine.stop_hangs:
            machine.later(machine.stopping_s, M.HIBERNATED if keep else M.STOPPED, "asleep" if keep else "stopped")
