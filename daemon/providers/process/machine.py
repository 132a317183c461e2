"""One machine of the process provider: its state as others see it, and the life of its process.

Owns the states, the waiting between them, and the end of every process that it has started. `provider` tells it what to do
by calls that do not wait. What takes time runs in tasks that end with the process.

           start             listens               stop(HIBERNATE)             frozen
  STOPPED ───────▶ PENDING ───────────▶ RUNNING ─────────────────▶ STOPPING ─────────▶ HIBERNATED
     ▲                │                 │     ▲                     │  │                   │
     │                │ stop(STOP)      │     └─────────────────────┘  │       start       │
     │                ▼                 │        cannot be frozen      │ (thaw: to RUNNING)│
     └──────────── STOPPING ◀───────────┘                              │                   │
     └───────────── the leader dies, in any state: all of it is killed and reaped ─────────┘
  A destroyed machine ends as TERMINATED instead of STOPPED; only `launch` leads out of that.
"""

import dataclasses
import logging
import signal
from collections.abc import Callable
from pathlib import Path

import trio

from bentpipe.config.model import ProcessSection
from bentpipe.daemon.errors import MachineNotFound, ProviderRetryable, SleepModeRefused
from bentpipe.daemon.ids import folder_name
from bentpipe.daemon.model import Address, Fault, Machine, MachineId, MachineState
from bentpipe.daemon.ports import PortReservation
from bentpipe.daemon.providers.process.cgroup import wait_until
from bentpipe.daemon.providers.process.containment import Containment
from bentpipe.daemon.providers.process.listening import Listeners, Whose
from bentpipe.daemon.providers.process.output import Output
from bentpipe.daemon.providers.process.spawn import Child
from bentpipe.daemon.tasks import Decision, Owner, contained, run_owned

log = logging.getLogger("bentpipe.providers.process")

LISTEN_POLL_S = 0.01
"""Time between checks of the kernel's list of listeners while a machine is PENDING; the kernel cannot announce one."""

EXPLAIN_S = 1.0
"""Time between updates of the reason why a machine is still PENDING: its output may change each time."""

FREEZE_DEADLINE_S = 5.0
"""Freezing takes a millisecond, unless a process is in an uninterruptible wait; then hibernation is refused."""

KILL_DEADLINE_S = 5.0
"""The most time from SIGKILL to the end of the last process. If one is in an uninterruptible wait, it is left, with an error
in the log."""


DESTROYED = "destroyed"


@dataclasses.dataclass(slots=True)
class _Freeze:
    """One attempt to freeze. `failure` is None if it worked or the process ended otherwise."""

    done: trio.Event
    failure: str | None = None


@dataclasses.dataclass(slots=True)
class Life:
    """One process of a machine, from its spawn until it is reaped."""

    child: Child
    containment: Containment
    output: Output
    address: Address
    reservation: PortReservation | None
    """Of the port that was chosen for it, until it listens there; None if its section names the port."""
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

    def free_reservation(self) -> None:
        """Let others reserve its port; does nothing the second time."""
        if self.reservation is not None:
            self.reservation.close()


class LocalMachine:
    """A machine and its process, if it has one."""

    def __init__(
        self, machine_id: MachineId, section: ProcessSection, log_dir: Path | None, listeners: Listeners
    ) -> None:
        self.section = section
        self.look = Machine(machine_id, MachineState.STOPPED)
        self.log_file = None if log_dir is None else log_dir / f"{folder_name(machine_id)}.log"
        self._listeners = listeners
        self._life: Life | None = None
        self._destroyed = False
        self._changed = trio.Event()

    @property
    def port(self) -> int | None:
        """The port its process has been given, if there is a process."""
        return None if self._life is None else self._life.address.port

    def has_port(self) -> bool:
        """Whether it runs and no other process listens on its port, which could happen when its own listener is gone."""
        life = self._life
        if life is None or life.dead or self.look.state is not MachineState.RUNNING:
            return False
        whose = self._listeners.whose(life.address.host, life.address.port, life.containment.pids, life.known_inodes)
        return whose is not Whose.STRANGER

    async def wait_changed(self, seen: Machine) -> Machine:
        """Return the look as soon as it differs from `seen`."""
        await trio.lowlevel.checkpoint()
        while self.look == seen:
            await self._changed.wait()
        return self.look

    def begin_nowait(self, nursery: trio.Nursery, spawn: Callable[[], Life]) -> None:
        """Start, resume, or do nothing, depending on the state. Raises what `spawn` raises, and ProviderRetryable."""
        if self._life is not None and self._life.dead:
            raise ProviderRetryable("it has just died and is being cleaned up")
        match self.look.state:
            case MachineState.PENDING | MachineState.RUNNING:
                return
            case MachineState.STOPPING:
                raise ProviderRetryable("it is being stopped")
            case MachineState.HIBERNATED if self._life is not None:
                try:
                    self._life.containment.thaw()
                except OSError as error:
                    raise ProviderRetryable(f"cannot thaw: {error}") from error
                self._show(MachineState.RUNNING, self._life.address)
            case MachineState.TERMINATED:
                raise MachineNotFound("it was destroyed")
            case _:
                self._begin(nursery, spawn)

    def recreate_nowait(self, nursery: trio.Nursery, spawn: Callable[[], Life]) -> None:
        """Start again after `destroy_nowait`; does nothing if it exists. Raises what `spawn` raises, ProviderRetryable."""
        if self.look.state is MachineState.TERMINATED:
            self._begin(nursery, spawn)
            self._destroyed = False
        elif self._destroyed:
            raise ProviderRetryable("it is being destroyed")

    def destroy_nowait(self) -> None:
        """End the process for good: only `recreate_nowait` starts it again."""
        self._destroyed = True
        self.end_nowait()
        if self._life is None and self.look.state is not MachineState.TERMINATED:
            self._show(MachineState.TERMINATED, reason=DESTROYED)

    def kill_nowait(self) -> None:
        """Kill the process at once if it was asked to end."""
        if self._life is not None and self._life.ending.is_set() and not self._life.dead:
            self._life.containment.kill()

    def _begin(self, nursery: trio.Nursery, spawn: Callable[[], Life]) -> None:
        self._life = spawn()
        self._show(MachineState.PENDING)
        nursery.start_soon(run_owned, self._owner("life"), self._run_life, self._life)

    def _owner(self, task: str, decision: Decision = Decision.RESTART) -> Owner:
        return Owner(f"process {task}", self.look.machine_id, decision)

    def end_nowait(self) -> None:
        """Ask the process to end, whatever the state; does nothing if it has been asked or there is none.

        SIGTERM comes before the thaw, so that a frozen satellite ends at once instead of going on with its work.
        """
        if self._life is None or self._life.dead or self._life.ending.is_set():
            return
        self._life.ending.set()
        self._show(MachineState.STOPPING)
        for ask in (self._life.containment.terminate, self._life.containment.thaw):
            with contained(self._owner("asked to end")):  # if this fails, SIGKILL comes after the grace
                ask()

    async def hibernate(self, nursery: trio.Nursery) -> None:
        """Freeze a RUNNING machine. Raises SleepModeRefused; the machine is RUNNING again then.

        If this is cancelled, the freezing goes on. If the process ends meanwhile, the freeze counts as done.
        """
        if self.look.state is not MachineState.RUNNING or self._life is None:
            raise SleepModeRefused(f"only a running machine can hibernate, this one is {self.look.state.value}")
        attempt = _Freeze(trio.Event())
        self._show(MachineState.STOPPING)
        nursery.start_soon(run_owned, self._owner("freeze", Decision.GIVE_UP), self._freeze, self._life, attempt)
        await attempt.done.wait()
        if attempt.failure is not None:
            raise SleepModeRefused(attempt.failure)

    async def wait_ended(self) -> None:
        """Return when nothing of the process is left, or when it does not die of SIGKILL after its grace."""
        life = self._life
        if life is None:
            return
        # Twice: for the leader, then for the rest of its group.
        with trio.move_on_after(self.section.stop_grace_s + 2 * KILL_DEADLINE_S) as scope:
            await life.ended.wait()
        if scope.cancelled_caught:
            life.containment.kill()
            self._log_trouble("gave up on a satellite that does not die", f"leader {life.child.pid}")

    def _show(
        self, state: MachineState, address: Address | None = None, reason: str = "", fault: Fault | None = None
    ) -> None:
        # A client that may use the satellite may read what it prints, so every reason here is a hint too.
        self.look = Machine(self.look.machine_id, state, address, reason, fault, hint=reason)
        self._changed.set()
        self._changed = trio.Event()

    async def _run_life(self, life: Life) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_owned, self._owner("output"), life.output.run_reader)
            nursery.start_soon(run_owned, self._owner("port"), self._watch_port, life)
            nursery.start_soon(run_owned, self._owner("grace"), self._enforce_grace, life)
            await life.child.wait_exit()
            life.dead = True
            nursery.cancel_scope.cancel()
        await self._clean_up(life)

    async def _watch_port(self, life: Life) -> None:
        explain_at = trio.current_time() + EXPLAIN_S
        while not self._listeners.is_listening(life.address.host, life.address.port, life.containment.pids):
            await trio.sleep(LISTEN_POLL_S)
            if trio.current_time() >= explain_at:
                explain_at = trio.current_time() + EXPLAIN_S
                self._explain(life)
        life.listened = True
        life.free_reservation()
        if self.look.state is MachineState.PENDING:
            self._show(MachineState.RUNNING, life.address)

    def _explain(self, life: Life) -> None:
        """Set the reason why it is still PENDING: a client that gives up waiting gets it."""
        taken = self._listeners.is_taken(life.address.host, life.address.port)
        port = life.address.port
        words = (
            f"another process than the satellite's listens on port {port}"
            if taken
            else f"nothing listens on port {port}"
        )
        printed = life.output.last_lines()
        words = f"{words}; the satellite printed: {printed}" if printed else f"{words}; the satellite printed nothing"
        if self.look.state is MachineState.PENDING and self.look.reason != words:
            self._show(MachineState.PENDING, reason=words)

    async def _enforce_grace(self, life: Life) -> None:
        await life.ending.wait()
        await trio.sleep(self.section.stop_grace_s)
        life.outlived_grace = True
        life.containment.kill()

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
            life.containment.freeze()
            with trio.move_on_after(FREEZE_DEADLINE_S):
                await wait_until(lambda: life.dead or life.ending.is_set() or life.containment.is_frozen())
                return None
            life.containment.thaw()
        except Exception as error:
            with contained(self._owner("thaw")):  # some processes may be frozen, and the satellite has to serve
                life.containment.thaw()
            return f"could not be frozen: {error}"
        return f"could not be frozen within {FREEZE_DEADLINE_S:g} s"

    async def _clean_up(self, life: Life) -> None:
        """Kill the processes that the leader left, reap the leader last (see Containment), and set the reason of the end."""
        cleaning = self._owner("cleaning up")
        with contained(cleaning):
            life.containment.kill()
        with contained(cleaning):
            with trio.move_on_after(KILL_DEADLINE_S) as scope:
                await wait_until(life.containment.is_empty)
            if scope.cancelled_caught:
                self._log_trouble("processes outlive SIGKILL", str(life.containment.pids()))
            life.containment.remove()
        with contained(cleaning):
            life.output.finish()
        with contained(cleaning):
            life.free_reservation()
        status = 0
        with contained(cleaning):
            status = life.child.reap()
        self._life = None
        if self._destroyed:
            self._show(MachineState.TERMINATED, reason=DESTROYED)
        else:
            self._show(MachineState.STOPPED, reason=self._reason(life, status), fault=_fault(life, status))
        life.ended.set()

    def _reason(self, life: Life, status: int) -> str:
        if life.outlived_grace:
            return f"stopped: killed after {self.section.stop_grace_s:g} s of grace"
        if life.ending.is_set():
            return "stopped"
        how = f"killed by {_signal_name(-status)}" if status < 0 else f"exited with status {status}"
        words = life.output.last_lines()
        return f"{how}: {words}" if words else how

    def _log_trouble(self, message: str, detail: str) -> None:
        log.error(message, extra={"fields": {"machine": self.look.machine_id, "detail": detail}})


def _fault(life: Life, status: int) -> Fault | None:
    """It failed to start if it ended by itself before it ever listened: neither asked to end nor killed by a signal."""
    asked = life.ending.is_set() or -status in (signal.SIGTERM, signal.SIGKILL)
    return None if asked or life.listened else Fault.OTHER


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
