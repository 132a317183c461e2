"""One satellite at work: its machine's actions carried out, in a nursery of its own, and leases for the edge.

Inputs are handed to the machine synchronously, on the Trio thread: between a decision and its state nothing can slip in.
"""

import collections
import contextlib
import functools
import itertools
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import assert_never

import trio

from bentpipe.config.model import KeepAwakeSection
from bentpipe.daemon.coordination.contract import Coordination, LocalCoordination
from bentpipe.daemon.errors import LimitReached, ProviderError, WakeFailed
from bentpipe.daemon.fleet.acting import Acting
from bentpipe.daemon.fleet.batched_release import Usher
from bentpipe.daemon.fleet.budget import Holder, Request
from bentpipe.daemon.fleet.coordinated import CoordinatedProvider
from bentpipe.daemon.fleet.crowd import Crowd, WaitingLine
from bentpipe.daemon.fleet.launches import Launches, LaunchNames
from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.fleet.machine.machine import SatelliteMachine
from bentpipe.daemon.fleet.machine.messages import Action, Input, Lesson, WaiterId
from bentpipe.daemon.fleet.machine.rules import LOOK_AGAIN_FIRST_S, LOOK_AGAIN_MOST_S, Rules, backed_off
from bentpipe.daemon.fleet.machine.states import WAKING
from bentpipe.daemon.fleet.readiness import wait_listening
from bentpipe.daemon.fleet.resume import Memory, Witness
from bentpipe.daemon.fleet.traffic import TrafficWatch
from bentpipe.daemon.fleet.waiters import Waiter, lease_of
from bentpipe.daemon.fleet.wake_book import WakeBook
from bentpipe.daemon.fleet.watching import first_look, run_calendar, run_watch
from bentpipe.daemon.fleet.whereabouts import Means, Places, Whereabouts
from bentpipe.daemon.model import (
    Address,
    Machine,
    MachineId,
    Resume,
    SatelliteKey,
    SatelliteState,
    Transition,
)
from bentpipe.daemon.providers.base import Provider
from bentpipe.daemon.providers.typed import TypedProvider
from bentpipe.daemon.registry.contract import Registry
from bentpipe.daemon.tasks import Decision, Owner, Ts, contained, note_failure, run_owned, start_owned

log = logging.getLogger("bentpipe.fleet")

IN_REACH = frozenset({SatelliteState.OPERATIONAL, SatelliteState.STOPPING, *WAKING})
"""While it is awake it stays in use, to the other hosts, until this one finds it idle: then it asks to put it to sleep."""

BROKEN_WORDS = "the edge host has made a mistake with this satellite and begins anew; try again in a moment"


class Satellite:
    """One satellite; `run` is its owner task. A failure of any part of it stays here: see `_broke`."""

    def __init__(
        self,
        key: SatelliteKey,
        rules: Rules,
        provider: Provider,
        machine_id: MachineId,
        observer: Callable[[Transition], None],
        *,
        keep_awake: Sequence[KeepAwakeSection] = (),
        witness: Witness | None = None,
        crowd: Crowd | None = None,
        places: Places | None = None,
        coordination: Coordination | None = None,
        registry: Registry | None = None,
        on_step: Callable[["Satellite"], None] = lambda satellite: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`on_step` is called after every step of the machine; `wall` is time.time, but for tests."""
        self.key = key
        self.rules = rules
        self._machine = SatelliteMachine(rules)
        self._granted = 0
        """Leases that live."""
        self.lessons: collections.Counter[Lesson] = collections.Counter()
        self.resumes: collections.Counter[Resume] = collections.Counter()
        self._coordination = coordination or LocalCoordination()
        self._entering = 0
        self._provider: Provider = TypedProvider(
            CoordinatedProvider(
                *(provider, self._coordination, key, self._is_used),
                launches=Launches(registry, key, wall=wall) if registry is not None else None,
            ),
            str(key),
        )
        self._machine_id = machine_id
        names = LaunchNames(key, wall)
        self._acting = Acting(
            key,
            self._provider,
            machine_id,
            names,
            rules.traits.look_deadline_s,
            feed=self._feed,
            waiting=lambda: self.waiting,
        )
        self._observer = observer
        self._keep_awake = keep_awake
        self._line = WaitingLine(crowd or Crowd(), rules.max_waiters)
        self._on_step = on_step
        self._wall = wall
        self._waiters: dict[WaiterId, Waiter] = {}
        self._book = WakeBook()
        self._traffic = TrafficWatch(rules.quiet_window_s)
        self._ends_quiet = rules.ends_quiet
        self._over = trio.Event()
        self._quiet_window_s = rules.quiet_window_s
        self._memory = Memory(key, witness)
        self._recovering = self._draining = False
        means = Means(
            machine=self._last_seen,
            vouches=self._provider.vouches_nowait,
            look=self._acting.look,
            recognises=self._memory.recognises,
            address_age_s=rules.traits.address_age_s,
            unreachable=self.report_unreachable,
        )
        self._whereabouts = Whereabouts(key, places or Places(), means)
        self._ids = itertools.count()
        self._usher = Usher()
        self._nursery: trio.Nursery | None = None
        self._probe = trio.CancelScope()
        self._deadline_moved = trio.Event()

    @property
    def state(self) -> SatelliteState:
        """The state now."""
        return self._machine.known.state

    @property
    def leases(self) -> int:
        """Leases held now."""
        return self._machine.known.leases

    @property
    def wakes(self) -> int:
        """Wakes begun for clients, and to keep it awake by the hour."""
        return self._machine.known.wakes

    @property
    def waiting(self) -> int:
        """Clients waiting now."""
        return self._machine.known.waiting

    @contextlib.asynccontextmanager
    async def lease(
        self, who: str = "", payer: str | None = None, *, since: float | None = None, tell_by: float = math.inf
    ) -> AsyncIterator[Lease]:
        """Wait until the satellite is operational. Raises WakeFailed, SatelliteUnusable, LimitReached, Draining, ….

        `who` is for the books; `payer` is the principal whose client is held, by default the same. The client is held
        `since` then (by default: now). How long it would wait itself (grpc-timeout) does not bound the wait: it is its
        first request's, and others may share the connection. But if every attempt to wake the satellite has failed, it is
        told why at `tell_by`, while it can still hear it. Cancelling the wait gives the place back at once; the wake goes
        on.
        """
        since = trio.current_time() if since is None else since
        await self._enter()
        waiter_id = WaiterId(next(self._ids))
        waiter = self._waiters[waiter_id] = Waiter(who, trio.current_time(), self._usher.event())
        payer = who if payer is None else payer
        words = self._line.refusal(payer)
        self._feed(msg.Arrived(waiter_id, words is not None, since, tell_by, words or ""))
        self._entering -= 1
        self._leave_if_unused()  # it may have been refused at once
        waiter.held = not waiter.done.is_set()
        if waiter.held:
            waiter.seat = self._line.take(payer, functools.partial(self._let_go, waiter_id))
        elif words is not None and isinstance(waiter.error, LimitReached):
            self._line.refused(words)
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
                self._leave_line(waiter)
                self._feed(msg.Departed(waiter_id))
        lease = lease_of(waiter)
        try:
            yield lease
        finally:
            if not lease.kept:
                lease.release()

    def lease_nowait(self, who: str = "") -> Lease | None:
        """Lease an operational satellite without a wait; None if there has to be one. Raises as `lease` does.

        The caller releases the lease, or keeps it.
        """
        if self.state is not SatelliteState.OPERATIONAL or not self._coordination.is_entered(self.key):
            return None
        if not self._whereabouts.is_certain():
            return None
        waiter_id = WaiterId(next(self._ids))
        waiter = self._waiters[waiter_id] = Waiter(who, trio.current_time(), self._usher.event())
        self._feed(msg.Arrived(waiter_id))
        del self._waiters[waiter_id]
        return lease_of(waiter)

    async def _enter(self) -> None:
        """Tell the other hosts that the satellite is wanted here; counted until the machine knows.

        Raises ProviderError; MachineUncertain if it is up, and nobody can say whether it still has its address.
        """
        self._entering += 1
        try:
            if not self._coordination.is_entered(self.key):
                await self._coordination.enter(self.key, self._acting.look)
            if self.state is SatelliteState.OPERATIONAL:
                await self._whereabouts.make_certain(self._spawn_search)
        except BaseException:
            self._entering -= 1
            self._leave_if_unused()
            raise

    def _is_used(self) -> bool:
        return bool(self._entering or self._machine.known.leases or self._machine.known.waiting)

    def _leave_if_unused(self) -> None:
        if self._machine.known.state not in IN_REACH and not self._is_used():
            self._coordination.leave_nowait(self.key)

    def _last_seen(self) -> Machine | None:
        return self._machine.known.machine

    def is_at(self, address: Address) -> bool:
        """Whether its machine is known to have `address` at this moment."""
        machine = self._machine.known.machine
        return machine is not None and machine.address == address and self._whereabouts.is_certain()

    def report_unreachable(self) -> bool:
        """Tell that the granted address does not answer: the satellite is looked at, and probed before the next grant.

        Returns False if it is being probed already.
        """
        was_granted = self.state is SatelliteState.OPERATIONAL
        self._feed(msg.Unreachable())
        return was_granted

    def suspect(self) -> None:
        """Tell that the machine may not be what was last seen: it is looked at, at once unless that was just done."""
        self._feed(msg.Suspected())

    def reset(self) -> None:
        """Somebody has acted: failures and lessons are forgotten at once."""
        self._feed(msg.Reset())

    def drain(self) -> None:
        """Refuse waiters and new-comers."""
        self._draining = True
        self._feed(msg.Drain())

    # -- the awake budget --------------------------------------------------------------------------------------------

    def place(self) -> Holder | Request | None:
        """What it is to the awake budget: it holds a place, asks for one, or neither."""
        known = self._machine.known
        if known.holds_place:
            leaving = known.state is SatelliteState.STOPPING
            return Holder(self.key, known.idle_since, known.evictable_at, known.keep_awake, leaving)
        return Request(self.key, upkeep=not known.waiting) if known.wants_place(trio.current_time()) else None

    def grant_place(self) -> bool:
        """The awake budget lets it wake. Returns whether it does."""
        self._feed(msg.PlaceGranted())
        return self._machine.known.holds_place

    def evict(self) -> bool:
        """The awake budget needs its place. Returns whether it gives it up."""
        self._feed(msg.Evict())
        return self.state is SatelliteState.STOPPING

    # -- tasks ---------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the satellite for ever. Started once it knows how its machine is, or that nobody can say."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            # Calls that an earlier nursery made have ended with it.
            self._recovering = False
            self._machine.calls_ended(looks=True)
            traits = self.rules.traits
            watch = (self._provider, self._machine_id, traits.look_deadline_s, self._feed, self._acting.looks)
            await nursery.start(start_owned, self._owner("watch"), run_watch, *watch)
            calendar = (self._keep_awake, traits.hibernation_limit_s, self._wall, self._last_seen, self._feed)
            nursery.start_soon(run_owned, self._owner("calendar"), run_calendar, *calendar)
            if self._ends_quiet:
                nursery.start_soon(run_owned, self._owner("meters"), self._run_meters)
            nursery.start_soon(run_owned, self._owner("clock", self._broke), self._run_clock)
            task_status.started()
            await trio.sleep_forever()

    def _owner(self, task: str, told: Callable[[Exception], None] | None = None) -> Owner:
        return Owner(f"satellite {task}", str(self.key), told=told)

    async def _run_clock(self) -> None:
        while True:
            deadline = self._machine.known.next_deadline()
            moved = self._deadline_moved
            with trio.move_on_at(float("inf") if deadline is None else deadline):
                await moved.wait()
                continue
            # The last moment before a sleep is decided: the same step reads the meters and acts on them.
            self._read_meters()
            self._feed(msg.Tick())

    async def _run_meters(self) -> None:
        while True:
            await trio.sleep(self._quiet_window_s)
            self._read_meters()

    def _read_meters(self) -> None:
        if self._traffic.look(trio.current_time()):
            self._feed(msg.Traffic())

    # -- the machine's inputs and actions ------------------------------------------------------------------------------

    def _feed(self, event: Input) -> None:
        """Hand an input to the machine and do what it says. Never raises an Exception: who feeds is not to blame."""
        try:
            self._step(event)
        except Exception as exc:
            note_failure(self._owner("step"), exc, "its machine begins anew")
            self._broke(exc)

    def _step(self, event: Input) -> None:
        now = trio.current_time()
        if isinstance(event, msg.Seen):
            self._whereabouts.note(event.machine)
        self._book.note_input(event, now)
        actions = self._machine.handle(event, now)
        for action in actions:
            self._carry_out(action, now)
        # Told last, so that waits which end with a change count for the state that is left.
        for action in actions:
            if isinstance(action, msg.Moved):
                self._tell(action, now)
        self._book.note_actions(actions, now)
        self._stepped()

    def _stepped(self) -> None:
        self._deadline_moved.set()
        self._deadline_moved = trio.Event()
        self._leave_if_unused()
        with contained(self._owner("budget")):
            self._on_step(self)

    def _broke(self, failure: Exception) -> None:
        """The machine has failed in the middle of a step: it begins anew, UNKNOWN, with what is certain."""
        before, self._machine = self._machine, SatelliteMachine(self.rules)
        self._machine.take_over(before, leases=self._granted, metered=len(self._traffic), draining=self._draining)
        self._probe.cancel()
        self._over.set()
        self._over = trio.Event()
        error = WakeFailed(f"{self.key}: {type(failure).__name__}: {failure}", peer_hint=BROKEN_WORDS)
        now = trio.current_time()
        for waiter in list(self._waiters.values()):
            if not waiter.done.is_set():
                waiter.error = error
                self._end_wait(waiter, now)
        with contained(self._owner("step")):
            if before.known.state is not SatelliteState.UNKNOWN:
                self._tell(msg.Moved(before.known.state, SatelliteState.UNKNOWN, "a fault of the daemon's own"), now)
            self._stepped()
        if self._nursery is not None and not self._recovering:
            self._recovering = True
            self._nursery.start_soon(run_owned, self._owner("recovery"), self._recover)

    def _call_broke(self, failure: Exception) -> None:
        self._machine.calls_ended(looks=False)
        self._broke(failure)

    async def _recover(self) -> None:
        """Look at the machine once no call is under way that may change it, until there is a look to go on with."""
        for failures in itertools.count():
            await trio.sleep(backed_off(LOOK_AGAIN_FIRST_S, LOOK_AGAIN_MOST_S, failures))
            if self._machine.known.busy:
                continue
            with contextlib.suppress(ProviderError):
                seen = await first_look(self._provider, self._machine_id, self.rules.traits.look_deadline_s)
                self._recovering = False
                self._feed(msg.Seen(seen))
                return

    def _carry_out(self, action: Action, now: float) -> None:
        match action:
            case msg.Grant(waiter, address):
                self._waiters[waiter].lease = Lease(
                    address, self._released, self._metered, over=self._over, suspect=self.suspect
                )
                self._granted += 1
                self._end_wait(self._waiters[waiter], now)
            case msg.Fail(waiter, error):
                self._waiters[waiter].error = error
                self._end_wait(self._waiters[waiter], now)
            case msg.Start():
                self._memory.start_asked(now)
                self._spawn(self._acting.start)
            case msg.Launch(generation):
                self._spawn(self._acting.launch, generation)
            case msg.Stop(mode, force):
                self._spawn(self._acting.stop, mode, force)
            case msg.EndQuiet(cut):
                ended = self._traffic.end_all(cut=cut)
                self._log("quiet connections ended", {"connections": ended, "cut": cut})
            case msg.Probe(address):
                self._probe = trio.CancelScope()
                self._spawn(self._run_probe, address, self._probe)
            case msg.EndProbe():
                self._probe.cancel()
            case msg.Look():
                self._spawn(self._acting.look_as_asked)
            case msg.Learned(lesson, words):
                self.lessons[lesson] += 1
                self._log("learned of a machine", {"lesson": lesson.value, "words": words}, logging.WARNING)
            case msg.Moved(before):
                # It is told last, see `_feed`; but leases of what was operational are over before others are granted.
                if before is SatelliteState.OPERATIONAL:
                    self._over.set()
                    self._over = trio.Event()
            case _:
                assert_never(action)

    def _end_wait(self, waiter: Waiter, now: float) -> None:
        if waiter.held:
            self._book.waited(now - waiter.since)
        self._leave_line(waiter)
        waiter.done.set()

    def _leave_line(self, waiter: Waiter) -> None:
        if waiter.seat is not None:
            waiter.seat.release()
            waiter.seat = None

    def _let_go(self, waiter_id: WaiterId, error: LimitReached) -> None:
        """A held client gives its place to another principal's."""
        waiter = self._waiters[waiter_id]
        waiter.error = error
        self._feed(msg.Departed(waiter_id))
        self._end_wait(waiter, trio.current_time())

    def _metered(self, lease: Lease) -> None:
        if self._ends_quiet:
            self._traffic.add(lease)
            self._feed(msg.Metered())

    def _released(self, lease: Lease) -> None:
        self._granted -= 1
        self._traffic.remove(lease)
        self._feed(msg.Released(metered=self._ends_quiet and lease.meter is not None))

    def _tell(self, moved: msg.Moved, now: float) -> None:
        facts = self._book.take(moved.before, moved.after, now)
        who = ""
        if moved.after in WAKING:
            self._book.began(now)
            who = next((waiter.who for waiter in self._waiters.values() if not waiter.done.is_set()), "")
        told = Transition(self.key, moved.before, moved.after, self._wall(), moved.cause, who, facts)
        with contained(self._owner("observer")):
            self._observer(told)

    def _log(self, message: str, fields: dict[str, object], level: int = logging.INFO) -> None:
        log.log(level, message, extra={"fields": {"satellite": str(self.key), **fields}})

    # -- what takes time -----------------------------------------------------------------------------------------------

    def _spawn(self, task: Callable[[*Ts], Awaitable[object]], *arguments: *Ts) -> None:
        if self._nursery is None:
            raise AssertionError("not running")
        owner = Owner("satellite call", str(self.key), Decision.GIVE_UP, told=self._call_broke)
        self._nursery.start_soon(run_owned, owner, task, *arguments)

    def _spawn_search(self, search: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is None:
            raise AssertionError("not running")
        owner = Owner("address", str(self.key), Decision.GIVE_UP)
        self._nursery.start_soon(run_owned, owner, search)

    async def _run_probe(self, address: Address, scope: trio.CancelScope) -> None:
        with scope:
            await run_owned(self._owner("probe"), self._probe_once, address, scope)

    async def _probe_once(self, address: Address, scope: trio.CancelScope) -> None:
        listening = functools.partial(wait_listening, address, lambda words: self._feed(msg.ProbeFailed(words)))
        await self._whereabouts.wait_certain(listening, self._spawn_search)
        self._feed(msg.Ready())
        # Those who waited are on their way; what follows is for the books.
        found = await self._memory.examine(address)
        if scope is self._probe and self.state is SatelliteState.OPERATIONAL:
            self._book.resumed(found)
            self.resumes[found] += 1
            self._log("woken", {"memory": found.value})
            self._feed(msg.Witnessed(found))
