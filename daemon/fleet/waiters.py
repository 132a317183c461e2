"""The clients that wait for a lease of one satellite, and the outcome of each wait."""

import dataclasses
import functools
import itertools
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from bentpipe.daemon.errors import BentpipeError, LimitReached
from bentpipe.daemon.fleet.batched_release import BatchedEvent, BatchedRelease
from bentpipe.daemon.fleet.crowd import HeldSlot, WaitingLine
from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.machine.messages import WaiterId


class Waiting(Protocol):
    """What a client's task does while the client waits."""

    async def until(self, over: BatchedEvent) -> None:
        """Return once `over` is set. May raise if the client goes before that."""
        ...

    async def during(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work`, which may take seconds. Raises as it does, and as `until`."""
        ...


class JustWaiting:
    """The task does nothing else."""

    async def until(self, over: BatchedEvent) -> None:
        """See Waiting."""
        await over.wait()

    async def during(self, work: Callable[[], Awaitable[None]]) -> None:
        """See Waiting."""
        await work()


JUST_WAITING = JustWaiting()


@dataclasses.dataclass(slots=True)
class Waiter:
    """One client. `done` is set once there is a lease or an error."""

    id: WaiterId
    who: str
    since: float
    """trio.current_time() seconds."""
    done: BatchedEvent
    held: bool = False
    slot: HeldSlot | None = None
    lease: Lease | None = None
    error: BentpipeError | None = None

    def outcome(self) -> Lease:
        """Return the lease. Raises the error; each waiter gets a copy, since many share one."""
        if self.error is not None:
            raise type(self.error)(str(self.error), peer_hint=self.error.peer_hint) from self.error
        if self.lease is None:
            raise AssertionError("done without lease or error")
        return self.lease


class Waiters:
    """The waiters of one satellite. When a wait ends, `waited` is called with its length in seconds."""

    def __init__(self, line: WaitingLine, waited: Callable[[float], None]) -> None:
        self._line = line
        self._waited = waited
        self._ids = itertools.count()
        self._batches = BatchedRelease()
        self._waiters: dict[WaiterId, Waiter] = {}

    def add(self, who: str) -> Waiter:
        """A client that wants a lease; `who` is for the ledger."""
        waiter = Waiter(WaiterId(next(self._ids)), who, trio.current_time(), self._batches.event())
        self._waiters[waiter.id] = waiter
        return waiter

    def resize(self, limit: int) -> None:
        """So many clients may wait from now on; those that wait stay."""
        self._line.resize(limit)

    def refusal(self, payer: str) -> str | None:
        """Why no further client of this principal can be held; None if one can."""
        return self._line.refusal(payer)

    def hold(self, waiter: Waiter, payer: str, refusal: str | None, let_go: Callable[[Waiter], None]) -> None:
        """Hold the client if its wait is not over yet. `refusal` is the answer to that, and is counted if it stands.

        `let_go` is called if the client gives its place to another principal's client.
        """
        waiter.held = not waiter.done.is_set()
        if waiter.held:
            waiter.slot = self._line.take(payer, functools.partial(self._give_way, waiter, let_go))
        elif refusal is not None and isinstance(waiter.error, LimitReached):
            self._line.refused(refusal)

    def grant(self, waiter_id: WaiterId, lease: Lease) -> None:
        """Its wait is over: it has a lease."""
        self._waiters[waiter_id].lease = lease
        self._end(self._waiters[waiter_id])

    def fail(self, waiter_id: WaiterId, error: BentpipeError) -> None:
        """Its wait is over: it gets `error`."""
        self._waiters[waiter_id].error = error
        self._end(self._waiters[waiter_id])

    def fail_all(self, error: BentpipeError) -> None:
        """All waits are over."""
        for waiter in list(self._waiters.values()):
            if not waiter.done.is_set():
                self.fail(waiter.id, error)

    def remove(self, waiter: Waiter) -> bool:
        """Its task goes on or ends. Returns whether it has left before its wait was over."""
        self._waiters.pop(waiter.id, None)
        if waiter.done.is_set():
            return False
        self._waited(trio.current_time() - waiter.since)
        self._leave_line(waiter)
        return True

    def first_who(self) -> str:
        """For the ledger: the principal that has waited for the longest time; "" if no client waits."""
        return next((waiter.who for waiter in self._waiters.values() if not waiter.done.is_set()), "")

    def _give_way(self, waiter: Waiter, let_go: Callable[[Waiter], None], error: LimitReached) -> None:
        waiter.error = error
        let_go(waiter)
        self._end(waiter)

    def _end(self, waiter: Waiter) -> None:
        if waiter.held:
            self._waited(trio.current_time() - waiter.since)
        self._leave_line(waiter)
        waiter.done.set()

    def _leave_line(self, waiter: Waiter) -> None:
        if waiter.slot is not None:
            waiter.slot.release()
            waiter.slot = None
