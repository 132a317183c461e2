"""One machine of the process provider: its state as others see it, and the life of its process.

Owns the states, the waiting between them, and the end of every process that it has started. `provider` tells it what to do.
What takes time runs in tasks that end with the process. The process itself is the keeper's: it outlives the daemon, and
`adopt` takes it up again.

           start             listens               stop(HIBERNATE)             frozen
  STOPPED ───────▶ PENDING ───────────▶ RUNNING ─────────────────▶ STOPPING ─────────▶ HIBERNATED
     ▲                │                 │     ▲                     │  │                   │
     │                │ stop(STOP)      │     └─────────────────────┘  │       start       │
     │                ▼                 │        cannot be frozen      │ (thaw: to RUNNING)│
     └──────────── STOPPING ◀───────────┘                              │                   │
     └───────────── the leader dies, in any state: all of it is killed and reaped ─────────┘
  A destroyed machine ends as TERMINATED instead of STOPPED, when its private folder is deleted; only `launch` leads out of
  that.
"""

import dataclasses
import functools
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio

from bentpipe.config.model import ProcessSection
from bentpipe.daemon.errors import MachineNotFound, ProviderError, ProviderRetryable, SleepModeRefused
from bentpipe.daemon.ids import folder_name
from bentpipe.daemon.keeper.protocol import Field, Flag, Tag
from bentpipe.daemon.model import Address, Fault, Machine, MachineId, MachineState
from bentpipe.daemon.ports import PortReservation
from bentpipe.daemon.providers.process.keeper import KeeperClient
from bentpipe.daemon.providers.process.kept import KeptProcess
from bentpipe.daemon.providers.process.listening import Suspects, Whose
from bentpipe.daemon.providers.process.output import OutputLog, last_lines
from bentpipe.daemon.providers.process.port_watch import PortWatch
from bentpipe.daemon.providers.process.spawn import Note, digest_of
from bentpipe.daemon.tasks import Decision, Owner, contained, run_owned

log = logging.getLogger("bentpipe.providers.process")

EXPLAIN_S = 1.0
"""Time between updates of the reason why a machine is still PENDING: its output may change each time."""

FREEZE_DEADLINE_S = 5.0
"""Freezing takes a millisecond, unless a process is in an uninterruptible wait; then hibernation is refused."""

KILL_DEADLINE_S = 5.0
"""The most time from SIGKILL to the end of the last process. If one is in an uninterruptible wait, it is left, with an error
in the log."""

POLL_FIRST_S, POLL_MOST_S = 0.001, 0.02
"""Bounds of the interval between looks at something that usually happens within a millisecond or two."""

REMOVE_AGAIN_S = 5.0
"""Before another attempt to delete a destroyed machine's folder."""

DESTROYED = "destroyed"
LOST = "it ended with the keeper of local satellites, which was killed or has crashed"
STALE = "its section of the configuration has changed since it was started"
NOT_STARTED = "its start failed, see the log"


@dataclasses.dataclass(slots=True)
class _Freeze:
    """One attempt to freeze. `failure` is None if it worked or the process ended otherwise."""

    done: trio.Event
    failure: str | None = None


@dataclasses.dataclass(slots=True)
class _Start:
    """One attempt to start, until the keeper has answered."""

    done: trio.Event = dataclasses.field(default_factory=trio.Event)
    failure: ProviderError | None = None
    end_asked: bool = False
    """It is to end as soon as it is there."""


@dataclasses.dataclass(frozen=True, slots=True)
class SpawnPlan:
    """What the keeper is asked to start."""

    request: Sequence[Field]
    address: Address
    reservation: PortReservation | None
    """Of the port that was chosen for it; None if its section names the port."""


@dataclasses.dataclass(slots=True)
class Life:
    """One process of a machine, from its spawn until it is released."""

    process: KeptProcess
    address: Address
    reservation: PortReservation | None
    """Of its port, until it listens there."""
    known_inodes: set[str] = dataclasses.field(default_factory=set)
    """The inodes of its listening sockets, when they were found to be its own."""
    ending: trio.Event = dataclasses.field(default_factory=trio.Event)
    """Set when it has been asked to end."""
    dead: bool = False
    """The leader has died and the other processes are being killed, which takes milliseconds. The state changes after
    that."""
    ended: trio.Event = dataclasses.field(default_factory=trio.Event)
    """Set when nothing of it is left."""
    outlived_grace: bool = False
    listened: bool = False
    is_stale: bool = False
    """It was started by another section than the machine has now."""

    @property
    def suspects(self) -> Suspects:
        """Its processes, for the question which process listens."""
        return Suspects(self.process.uid, self.process.members)

    def free_reservation(self) -> None:
        """Let others reserve its port; does nothing the second time."""
        if self.reservation is not None:
            self.reservation.close()


class LocalMachine:
    """A machine and its process, if it has one. `set_up` comes before anything that starts a task."""

    def __init__(
        self,
        machine_id: MachineId,
        section: ProcessSection,
        log_dir: Path | None,
        ports: PortWatch,
        keeper: KeeperClient,
    ) -> None:
        self.section = section
        self.look = Machine(machine_id, MachineState.STOPPED)
        self.name = folder_name(machine_id)
        self._log_file = None if log_dir is None else log_dir / f"{self.name}.log"
        self._ports = ports
        self._listeners = ports.listeners
        self._keeper = keeper
        self._life: Life | None = None
        self._starting: _Start | None = None
        self._destroyed = False
        self._changed = trio.Event()

    @property
    def port(self) -> int | None:
        """The port its process has been given, if there is a process."""
        return None if self._life is None else self._life.address.port

    @property
    def has_process(self) -> bool:
        """Whether it has a process, or is being given one."""
        return self._life is not None or self._starting is not None

    def has_port(self) -> bool:
        """Whether it runs and no other process listens on its port, which could happen when its own listener is gone."""
        life = self._life
        if life is None or life.dead or self.look.state is not MachineState.RUNNING:
            return False
        whose = self._listeners.whose(life.address.host, life.address.port, life.suspects, life.known_inodes)
        return whose is not Whose.STRANGER

    def listener_nowait(self, address: Address) -> tuple[int | None, frozenset[int]] | None:
        """Whose socket listens at its address: the user, if no other machine has it, else the sockets by inode.

        None if it does not run at that address, or if its own process may not be what listens there.
        """
        life = self._life
        if life is None or life.address != address or not self.has_port():
            return None
        inodes = frozenset(map(int, life.known_inodes))
        return (life.process.uid, inodes) if life.process.uid is not None or inodes else None

    async def wait_changed(self, seen: Machine) -> Machine:
        """Return the look as soon as it differs from `seen`."""
        await trio.lowlevel.checkpoint()
        while self.look == seen:
            await self._changed.wait()
        return self.look

    async def begin(self, nursery: trio.Nursery, plan: Callable[[], SpawnPlan]) -> None:
        """Start, resume, or do nothing, depending on the state. Raises what `plan` raises, and ProviderError.

        If this is cancelled, the start goes on.
        """
        if self._life is not None and self._life.dead:
            raise ProviderRetryable("it has just died and is being cleaned up")
        match self.look.state:
            case MachineState.PENDING | MachineState.RUNNING:
                return
            case MachineState.STOPPING:
                raise ProviderRetryable("it is being stopped")
            case MachineState.HIBERNATED if self._life is not None:
                await self._thaw(self._life)
            case MachineState.TERMINATED:
                raise MachineNotFound("it was destroyed")
            case _:
                await self._begin(nursery, plan)

    async def recreate(self, nursery: trio.Nursery, plan: Callable[[], SpawnPlan]) -> None:
        """Start again after `destroy_nowait`; does nothing if it exists. Raises as `begin`."""
        if self.look.state is MachineState.TERMINATED:
            self._destroyed = False
            try:
                await self._begin(nursery, plan)
            except ProviderError:
                self._destroyed = not self.has_process
                raise
        elif self._destroyed:
            raise ProviderRetryable("it is being destroyed")

    def adopt(self, nursery: trio.Nursery, process: KeptProcess, note: Note, flags: Flag) -> None:
        """Take up a process that an earlier daemon has started, or that a call has started whose answer was lost.

        Does nothing if it is known.
        """
        if self._life is not None:
            return
        life = Life(process, note.address, None, is_stale=note.digest != digest_of(self.section))
        self._life = life
        if Flag.ENDING in flags or Flag.EXITED in flags:
            if Flag.ENDING in flags:
                life.ending.set()
            self._show(MachineState.STOPPING)
        elif Flag.FROZEN in flags:
            life.listened = True
            self._show(MachineState.HIBERNATED)
        elif self._listeners.is_listening(note.address.host, note.address.port, life.suspects):
            life.listened = True
            self._show(MachineState.RUNNING, life.address)
        else:
            self._show(MachineState.PENDING)
        fields = {"machine": self.look.machine_id, "pid": process.pid, "state": self.look.state.value}
        log.info("a local satellite was found again", extra={"fields": fields})
        if life.is_stale:
            log.warning("a local satellite is not as configured", extra={"fields": {**fields, "reason": STALE}})
        nursery.start_soon(run_owned, self._owner("life"), self._run_life, life, nursery)
        if Flag.FREEZING in flags and Flag.FROZEN not in flags:
            nursery.start_soon(run_owned, self._owner("thaw", Decision.GIVE_UP), process.thaw)
        elif Flag.FROZEN in flags and life.is_stale:
            self.end_nowait(nursery)

    def destroy_nowait(self, nursery: trio.Nursery) -> None:
        """End the process for good, and delete its folder: only `recreate` starts it again."""
        if self._destroyed:
            return
        self._destroyed = True
        if self.has_process:
            self.end_nowait(nursery)
        else:
            self._show(MachineState.STOPPING)
            nursery.start_soon(run_owned, self._owner("folder"), self._remove)

    def kill_nowait(self, nursery: trio.Nursery) -> None:
        """Kill the process at once if it was asked to end."""
        if self._life is not None and self._life.ending.is_set() and not self._life.dead:
            nursery.start_soon(run_owned, self._owner("kill", Decision.GIVE_UP), self._life.process.kill)

    def end_nowait(self, nursery: trio.Nursery) -> None:
        """Ask the process to end, whatever the state; does nothing if it has been asked or there is none."""
        if self._life is None and self._starting is not None:
            self._starting.end_asked = True
        if self._life is None or self._life.dead or self._life.ending.is_set():
            return
        self._life.ending.set()
        self._show(MachineState.STOPPING)
        # If this fails, SIGKILL comes after the grace.
        nursery.start_soon(run_owned, self._owner("asked to end", Decision.GIVE_UP), self._life.process.end)

    async def hibernate(self, nursery: trio.Nursery) -> None:
        """Freeze a RUNNING machine. Raises SleepModeRefused; the machine is RUNNING again then.

        If this is cancelled, the freezing goes on. If the process ends meanwhile, the freeze counts as done.
        """
        if self.look.state is not MachineState.RUNNING or self._life is None:
            raise SleepModeRefused(f"only a running machine can hibernate, this one is {self.look.state.value}")
        if self._life.is_stale:
            raise SleepModeRefused(STALE)
        attempt = _Freeze(trio.Event())
        self._show(MachineState.STOPPING)
        nursery.start_soon(run_owned, self._owner("freeze", Decision.GIVE_UP), self._freeze, self._life, attempt)
        await attempt.done.wait()
        if attempt.failure is not None:
            raise SleepModeRefused(attempt.failure)

    async def wait_ended(self) -> None:
        """Return when nothing of the process is left, or when it does not die of SIGKILL after its grace."""
        if self._starting is not None:
            await self._starting.done.wait()
        life = self._life
        if life is None:
            return
        # Twice: for the leader, then for the rest of its group.
        with trio.move_on_after(self.section.stop_grace_s + 2 * KILL_DEADLINE_S) as scope:
            await life.ended.wait()
        if scope.cancelled_caught:
            with contained(self._owner("kill")):
                await life.process.kill()
            self._log_trouble("gave up on a satellite that does not die", f"leader {life.process.pid}")

    async def _begin(self, nursery: trio.Nursery, plan: Callable[[], SpawnPlan]) -> None:
        attempt = self._starting
        if attempt is None:
            made = plan()
            attempt = self._starting = _Start()
            owner = self._owner("start", Decision.GIVE_UP)
            nursery.start_soon(run_owned, owner, self._start, nursery, made, attempt)
        await attempt.done.wait()
        if attempt.failure is not None:
            raise attempt.failure

    async def _start(self, nursery: trio.Nursery, plan: SpawnPlan, attempt: _Start) -> None:
        attempt.failure = ProviderRetryable(NOT_STARTED)
        try:
            try:
                process = await self._keeper.spawn([(Tag.NAME, self.name), *plan.request])
            except ProviderError as error:
                attempt.failure = type(error)(f"cannot start: {error}")
                return
            attempt.failure = None
            if self._life is None:  # else it was adopted before the answer was read
                life = Life(process, plan.address, plan.reservation)
                self._life = life
                self._show(MachineState.PENDING)
                fields = {"machine": self.look.machine_id, "pid": process.pid}
                log.info("a local satellite was started", extra={"fields": fields})
                nursery.start_soon(run_owned, self._owner("life"), self._run_life, life, nursery)
            if attempt.end_asked:
                self.end_nowait(nursery)
        finally:
            if attempt.failure is not None and plan.reservation is not None:
                plan.reservation.close()
            self._starting = None
            attempt.done.set()

    async def _thaw(self, life: Life) -> None:
        try:
            await life.process.thaw()
        except ProviderError as error:
            raise ProviderRetryable(f"cannot thaw: {error}") from error
        if not life.dead and not life.ending.is_set():
            self._show(MachineState.RUNNING, life.address)

    def _owner(self, task: str, decision: Decision = Decision.RESTART) -> Owner:
        return Owner(f"process {task}", self.look.machine_id, decision)

    def _show(
        self, state: MachineState, address: Address | None = None, reason: str = "", fault: Fault | None = None
    ) -> None:
        # A client that may use the satellite may read what it prints, so every reason here is a hint too.
        self.look = Machine(self.look.machine_id, state, address, reason, fault, hint=reason)
        self._changed.set()
        self._changed = trio.Event()

    async def _run_life(self, life: Life, whole: trio.Nursery) -> None:
        output = OutputLog(self.look.machine_id, self._log_file)
        async with trio.open_nursery() as nursery:
            if output.is_wanted:
                nursery.start_soon(run_owned, self._owner("output"), self._follow_output, life, output)
            nursery.start_soon(run_owned, self._owner("port"), self._watch_port, life)
            nursery.start_soon(run_owned, self._owner("grace"), self._enforce_grace, life)
            await life.process.exited.wait()
            life.dead = True
            nursery.cancel_scope.cancel()
        await self._clean_up(life, output)
        if self._destroyed:
            whole.start_soon(run_owned, self._owner("folder"), self._remove)

    async def _follow_output(self, life: Life, output: OutputLog) -> None:
        while True:
            try:
                begin, data = await life.process.wait_output(output.offset)
            except ProviderRetryable:  # the keeper is away, and will be back or is dead
                await trio.sleep(EXPLAIN_S)
                continue
            output.take(begin, data)
            if not data:
                return

    async def _watch_port(self, life: Life) -> None:
        with self._ports.expect(life.address, life.suspects, life.known_inodes) as listening:
            while not listening.is_set():
                with trio.move_on_after(EXPLAIN_S):
                    await listening.wait()
                    break
                await self._explain(life)
        life.listened = True
        life.free_reservation()
        if self.look.state is MachineState.PENDING:
            self._show(MachineState.RUNNING, life.address)

    async def _explain(self, life: Life) -> None:
        """Set the reason why it is still PENDING: a client that gives up waiting gets it."""
        taken = self._listeners.is_taken(life.address.host, life.address.port)
        port = life.address.port
        words = (
            f"another process than the satellite's listens on port {port}"
            if taken
            else f"nothing listens on port {port}"
        )
        try:
            printed = last_lines(await life.process.tail())
        except ProviderError:  # the keeper is away: the next update has it
            return
        words = f"{words}; the satellite printed: {printed}" if printed else f"{words}; the satellite printed nothing"
        if self.look.state is MachineState.PENDING and self.look.reason != words:
            self._show(MachineState.PENDING, reason=words)

    async def _enforce_grace(self, life: Life) -> None:
        await life.ending.wait()
        await trio.sleep(self.section.stop_grace_s)
        life.outlived_grace = True
        await life.process.kill()

    async def _freeze(self, life: Life, attempt: _Freeze) -> None:
        try:
            failure = await self._try_to_freeze(life)
            if life.dead or life.ending.is_set():
                return  # the end of the process decides the state now
            attempt.failure = failure
            if failure is None:
                self._show(MachineState.HIBERNATED)
            else:
                self._show(MachineState.RUNNING, life.address)
        finally:
            attempt.done.set()

    async def _try_to_freeze(self, life: Life) -> str | None:
        """Freeze and wait for it. Returns why it failed; all processes run again then."""
        try:
            await life.process.freeze()
            with trio.move_on_after(FREEZE_DEADLINE_S):
                await _wait_until(functools.partial(self._is_frozen, life))
                return None
            await life.process.thaw()
        except Exception as error:
            with contained(self._owner("thaw")):  # some processes may be frozen, and the satellite has to serve
                await life.process.thaw()
            return f"could not be frozen: {error}"
        return f"could not be frozen within {FREEZE_DEADLINE_S:g} s"

    @staticmethod
    async def _is_frozen(life: Life) -> bool:
        return life.dead or life.ending.is_set() or Flag.FROZEN in await life.process.look()

    async def _clean_up(self, life: Life, output: OutputLog) -> None:
        """Kill the processes that the leader left, release the leader last, and set the reason of the end."""
        tail = b""
        if not life.process.is_lost:
            with contained(self._owner("cleaning up")):
                tail = await self._end_rest(life, output)
        with contained(self._owner("cleaning up")):
            life.free_reservation()
        self._keeper.forget(life.process)
        self._life = None
        if not self._destroyed:
            fault = None if life.process.is_lost else _fault(life, life.process.status)
            self._show(MachineState.STOPPED, reason=self._reason(life, last_lines(tail)), fault=fault)
        life.ended.set()

    async def _end_rest(self, life: Life, output: OutputLog) -> bytes:
        """Kill what the leader has left. Returns the last output. Raises ProviderError."""
        process = life.process

        async def is_empty() -> bool:
            await process.kill()
            return process.is_lost or Flag.EMPTY in await process.look()

        with trio.move_on_after(KILL_DEADLINE_S) as scope:
            await _wait_until(is_empty)
        if scope.cancelled_caught:
            self._log_trouble("processes outlive SIGKILL", str(process.members()))
        tail = await process.tail()
        while output.is_wanted:
            begin, data = await process.wait_output(output.offset)
            output.take(begin, data)
            if not data:
                break
        output.finish()
        await process.release()
        return tail

    async def _remove(self) -> None:
        """Delete the private folder, however often that is refused: its user must not be given to another satellite."""
        while True:
            try:
                await self._keeper.remove(self.name)
                break
            except ProviderError as error:
                self._log_trouble("a satellite's folder cannot be deleted", str(error))
            await trio.sleep(REMOVE_AGAIN_S)
        self._show(MachineState.TERMINATED, reason=DESTROYED)

    def _reason(self, life: Life, printed: str) -> str:
        status = life.process.status
        if life.process.is_lost:
            return LOST
        if life.outlived_grace:
            return f"stopped: killed after {self.section.stop_grace_s:g} s of grace"
        if life.ending.is_set():
            return "stopped"
        how = f"killed by {_signal_name(-status)}" if status < 0 else f"exited with status {status}"
        return f"{how}: {printed}" if printed else how

    def _log_trouble(self, message: str, detail: str) -> None:
        log.error(message, extra={"fields": {"machine": self.look.machine_id, "detail": detail}})


async def _wait_until(check: Callable[[], Awaitable[bool]]) -> None:
    """Return when `check` returns True; it is called at growing intervals. The caller sets the deadline."""
    interval_s = POLL_FIRST_S
    while not await check():
        await trio.sleep(interval_s)
        interval_s = min(2 * interval_s, POLL_MOST_S)


def _fault(life: Life, status: int) -> Fault | None:
    """It failed to start if it ended by itself before it ever listened: neither asked to end nor killed by a signal."""
    asked = life.ending.is_set() or -status in (signal.SIGTERM, signal.SIGKILL)
    return None if asked or life.listened else Fault.OTHER


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
