"""One satellite at work: its machine's actions carried out, in a nursery of its own, and leases for the edge.

Inputs are handed to the machine synchronously, on the Trio thread: between a decision and its state nothing can slip in.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from bentpipe.config.model import SatelliteSection
from bentpipe.daemon.errors import BentpipeError, MachineNotFound, ProviderError
from bentpipe.daemon.fleet.machine import (
    Arrived,
    Departed,
    Drain,
    EndProbe,
    Fail,
    Grant,
    Input,
    Moved,
    Probe,
    Ready,
    Released,
    Rules,
    SatelliteMachine,
    Seen,
    Start,
    StartDone,
    Stop,
    StopDone,
    Tick,
    Unreachable,
    WaiterId,
)
from bentpipe.daemon.fleet.readiness import wait_listening
from bentpipe.daemon.fleet.wake_book import WakeBook
from bentpipe.daemon.model import (
    Address,
    Machine,
    MachineId,
    MachineState,
    SatelliteKey,
    SatelliteState,
    SleepMode,
    Transition,
    WakePhase,
)
from bentpipe.daemon.providers.base import Provider

log = logging.getLogger("bentpipe.fleet")


class Lease:
    """The right to use an operational satellite; while it lives the satellite does not sleep."""

    def __init__(self, address: Address, release: Callable[[], None]) -> None:
        self.address = address
        self._release = release
        self._live = True
        self._kept = False

    def keep(self) -> None:
        """Let the lease outlive its context manager: whoever keeps it calls `release`."""
        self._kept = True

    @property
    def kept(self) -> bool:
        """Whether `keep` was called."""
        return self._kept

    def release(self) -> None:
        """Give it back; idempotent."""
        if self._live:
            self._live = False
            self._release()


class _Waiter:
    def __init__(self, who: str, since: float) -> None:
        self.who = who
        self.since = since
        self.held = False
        self.done = trio.Event()
        self.lease: Lease | None = None
        self.error: BentpipeError | None = None


def _lease_of(waiter: _Waiter) -> Lease:
    """What the wait came to. Raises its error, anew for each waiter: many share one."""
    if waiter.error is not None:
        raise type(waiter.error)(str(waiter.error), peer_hint=waiter.error.peer_hint) from waiter.error
    if waiter.lease is None:
        raise AssertionError("done without lease or error")
    return waiter.lease


def rules_of(section: SatelliteSection, max_waiters: int) -> Rules:
    """Take the machine's rules out of the configuration."""
    return Rules(
        sleep_mode=SleepMode(section.sleep_mode),
        sleep_after_s=section.sleep_after_s,
        min_awake_s=section.min_awake_s,
        wake_deadline_s=section.wake_deadline_s,
        hold_limit_s=section.hold_limit_s,
        retry_after_s=section.retry_after_s,
        max_waiters=max_waiters,
    )


class Satellite:
    """One satellite; `run` is its owner task."""

    def __init__(
        self,
        key: SatelliteKey,
        rules: Rules,
        provider: Provider,
        machine_id: MachineId,
        observer: Callable[[Transition], None],
    ) -> None:
        self.key = key
        self._machine = SatelliteMachine(rules)
        self._provider = provider
        self._machine_id = machine_id
        self._observer = observer
        self._waiters: dict[WaiterId, _Waiter] = {}
        self._book = WakeBook()
        self._ids = itertools.count()
        self._nursery: trio.Nursery | None = None
        self._probe = trio.CancelScope()
        self._deadline_moved = trio.Event()

    @property
    def state(self) -> SatelliteState:
        """The state now."""
        return self._machine.state

    @property
    def leases(self) -> int:
        """Leases held now."""
        return self._machine.leases

    @property
    def waiting(self) -> int:
        """Clients waiting now."""
        return len(self._machine.waiters)

    @contextlib.asynccontextmanager
    async def lease(self, who: str = "") -> AsyncIterator[Lease]:
        """Wait until the satellite is operational. Raises WakeFailed, SatelliteUnusable, LimitReached, Draining, ….

        `who` is the principal, for the books. Cancelling the wait gives the place back at once; the wake goes on.
        """
        waiter_id = WaiterId(next(self._ids))
        waiter = self._waiters[waiter_id] = _Waiter(who, trio.current_time())
        self._feed(Arrived(waiter_id))
        waiter.held = not waiter.done.is_set()
        try:
            await waiter.done.wait()
        except trio.Cancelled:
            if waiter.lease is not None:
                waiter.lease.release()
            raise
        finally:
            self._waiters.pop(waiter_id, None)
            if not waiter.done.is_set():
                self._book.waited(trio.current_time() - waiter.since)
                self._feed(Departed(waiter_id))
        lease = _lease_of(waiter)
        try:
            yield lease
        finally:
            if not lease.kept:
                lease.release()

    def lease_nowait(self, who: str = "") -> Lease | None:
        """Lease an operational satellite without a wait; None if there has to be one. Raises as `lease` does.

        The caller releases the lease, or keeps it.
        """
        if self.state is not SatelliteState.OPERATIONAL:
            return None
        waiter_id = WaiterId(next(self._ids))
        waiter = self._waiters[waiter_id] = _Waiter(who, trio.current_time())
        self._feed(Arrived(waiter_id))
        del self._waiters[waiter_id]
        return _lease_of(waiter)

    def report_unreachable(self) -> None:
        """Tell that the granted address does not answer: the satellite is probed again before the next grant."""
        self._feed(Unreachable())

    def drain(self) -> None:
        """Refuse waiters and new-comers."""
        self._feed(Drain())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the satellite for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            machine = await self._describe()
            self._feed(Seen(machine))
            nursery.start_soon(self._watch, machine)
            task_status.started()
            await self._run_clock()

    async def _describe(self) -> Machine:
        try:
            return await self._provider.describe(self._machine_id)
        except MachineNotFound as exc:
            return Machine(self._machine_id, MachineState.TERMINATED, reason=str(exc))

    async def _watch(self, seen: Machine) -> None:
        while True:
            seen = await self._provider.wait_changed(seen)
            self._feed(Seen(seen))

    async def _run_clock(self) -> None:
        while True:
            deadline = self._machine.next_deadline()
            moved = self._deadline_moved
            with trio.move_on_at(float("inf") if deadline is None else deadline):
                await moved.wait()
                continue
            self._feed(Tick())

    def _feed(self, event: Input) -> None:
        now = trio.current_time()
        if isinstance(event, StartDone) and event.error is None:
            self._book.phase_ended(WakePhase.START, now)
        moves: list[Moved] = []
        probed = False
        for action in self._machine.handle(event, now):
            match action:
                case Grant(waiter, address):
                    self._waiters[waiter].lease = Lease(address, lambda: self._feed(Released()))
                    self._end_wait(self._waiters[waiter], now)
                case Fail(waiter, error):
                    self._waiters[waiter].error = error
                    self._end_wait(self._waiters[waiter], now)
                case Moved():
                    moves.append(action)
                case Start():
                    self._spawn(self._start)
                case Stop(mode):
                    self._spawn(self._stop, mode)
                case Probe(address):
                    probed = True
                    self._probe = trio.CancelScope()
                    self._spawn(self._run_probe, address, self._probe)
                case EndProbe():
                    self._probe.cancel()
        # Told last, so that waits which end with a change count for the state that is left.
        for moved in moves:
            self._tell(moved, now)
        if probed:
            self._book.phase_ended(WakePhase.BOOT, now)
        self._deadline_moved.set()
        self._deadline_moved = trio.Event()

    def _end_wait(self, waiter: _Waiter, now: float) -> None:
        if waiter.held:
            self._book.waited(now - waiter.since)
        waiter.done.set()

    def _tell(self, moved: Moved, now: float) -> None:
        phases, waits = self._book.take(moved.before, moved.after, now)
        who = ""
        if moved.after is SatelliteState.STARTING:
            self._book.began(now)
            who = next((waiter.who for waiter in self._waiters.values() if not waiter.done.is_set()), "")
        self._observer(Transition(self.key, moved.before, moved.after, time.time(), moved.cause, who, phases, waits))

    def _spawn(self, task: Callable[..., Awaitable[object]], *arguments: object) -> None:
        if self._nursery is None:
            raise AssertionError("not running")
        self._nursery.start_soon(task, *arguments)

    async def _start(self) -> None:
        try:
            await self._provider.start(self._machine_id)
        except ProviderError as exc:
            self._feed(StartDone(exc))
        else:
            self._feed(StartDone(None))

    async def _stop(self, mode: SleepMode) -> None:
        try:
            await self._provider.stop(self._machine_id, mode)
        except ProviderError as exc:
            log.warning("sleep refused", extra={"fields": {"satellite": str(self.key), "error": str(exc)}})
            self._feed(StopDone(exc))
        else:
            self._feed(StopDone(None))

    async def _run_probe(self, address: Address, scope: trio.CancelScope) -> None:
        with scope:
            await wait_listening(address)
            self._feed(Ready())
