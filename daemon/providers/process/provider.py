"""The provider `process`: satellites that are commands run on this host.

Owns every process that it has started, until nothing of it is left, and the choice between cgroups and process groups. Knows
nothing of satellites' clients. The fleet uses it through `base.Provider`; the service runs and stops it. States and
transitions are in `machine`.

The processes are children of a keeper (`daemon/keeper`), which outlives the daemon. After `leave_nowait` the end of the
provider leaves them running, and so does the daemon's sudden death: the next provider with the same keeper finds them.
Otherwise `aclose`, or cancelling `run`, stops them all and the keeper, and leaves no process.
"""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from bentpipe.config.model import MachineSection, ProcessSection
from bentpipe.daemon.errors import MachineNotFound, ProviderError, ProviderPermanent, ProviderRetryable
from bentpipe.daemon.ids import folder_name
from bentpipe.daemon.keeper.containment import Isolation
from bentpipe.daemon.keeper.protocol import Flag, Message, Tag
from bentpipe.daemon.model import Address, Machine, MachineId, MachineState, MachineTraits, SleepMode
from bentpipe.daemon.providers.process.keeper import KeeperClient
from bentpipe.daemon.providers.process.kept import KeptProcess
from bentpipe.daemon.providers.process.machine import KILL_DEADLINE_S, LocalMachine, SpawnPlan
from bentpipe.daemon.providers.process.place import KeeperPlace
from bentpipe.daemon.providers.process.port_watch import PortWatch
from bentpipe.daemon.providers.process.spawn import Note, digest_of, pick_port, request_of
from bentpipe.daemon.providers.process.starting import START_DEADLINE_S
from bentpipe.daemon.tasks import Decision, Owner, contained, run_owned, start_owned

log = logging.getLogger("bentpipe.providers.process")

NO_COMMAND = "the satellite is a command on the edge host, and of the new size it would not be"
NOT_RUNNING = "the process provider is not running"

NOT_SEPARATED = "local satellites run as the daemon's user, and can read its keys and its store"
FORGOTTEN = "a local satellite that the configuration does not name any more is stopped"
FORGOTTEN_POLL_S = 0.02

PRIVATE = KeeperPlace()

TRAITS = MachineTraits(
    look_deadline_s=15.0,  # a look asks nobody, so only a process that gets no CPU time makes it late
    address_age_s=5.0,  # a port that nobody listens on is free at once; `vouches_nowait` asks the kernel each time
    appear_grace_s=0.0,  # nothing is launched
    start_grace_s=30.0,  # to spawn a command on a host that is short of CPU time or memory
    stop_grace_s=60.0,  # the same for SIGTERM or the freezer
    stuck_stopping_s=600.0,  # a process is killed after its own `stop_grace`, which is seconds
    too_early_retry_s=60.0,  # never asked for: a process can be frozen at once
    hibernation_limit_s=math.inf,  # the kernel keeps a frozen process for ever
)


class ProcessProvider:
    """Starts, freezes and stops local commands. `run` must run while any other method is used.

    `log_dir`, if given, receives one bounded log file per machine; otherwise output is logged at level debug.
    `place` is where the keeper is; by default it is one of this provider's own, which ends with it.
    `isolation` demands one kind; by default it is a cgroup if that works, else a process group.
    `soft_files` is the soft limit of open files that the commands get; by default the keeper's own.
    """

    def __init__(
        self,
        specs: Mapping[MachineId, ProcessSection],
        log_dir: Path | None = None,
        *,
        place: KeeperPlace = PRIVATE,
        isolation: Isolation | None = None,
        soft_files: int | None = None,
    ) -> None:
        self._ports = PortWatch()
        self._log_dir = log_dir
        self._place = place
        self._keeper = KeeperClient(place, None if isolation is None else isolation.name)
        self._machines: dict[MachineId, LocalMachine] = {}
        self._configured: set[MachineId] = set()
        """The machines that the configuration names; the registry has the others."""
        self._forgotten: list[LocalMachine] = []
        """Machines that are known no more, while something of their process is left."""
        self._unclaimed: dict[str, tuple[KeptProcess, Note, Flag]] = {}
        """By name: what the keeper has for machines that are not known, or not yet."""
        for machine_id, section in specs.items():
            self.add(machine_id, section, is_configured=True)
        self._soft_files = soft_files
        self._nursery: trio.Nursery | None = None
        self._machines_scope = trio.CancelScope(shield=True)
        self._close_asked = trio.Event()
        self._closed: trio.Event | None = None
        self._leaves = False

    def add(self, machine_id: MachineId, section: ProcessSection, *, is_configured: bool) -> None:
        """Know one more machine, also while the provider runs. If the keeper has a process of it, that is taken up.

        `is_configured` says that the configuration names it. Its process then ends if no later configuration does.
        """
        machine = LocalMachine(machine_id, section, self._log_dir, self._ports, self._keeper)
        self._machines[machine_id] = machine
        if is_configured:
            self._configured.add(machine_id)
        found = self._unclaimed.pop(machine.name, None)
        if found is not None and self._nursery is not None:
            machine.adopt(self._nursery, *found)

    def forget(self, machine_id: MachineId) -> None:
        """Know a machine no more. A process that it still has, a frozen one, is ended."""
        machine = self._machines.pop(machine_id, None)
        self._configured.discard(machine_id)
        self._forgotten = [each for each in self._forgotten if each.has_process]
        if machine is not None and machine.has_process and self._nursery is not None:
            machine.end_nowait(self._nursery)
            self._forgotten.append(machine)

    @property
    def isolation(self) -> Isolation | None:
        """Which kind is in use; None before `run` has started."""
        return None if self._keeper.hello is None else Isolation(self._keeper.hello.text(Tag.ISOLATION))

    @property
    def call_counts(self) -> Mapping[tuple[str, str], int]:
        """None: there is no API to call."""
        return {}

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the machines' tasks until `aclose`. If it is cancelled, it ends as `aclose` does.

        While there is no keeper and none can be started, calls raise ProviderRetryable with the reason.
        """
        # It may have been run before, and failed.
        self._closed, self._machines_scope = trio.Event(), trio.CancelScope(shield=True)
        tried = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                # Not by nursery.start: if that is cancelled meanwhile, it waits for a task that is shielded, for ever.
                nursery.start_soon(self._run_machines, tried)
                try:
                    await tried.wait()
                    task_status.started()
                    await self._close_asked.wait()
                finally:
                    with trio.CancelScope(shield=True), contained(Owner("process end")):
                        with trio.move_on_after(START_DEADLINE_S):
                            await tried.wait()  # a keeper that is just being started is told to end, too
                        await self._end_all()  # bounded by each machine's wait_ended
                    self._machines_scope.cancel()
                    nursery.cancel_scope.cancel()
        finally:
            self._ports.listeners.close()
            if not self._leaves_processes:
                with trio.CancelScope(shield=True), contained(Owner("process cleaning up")):
                    await self._keeper.aclose()
            self._closed.set()

    def leave_nowait(self) -> None:
        """From now on `aclose` leaves the processes running, for the next provider with the same keeper."""
        self._leaves = True

    async def aclose(self) -> None:
        """Stop every process: SIGTERM (frozen ones are thawed), each machine's grace, SIGKILL. Nothing starts any more.

        After `leave_nowait`, or with a keeper that is not this provider's to end, they go on instead. Takes at most the
        longest grace and some seconds, even when cancelled. Does nothing if `run` never ran.
        """
        self._close_asked.set()
        if self._closed is not None:
            with trio.CancelScope(shield=True):
                await self._closed.wait()

    async def describe(self, machine_id: MachineId) -> Machine:
        """Return the machine's present state. Raises MachineNotFound."""
        await trio.lowlevel.checkpoint()
        return self._machine(machine_id).look

    async def wait_changed(self, seen: Machine) -> Machine:
        """Return as soon as the machine differs from `seen`. A machine that is not configured is TERMINATED."""
        machine = self._machines.get(seen.machine_id)
        if machine is not None:
            return await machine.wait_changed(seen)
        gone = Machine(seen.machine_id, MachineState.TERMINATED)
        await trio.lowlevel.checkpoint()
        return gone if seen != gone else await trio.sleep_forever()

    def traits_of(self, machine_id: MachineId) -> MachineTraits:
        """The same for every command."""
        return TRAITS

    def vouches_nowait(self, look: Machine) -> bool:
        """Whether the machine is as in `look`, and no other process listens on its port. Asks the kernel once."""
        machine = self._machines.get(look.machine_id)
        return machine is not None and machine.look == look and machine.has_port()

    def listener_nowait(self, machine_id: MachineId, address: Address) -> tuple[int | None, frozenset[int]] | None:
        """Whose socket listens at the machine's address: see LocalMachine. Asks the kernel once."""
        machine = self._machines.get(machine_id)
        return None if machine is None else machine.listener_nowait(address)

    async def start(self, machine_id: MachineId) -> None:
        """Spawn or thaw the machine's process.

        Raises MachineNotFound, ProviderPermanent (it cannot be executed), ProviderRetryable.
        """
        await trio.lowlevel.checkpoint()
        machine = self._machine(machine_id)
        await machine.begin(self._tasks(), functools.partial(self._plan, machine_id, machine))

    async def launch(self, machine_id: MachineId, token: str) -> None:
        """Spawn the process of a machine that was destroyed; a configured machine exists without being launched.

        Raises MachineNotFound, ProviderPermanent, ProviderRetryable.
        """
        await trio.lowlevel.checkpoint()
        machine = self._machine(machine_id)
        await machine.recreate(self._tasks(), functools.partial(self._plan, machine_id, machine))

    async def objection_to(self, machine_id: MachineId, section: MachineSection) -> str:
        """A command becomes any other command."""
        await trio.lowlevel.checkpoint()
        return "" if section.process is not None else NO_COMMAND

    async def adapt(self, machine_id: MachineId, section: MachineSection) -> None:
        """End the machine's process, which may be frozen: the next start is that of the new command."""
        if objection := await self.objection_to(machine_id, section):
            raise ProviderPermanent(objection)
        machine = self._machine(machine_id)
        machine.end_nowait(self._tasks())
        await machine.wait_ended()

    async def terminate(self, machine_id: MachineId) -> None:
        """Ask the machine's process to end, for good: it is TERMINATED when nothing of it is left."""
        await trio.lowlevel.checkpoint()
        self._machine(machine_id).destroy_nowait(self._tasks())

    async def stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool = False) -> None:
        """Freeze the machine's process, or ask it to end. Raises MachineNotFound, SleepModeRefused, ProviderRetryable.

        Waits a few milliseconds for a freeze, because it may be refused. With `force`, a process that was asked to end gets
        no more grace.
        """
        await trio.lowlevel.checkpoint()
        machine = self._machine(machine_id)
        if force and machine.look.state is MachineState.STOPPING:
            machine.kill_nowait(self._tasks())
        if machine.look.state not in (MachineState.PENDING, MachineState.RUNNING):
            return
        match mode:
            case SleepMode.HIBERNATE:
                await machine.hibernate(self._tasks())
            case SleepMode.STOP:
                machine.end_nowait(self._tasks())

    def _machine(self, machine_id: MachineId) -> LocalMachine:
        try:
            return self._machines[machine_id]
        except KeyError:
            raise MachineNotFound(f"no process is configured as {machine_id}") from None

    def _tasks(self) -> trio.Nursery:
        if self._nursery is None or self._close_asked.is_set():
            raise ProviderRetryable(NOT_RUNNING)
        return self._nursery

    def _plan(self, machine_id: MachineId, machine: LocalMachine) -> SpawnPlan:
        """What the keeper is to start. Raises ProviderPermanent, ProviderRetryable."""
        section = machine.section
        taken = {other.port for other in self._machines.values() if other.port is not None}
        reservation = None if section.port else pick_port(section.host, taken)
        try:
            address = Address(section.host, section.port if reservation is None else reservation.port)
            note = Note(address, digest_of(section), machine_id in self._configured)
            own_user = section.user == "own" and self._keeper.has_users
            return SpawnPlan(request_of(section, note, self._soft_files, own_user=own_user), address, reservation)
        except BaseException:
            if reservation is not None:
                reservation.close()
            raise

    async def _run_machines(self, tried: trio.Event) -> None:
        """Keep the machines' tasks and the connection to the keeper. `tried` is set after the first attempt at that."""
        # Shielded: when `run` is cancelled, the tasks that wait for processes must go on until all processes have stopped.
        with self._machines_scope:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(run_owned, Owner("process ports"), self._ports.run_port_watch)
                keep = functools.partial(self._keeper.run, functools.partial(self._synced, nursery))
                await nursery.start(start_owned, Owner("keeper"), keep)
                tried.set()
                await trio.sleep_forever()

    def _tell_keeper(self) -> None:
        """Log what the keeper can do; an operator must know if satellites are not separated."""
        hello = self._keeper.hello
        if hello is None:
            return
        tags = (Tag.ISOLATION, Tag.DETAIL, Tag.UIDS)
        fields: dict[str, object] = {tag.name.lower(): hello.text(tag) for tag in tags if hello.text(tag)}
        fields["keeper"] = hello.value(Tag.PID)
        log.info("isolation of satellites", extra={"fields": fields})
        wants_own = any(machine.section.user == "own" for machine in self._machines.values())
        if wants_own and (problem := hello.text(Tag.PROBLEM)):
            words = "local satellites cannot start" if self._keeper.has_users else NOT_SEPARATED
            log.warning(words, extra={"fields": {"reason": problem}})

    def _synced(self, nursery: trio.Nursery, found: Sequence[tuple[KeptProcess, Message]]) -> None:
        """Take up what the keeper has."""
        self._tell_keeper()
        names = {machine.name: machine for machine in self._machines.values()}
        configured = {folder_name(machine_id) for machine_id in self._configured}
        self._unclaimed.clear()
        for process, told in found:
            note = Note.decode(told.get(Tag.NOTE) or b"")
            flags = Flag(told.value(Tag.FLAGS) or 0)
            machine = names.get(process.name)
            if note is not None and machine is not None:
                machine.adopt(nursery, process, note, flags)
            elif note is not None and not note.is_configured and process.name not in configured:
                self._unclaimed[process.name] = process, note, flags
            else:
                log.warning(FORGOTTEN, extra={"fields": {"machine": process.name, "pid": process.pid}})
                owner = Owner("process end", process.name, Decision.GIVE_UP)
                grace_s = (told.value(Tag.GRACE_MS) or 0) / 1000
                nursery.start_soon(run_owned, owner, _end_forgotten, process, grace_s)

    async def _end_all(self) -> None:
        """Stop every process and the keeper, or leave them."""
        self._close_asked.set()
        if self._leaves_processes:
            log.info("local satellites go on", extra={"fields": {"count": self._count()}})
            return
        nursery = self._nursery
        if nursery is None:
            return
        async with trio.open_nursery() as ending:
            for machine in (*self._machines.values(), *self._forgotten):
                with contained(Owner("process end", machine.look.machine_id)):
                    machine.end_nowait(nursery)
                owner = Owner("process end", machine.look.machine_id, Decision.GIVE_UP)
                ending.start_soon(run_owned, owner, machine.wait_ended)
        try:
            await self._keeper.stop()
        except ProviderError as error:
            log.error("the keeper of local satellites is not told to end", extra={"fields": {"error": str(error)}})

    @property
    def _leaves_processes(self) -> bool:
        return self._leaves or self._place.is_external

    def _count(self) -> int:
        return sum(machine.has_process for machine in self._machines.values())


async def _end_forgotten(process: KeptProcess, grace_s: float) -> None:
    """End a process that the configuration does not name any more. Raises ProviderError."""
    await process.end()
    with trio.move_on_after(grace_s):
        await process.exited.wait()
    with trio.fail_after(KILL_DEADLINE_S):
        while not process.is_lost:
            await process.kill()
            if {Flag.EXITED, Flag.EMPTY} <= set(await process.look()):
                await process.release()
                return
            await trio.sleep(FORGOTTEN_POLL_S)
