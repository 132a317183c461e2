"""The provider `process`: satellites that are commands run on this host.

Owns every process that it has started, until nothing of it is left, and the choice between cgroups and process groups. Knows
nothing of satellites' clients. The fleet uses it through `base.Provider`; the service runs and stops it. States and
transitions are in `machine`.

A satellite ends in one of four ways, and none leaves a process: stop(), its own death, `aclose` (or cancelling `run`), and
the daemon's sudden death. In the last case the kernel kills each leader (setpriv --pdeathsig), and the next daemon in the
same cgroup kills the other processes. With process groups those stay: give the daemon a cgroup (Delegate=yes).
"""

import errno
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

import trio

from bentpipe.config.model import MachineSection, ProcessSection
from bentpipe.daemon.errors import MachineNotFound, ProviderPermanent, ProviderRetryable
from bentpipe.daemon.model import Address, Machine, MachineId, MachineState, MachineTraits, SleepMode
from bentpipe.daemon.ports import PortReservation
from bentpipe.daemon.providers.process.cgroup import CgroupTree, find_own_cgroup, sweep_stale
from bentpipe.daemon.providers.process.containment import PROC, Isolation, Isolator, ProcessGroups
from bentpipe.daemon.providers.process.listening import Listeners
from bentpipe.daemon.providers.process.machine import Life, LocalMachine
from bentpipe.daemon.providers.process.output import Output
from bentpipe.daemon.providers.process.spawn import find_prlimit, find_setpriv, pick_port, spawn
from bentpipe.daemon.tasks import Decision, Owner, contained, run_owned

log = logging.getLogger("bentpipe.providers.process")

NO_COMMAND = "the satellite is a command on the edge host, and of the new size it would not be"
NOT_RUNNING = "the process provider is not running"

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
    `isolation` demands one kind; by default it is a cgroup if that works, else a process group.
    `soft_files` is the soft limit of open files that the commands get; by default this process's own.
    """

    def __init__(
        self,
        specs: Mapping[MachineId, ProcessSection],
        log_dir: Path | None = None,
        *,
        isolation: Isolation | None = None,
        soft_files: int | None = None,
    ) -> None:
        self._listeners = Listeners()
        self._log_dir = log_dir
        self._machines: dict[MachineId, LocalMachine] = {}
        for machine_id, section in specs.items():
            self.add(machine_id, section)
        self._wanted = isolation
        self._soft_files = soft_files
        self._isolator: Isolator | None = None
        self._wrappers: tuple[str, ...] = ()
        self._nursery: trio.Nursery | None = None
        self._machines_scope = trio.CancelScope(shield=True)
        self._close_asked = trio.Event()
        self._closed = trio.Event()

    def add(self, machine_id: MachineId, section: ProcessSection) -> None:
        """Know one more machine."""
        self._machines[machine_id] = LocalMachine(machine_id, section, self._log_dir, self._listeners)

    def forget(self, machine_id: MachineId) -> None:
        """Know a machine no more: it was terminated, and nothing of its process is left."""
        self._machines.pop(machine_id, None)

    @property
    def isolation(self) -> Isolation | None:
        """Which kind is in use; None before `run` has started."""
        return None if self._isolator is None else self._isolator.isolation

    @property
    def call_counts(self) -> Mapping[tuple[str, str], int]:
        """None: there is no API to call."""
        return {}

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the machines' tasks until `aclose`. If it is cancelled, it stops every process first, as `aclose` does.

        Raises OSError if the kind of isolation that was demanded is not available.
        """
        isolator = await open_isolator(self._wanted)
        # It may have been run before, and failed.
        self._isolator, self._closed, self._machines_scope = isolator, trio.Event(), trio.CancelScope(shield=True)
        try:
            fields = {"isolation": self._isolator.isolation.value, "detail": self._isolator.detail}
            self._wrappers = await self._find_wrappers(fields)
            log.info("isolation of satellites", extra={"fields": fields})
            async with trio.open_nursery() as nursery:
                await nursery.start(self._run_machines)
                try:
                    task_status.started()
                    await self._close_asked.wait()
                finally:
                    with trio.CancelScope(shield=True), contained(Owner("process end")):
                        await self._stop_all()  # bounded by each machine's wait_ended
                    self._machines_scope.cancel()
                    nursery.cancel_scope.cancel()
        finally:
            with contained(Owner("process cleaning up")):
                self._isolator.close()
            self._closed.set()

    async def _find_wrappers(self, fields: dict[str, str]) -> tuple[str, ...]:
        """Find the wrappers of commands; note in `fields` which are missing."""
        wrappers = await find_setpriv()
        if not wrappers:
            fields["warning"] = "no setpriv with --pdeathsig: satellites outlive a daemon that is killed"
        if self._soft_files is None:
            return wrappers
        prlimit = await find_prlimit(self._soft_files)
        if not prlimit:
            fields["open_files"] = "no prlimit: satellites have the daemon's soft limit, which it has raised"
        return (*wrappers, *prlimit)

    async def aclose(self) -> None:
        """Stop every process: SIGTERM (frozen ones are thawed), each machine's grace, SIGKILL. Nothing starts any more.

        Takes at most the longest grace and ten seconds, even when cancelled. Does nothing if `run` never ran.
        """
        self._close_asked.set()
        if self._isolator is not None:
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

    async def start(self, machine_id: MachineId) -> None:
        """Spawn or thaw the machine's process.

        Raises MachineNotFound, ProviderPermanent (it cannot be executed), ProviderRetryable.
        """
        await trio.lowlevel.checkpoint()
        machine = self._machine(machine_id)
        machine.begin_nowait(self._tasks(), lambda: self._spawn(machine_id, machine))

    async def launch(self, machine_id: MachineId, token: str) -> None:
        """Spawn the process of a machine that was destroyed; a configured machine exists without being launched.

        Raises MachineNotFound, ProviderPermanent, ProviderRetryable.
        """
        await trio.lowlevel.checkpoint()
        machine = self._machine(machine_id)
        machine.recreate_nowait(self._tasks(), lambda: self._spawn(machine_id, machine))

    async def objection_to(self, machine_id: MachineId, section: MachineSection) -> str:
        """A command becomes any other command."""
        await trio.lowlevel.checkpoint()
        return "" if section.process is not None else NO_COMMAND

    async def adapt(self, machine_id: MachineId, section: MachineSection) -> None:
        """End the machine's process, which may be frozen: the next start is that of the new command."""
        if objection := await self.objection_to(machine_id, section):
            raise ProviderPermanent(objection)
        machine = self._machine(machine_id)
        machine.end_nowait()
        await machine.wait_ended()

    async def terminate(self, machine_id: MachineId) -> None:
        """Ask the machine's process to end, for good: it is TERMINATED when nothing of it is left."""
        await trio.lowlevel.checkpoint()
        self._machine(machine_id).destroy_nowait()

    async def stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool = False) -> None:
        """Freeze the machine's process, or ask it to end. Raises MachineNotFound, SleepModeRefused, ProviderRetryable.

        Waits a few milliseconds for a freeze, because it may be refused. With `force`, a process that was asked to end gets
        no more grace.
        """
        await trio.lowlevel.checkpoint()
        machine = self._machine(machine_id)
        if force and machine.look.state is MachineState.STOPPING:
            machine.kill_nowait()
        if machine.look.state not in (MachineState.PENDING, MachineState.RUNNING):
            return
        match mode:
            case SleepMode.HIBERNATE:
                await machine.hibernate(self._tasks())
            case SleepMode.STOP:
                machine.end_nowait()

    def _machine(self, machine_id: MachineId) -> LocalMachine:
        try:
            return self._machines[machine_id]
        except KeyError:
            raise MachineNotFound(f"no process is configured as {machine_id}") from None

    def _tasks(self) -> trio.Nursery:
        if self._nursery is None or self._close_asked.is_set():
            raise ProviderRetryable(NOT_RUNNING)
        return self._nursery

    def _spawn(self, machine_id: MachineId, machine: LocalMachine) -> Life:
        isolator = self._isolator
        if isolator is None:
            raise ProviderRetryable(NOT_RUNNING)
        section = machine.section
        taken = {other.port for other in self._machines.values() if other.port is not None}
        reservation = None if section.port else pick_port(section.host, taken)
        try:
            return self._spawn_at(machine_id, machine, isolator, reservation)
        except BaseException:
            if reservation is not None:
                reservation.close()
            raise

    def _spawn_at(
        self, machine_id: MachineId, machine: LocalMachine, isolator: Isolator, reservation: PortReservation | None
    ) -> Life:
        section = machine.section
        address = Address(section.host, section.port if reservation is None else reservation.port)
        try:
            containment = isolator.contain(machine_id)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise ProviderRetryable(f"the last run has not been cleaned up: {error}") from error
            raise ProviderPermanent(f"cannot isolate: {error}") from error
        try:
            child, output_fd = spawn(section, address, containment, self._wrappers)
        except BaseException:
            containment.remove()
            raise
        try:
            output = Output(machine_id, output_fd, machine.log_file)
        except BaseException:
            child.abandon()
            with contained(Owner("process cleaning up", machine_id)):
                containment.kill()
            os.close(output_fd)
            raise
        return Life(child, containment, output, address, reservation)

    async def _run_machines(self, task_status: trio.TaskStatus[None]) -> None:
        # Shielded: when `run` is cancelled, the tasks that wait for processes must go on until all processes have stopped.
        with self._machines_scope:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()

    async def _stop_all(self) -> None:
        self._close_asked.set()
        async with trio.open_nursery() as nursery:
            for machine in self._machines.values():
                with contained(Owner("process end", machine.look.machine_id)):
                    machine.end_nowait()
                owner = Owner("process end", machine.look.machine_id, Decision.GIVE_UP)
                nursery.start_soon(run_owned, owner, machine.wait_ended)


async def open_isolator(wanted: Isolation | None = None) -> Isolator:
    """Open the best isolation there is, or the `wanted` one; also cleans up after dead daemons. Close it after use.

    `bentpipe doctor` uses it too, so that it reports what the daemon would do. Raises OSError if `wanted` is not available.
    """
    if wanted is Isolation.PROCESS_GROUP:
        return ProcessGroups("asked for")
    try:
        parent = find_own_cgroup((PROC / "self/mountinfo").read_text(), (PROC / "self/cgroup").read_text())
        if parent is None:
            raise FileNotFoundError("no cgroup v2 is mounted")
        if swept := await sweep_stale(parent):
            log.warning("killed what a dead daemon left", extra={"fields": {"cgroups": " ".join(swept)}})
        return CgroupTree(parent)
    except OSError as error:
        if wanted is Isolation.CGROUP:
            raise
        return ProcessGroups(f"no cgroup: {error}")
