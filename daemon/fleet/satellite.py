"""One satellite at work: it carries out the actions of its state machine in a nursery of its own, and gives leases.

The state machine gets its inputs synchronously, on the Trio thread. So nothing happens between a decision and its state.
"""

import collections
import contextlib
import functools
import itertools
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import assert_never

import trio

from bentpipe.config.model import KeepAwakeSection
from bentpipe.config.responder import ResponderSection
from bentpipe.daemon.errors import BentpipeError, ProviderError, SleepRefused, WakeFailed
from bentpipe.daemon.fleet.budget import Holder, Request, place_of
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.coordinated import CoordinatedProvider
from bentpipe.daemon.fleet.crowd import WaitingLine
from bentpipe.daemon.fleet.fact_collector import FactCollector
from bentpipe.daemon.fleet.launches import LaunchTokens
from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.leases import Leases
from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.fleet.machine.machine import SatelliteMachine
from bentpipe.daemon.fleet.machine.messages import Action, Input, SleepProblem
from bentpipe.daemon.fleet.machine.rules import LOOK_AGAIN_FIRST_S, LOOK_AGAIN_MOST_S, Rules, backed_off
from bentpipe.daemon.fleet.machine.states import WAKING
from bentpipe.daemon.fleet.machine_calls import MachineCalls
from bentpipe.daemon.fleet.presence import Presence
from bentpipe.daemon.fleet.reader import Reader, ReadSatellite
from bentpipe.daemon.fleet.readiness import wait_listening, wait_listening_seldom
from bentpipe.daemon.fleet.resume import ResumeDetector
from bentpipe.daemon.fleet.retirement import Retirement
from bentpipe.daemon.fleet.waiters import JUST_WAITING, Waiters, Waiting
from bentpipe.daemon.fleet.watching import Calendar, first_look, run_watch
from bentpipe.daemon.fleet.whereabouts import Means, Whereabouts
from bentpipe.daemon.ids import machine_id_of
from bentpipe.daemon.model import Address, Machine, Resume, SatelliteKey, SatelliteState, Transition
from bentpipe.daemon.providers.base import Provider
from bentpipe.daemon.providers.typed import TypedProvider
from bentpipe.daemon.tasks import Decision, Owner, Ts, contained, note_failure, run_owned, start_owned

log = logging.getLogger("bentpipe.fleet")

DORMANT = frozenset({SatelliteState.SLEEP, SatelliteState.FAILED, SatelliteState.OFFLINE, SatelliteState.UNKNOWN})
BROKEN_WORDS = "the edge host has made a mistake with this satellite and begins anew; try again in a moment"


class Satellite:
    """One satellite; `run` is its owner task. A failure of any part of it stays here: see `_broke`."""

    def __init__(
        self,
        key: SatelliteKey,
        rules: Rules,
        context: FleetContext,
        *,
        keep_awake: Sequence[KeepAwakeSection] = (),
        responder: ResponderSection | None = None,
        on_step: Callable[["Satellite"], None] = lambda satellite: None,
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`on_step` is called after every step of the machine. `confirm`: see CoordinatedProvider."""
        self.key = key
        self.rules = rules
        self.sleep_problems: collections.Counter[SleepProblem] = collections.Counter()
        self.resumes: collections.Counter[Resume] = collections.Counter()
        self._observer = context.observer
        self._wall = context.wall
        self._machine_id = machine_id_of(key)
        self._on_step = on_step
        self._machine = SatelliteMachine(rules)
        self._presence = Presence(key, context.coordination, lambda: self._machine.known, context.gates)
        tokens = LaunchTokens(key, context.registry, context.wall)
        acting = (context.provider, context.coordination, key, self._presence.forbids_stop, tokens)
        self._gates = context.gates
        coordinated = CoordinatedProvider(
            *acting, confirm, context.reserve, context.noting_stop, context.gates.kept_shut
        )
        self.expect_stop = coordinated.expect_stop
        self._provider: Provider = TypedProvider(coordinated, str(key))
        self._calls = MachineCalls(
            *(key, self._provider, self._machine_id, tokens, rules.traits.look_deadline_s),
            feed=self._feed,
            waiting=lambda: self.waiting,
            presence=self._presence,
        )
        self._facts = FactCollector()
        self._waiters = Waiters(WaitingLine(context.crowd, rules.max_waiters), self._facts.waited)
        self._leases = Leases(rules.quiet_window_s, ends_quiet=rules.ends_quiet, feed=self._feed, suspect=self.suspect)
        read = ReadSatellite(self._operational_at, self._leases, self._facts, self._feed)
        self.reader = Reader(key, responder, context.reading, read)
        self._resumes = ResumeDetector(key, self.reader.boot_info if self.reader.reads else context.read_boot_info)
        means = Means(
            machine=self._last_seen,
            vouches=self._provider.vouches_nowait,
            look=self._calls.look,
            recognises=self._resumes.recognises,
            address_age_s=rules.traits.address_age_s,
            unreachable=self.report_unreachable,
            owned=rules.owned,
        )
        self._whereabouts = Whereabouts(key, context.addresses, means)
        self.woken_by = ""
        """The principal whose client had it woken last; "" if none had: its calendar, or another host."""
        self._recovering = False
        self._creating = 0
        self.retirement = Retirement(key, self._refuse, self._report)
        self._nursery: trio.Nursery | None = None
        self._probe = trio.CancelScope()
        calendar = (rules.traits.hibernation_limit_s, context.wall, self._last_seen, self._feed)
        self._calendar = Calendar(keep_awake, *calendar)
        self._deadline_moved = trio.Event()
        self._gate_owner, self._budget_owner = self._owner("gate"), self._owner("budget")  # each client takes two steps

    @property
    def state(self) -> SatelliteState:
        """The state now."""
        return self.rules.as_told(self._machine.known.state)

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
        self,
        who: str = "",
        payer: str | None = None,
        waiting: Waiting = JUST_WAITING,
        *,
        since: float | None = None,
        tell_by: float = math.inf,
    ) -> AsyncIterator[Lease]:
        """Wait until the satellite is operational. Raises WakeFailed, SatelliteUnusable, LimitReached, Draining, ….

        `who` is for the ledger. `payer` is the principal whose client is held, by default the same. `since` is when the
        client began to wait, by default now. Its own grpc-timeout does not bound the wait: that is its first request's,
        and other requests may share the connection. But if every attempt to wake the satellite has failed, the client is
        told why at `tell_by`, while it still listens. Cancelling the wait gives the place back at once; the wake goes on.
        """
        since = trio.current_time() if since is None else since
        payer = who if payer is None else payer
        async with self._presence.entering(self._calls.look, waiting):
            if self.state is SatelliteState.OPERATIONAL and not self._whereabouts.is_certain():
                await waiting.during(functools.partial(self._whereabouts.make_certain, self._spawn_search))
            waiter = self._waiters.add(who)
            refusal = self._waiters.refusal(payer)
            self._feed(msg.Arrived(waiter.id, refusal is not None, since, tell_by, refusal or ""))
        self._waiters.hold(waiter, payer, refusal, lambda gone: self._feed(msg.Departed(gone.id)))
        try:
            await waiting.until(waiter.done)
        except BaseException:
            if waiter.lease is not None:
                waiter.lease.release()
            raise
        finally:
            if self._waiters.remove(waiter):
                self._feed(msg.Departed(waiter.id))
        lease = waiter.outcome()
        try:
            yield lease
        finally:
            if not lease.kept:
                lease.release()

    def lease_nowait(self, who: str = "") -> Lease | None:
        """Lease an operational satellite without a wait; None if there has to be one. Raises as `lease` does.

        The caller releases the lease, or keeps it.
        """
        if self.state is not SatelliteState.OPERATIONAL or not self._presence.is_entered:
            return None
        if not self._whereabouts.is_certain():
            return None
        waiter = self._waiters.add(who)
        self._feed(msg.Arrived(waiter.id))
        self._waiters.remove(waiter)
        return waiter.outcome()

    def adopt(self, address: Address) -> Lease:
        """Lease the satellite, in any state, to a client that was spliced before this daemon started."""
        return self._leases.adopt(address)

    def leave_if_unused(self) -> None:
        """See Presence and Gated: also for an entry that was made for a client that has gone meanwhile."""
        self._presence.leave_if_unused()

    def _last_seen(self) -> Machine | None:
        return self._machine.known.machine

    def _operational_at(self) -> Address | None:
        machine = self._machine.known.machine
        return machine.address if machine is not None and self.state is SatelliteState.OPERATIONAL else None

    def is_at(self, address: Address, since: float = math.inf) -> bool:
        """Whether its machine is known to have `address`, by what was found out at `since` or later; by default, now."""
        machine = self._machine.known.machine
        return machine is not None and machine.address == address and self._whereabouts.is_certain(since)

    @property
    def open_address(self) -> Address | None:
        """See Gated: as long as `lease_nowait` would give leases, if the machine certainly has its address."""
        known = self._machine.known
        refuses = self._presence.is_retired or self.retirement.refusal is not None or known.refusal is not None
        return None if refuses or not self._presence.is_entered else self._operational_at()

    def is_certain(self) -> bool:
        """See Gated."""
        return self._whereabouts.is_certain()

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
        """The operator has acted: forget failures and sleep problems at once."""
        self._feed(msg.Reset())

    def ask_to_sleep(self) -> None:
        """Put it to sleep now, whatever `min_awake` says. Raises SleepRefused if it is used, or must stay awake."""
        self._feed(msg.SleepAsked())
        if self.state is not SatelliteState.STOPPING:
            raise SleepRefused(self._machine.known.why_awake)

    @property
    def last_used(self) -> float | None:
        """When a client used it last, in seconds of time.time(): now, while one does. None if nobody knows."""
        return self._machine.known.last_used(trio.current_time(), self._wall())

    @property
    def trouble(self) -> BentpipeError | None:
        """Why a client that came now would be refused at once; None if it would not."""
        return self.retirement.refusal or self._machine.known.hopeless(trio.current_time())

    def drain(self) -> None:
        """Refuse the waiting clients, and those that come later."""
        self.retirement.drain()

    def _refuse(self, error: BentpipeError | None) -> None:
        self._feed(msg.Drain(error))

    # -- launched and removed at run time ------------------------------------------------------------------------------

    @property
    def shown_state(self) -> SatelliteState:
        """The state as clients see it: the launch and the removal of the satellite itself included."""
        if self.retirement.state is not None:
            return self.retirement.state
        return SatelliteState.CREATING if self._creating else self.state

    @property
    def is_acting(self) -> bool:
        """Whether a call to the provider is under way that may make a machine or change it."""
        return bool(self._creating) or self._machine.known.busy

    async def create(self) -> None:
        """Launch its machine, if there is none. Raises ProviderError."""
        self._creating += 1
        try:
            await self._calls.create(self._machine.known.generation)
        finally:
            self._creating -= 1

    async def check_unused(self) -> None:
        """Raises InUse if a client of any host uses it, or if it is awake for another host; StoreError."""
        await self._presence.check_unused()

    @property
    def retired(self) -> bool:
        """Whether it is being removed or updated."""
        return self.retirement.state is not None

    @property
    def calls(self) -> MachineCalls:
        """The calls for its machine, which change it only in this host's turn."""
        return self._calls

    def retire(self, state: SatelliteState = SatelliteState.DESTROYING) -> None:
        """It is being removed, or updated: refuse its clients, and let other hosts act on its machine."""
        self._presence.is_retired = True
        self.retirement.begin(state, self.shown_state)

    def revive(self) -> None:
        """Its update was given up: take clients again."""
        self._presence.is_retired = False
        self.retirement.end(self.state)

    def removed(self, after: SatelliteState | None = None, cause: str = "") -> None:
        """It is removed, or another one takes its place: say so in the ledger. See Retirement.finish."""
        self._whereabouts.leave()
        self._gates.gone(self.key)
        self.retirement.finish(after, self.shown_state, cause)

    # -- another configuration -----------------------------------------------------------------------------------------

    def follow(self, rules: Rules, keep_awake: Sequence[KeepAwakeSection]) -> None:
        """Other rules and hours hold from now on. What is under way goes on: a wake, a wait, a sleep."""
        self.rules = rules
        self._machine.known.follow(rules)
        self._waiters.resize(rules.max_waiters)
        self._calendar.change(keep_awake)
        self._stepped()

    @property
    def is_dormant(self) -> bool:
        """Whether nobody uses it or waits for it, and its machine neither runs nor is being changed, as far as is known."""
        return self.state in DORMANT and not self._presence.is_used() and not self.is_acting

    def _report(self, after: SatelliteState, before: SatelliteState, cause: str) -> None:
        with contained(self._owner("observer")):
            self._observer(Transition(self.key, before, after, self._wall(), cause))

    # -- the awake budget --------------------------------------------------------------------------------------------

    def place(self) -> Holder | Request | None:
        """Say how the awake budget sees it: it holds a place, asks for one, or neither."""
        return place_of(self.key, self._machine.known, trio.current_time())

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
        """Own the satellite for ever. It has started when the first look at the machine has ended, well or not."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            # Calls that an earlier nursery made have ended with it.
            self._recovering = False
            self._machine.calls_ended(looks=True)
            traits = self.rules.traits
            watch = (self._provider, self._machine_id, traits.look_deadline_s, self._feed, self._calls.looks)
            await nursery.start(start_owned, self._owner("watch"), run_watch, *watch)
            nursery.start_soon(run_owned, self._owner("calendar"), self._calendar.run_calendar)
            if self.rules.ends_quiet:
                nursery.start_soon(run_owned, self._owner("meters"), self._run_meters)
            if self.reader.reads:
                nursery.start_soon(run_owned, self._owner("reader"), self.reader.run_reader)
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
            self._leases.read_meters()
            self._feed(msg.Tick())

    async def _run_meters(self) -> None:
        while True:
            await trio.sleep(self.rules.quiet_window_s)
            self._leases.read_meters()

    # -- the machine's inputs and actions ------------------------------------------------------------------------------

    def _feed(self, event: Input) -> None:
        """Hand an input to the machine and do what it says. Never raises an Exception, since the caller is not to blame."""
        try:
            self._step(event)
        except Exception as exc:
            note_failure(self._owner("step"), exc, "its machine begins anew")
            self._broke(exc)

    def _step(self, event: Input) -> None:
        now = trio.current_time()
        if isinstance(event, msg.Seen):
            self._whereabouts.note(event.machine)
        self._facts.note_input(event, now)
        actions = self._machine.handle(event, now)
        for action in actions:
            self._carry_out(action, now)
        # Told last, so that a wait that ends with a change of state counts for the state that ended.
        for action in actions:
            if isinstance(action, msg.Moved):
                self._tell(action, now)
        self._facts.note_actions(actions, now)
        self._stepped()

    def _stepped(self) -> None:
        self._deadline_moved.set()
        self._deadline_moved = trio.Event()
        with contained(self._gate_owner):
            self._gates.stepped(self)
        self._presence.leave_if_unused()
        with contained(self._budget_owner):
            self._on_step(self)

    def _broke(self, failure: Exception) -> None:
        """The state machine has failed in the middle of a step. A new one begins, UNKNOWN, with what is certain."""
        before, self._machine = self._machine, SatelliteMachine(self.rules)
        self._machine.take_over(
            before, leases=self._leases.granted, metered=self._leases.metered, refusal=self.retirement.refusal
        )
        self._probe.cancel()
        self._leases.lapse()
        self._waiters.fail_all(WakeFailed(f"{self.key}: {type(failure).__name__}: {failure}", peer_hint=BROKEN_WORDS))
        with contained(self._owner("step")):
            if before.known.state is not SatelliteState.UNKNOWN:
                self._tell(
                    msg.Moved(before.known.state, SatelliteState.UNKNOWN, "a fault of the daemon's own"),
                    trio.current_time(),
                )
            self._stepped()
        if self._nursery is not None and not self._recovering:
            self._recovering = True
            self._nursery.start_soon(run_owned, self._owner("recovery"), self._recover)

    def _call_broke(self, failure: Exception) -> None:
        self._machine.calls_ended(looks=False)
        self._broke(failure)

    async def _recover(self) -> None:
        """Look at the machine, once no call is under way that may change it, until a look succeeds."""
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
            case msg.GrantLease(waiter, address):
                self._waiters.grant(waiter, self._leases.grant(address))
            case msg.Fail(waiter, error):
                self._waiters.fail(waiter, error)
            case msg.Start():
                self._resumes.start_asked(now)
                self._spawn(self._calls.start)
            case msg.Launch(generation):
                self._spawn(self._calls.launch, generation)
            case msg.Stop():
                self._spawn(self._calls.stop, action)
            case msg.EndQuiet(cut):
                ended = self._leases.end_quiet(cut=cut)
                self._log("quiet connections ended", {"connections": ended, "cut": cut})
            case msg.Probe(address):
                self._probe = trio.CancelScope()
                self._spawn(self._run_probe, address, self._probe)
            case msg.EndProbe():
                self._probe.cancel()
            case msg.Describe():
                self._spawn(self._calls.look_as_asked)
            case msg.CountBuilds():
                self.reader.count_builds()
            case msg.ProblemFound(problem, words):
                self.sleep_problems[problem] += 1
                self._log("problem with sleep", {"problem": problem.value, "words": words}, logging.WARNING)
            case msg.Moved(before):
                # `_step` tells it last. But the old leases are over before new ones are granted.
                if before is SatelliteState.OPERATIONAL:
                    self._leases.lapse()
                    self.reader.ended()
                elif action.after is SatelliteState.OPERATIONAL:
                    self.reader.began()
            case _:
                assert_never(action)

    def _tell(self, moved: msg.Moved, now: float) -> None:
        facts = self._facts.take(moved.before, moved.after, now)
        who = ""
        if moved.after in WAKING:
            self._facts.began(now)
            who = self.woken_by = self._waiters.first_who()
        if self.retired:
            return
        before, after = self.rules.as_told(moved.before), self.rules.as_told(moved.after)
        told = Transition(self.key, before, after, self._wall(), moved.cause, who, facts)
        with contained(self._owner("observer")):
            self._observer(told)

    def _log(self, message: str, fields: dict[str, object], level: int = logging.INFO) -> None:
        log.log(level, message, extra={"fields": {"satellite": str(self.key), **fields}})

    # -- what takes time -----------------------------------------------------------------------------------------------

    def _spawn(self, task: Callable[[*Ts], Awaitable[object]], *arguments: *Ts) -> None:
        if self._nursery is None:
            return  # a client came before `run`, which begins with no call under way and with a look at the machine
        owner = Owner("satellite call", str(self.key), Decision.GIVE_UP, told=self._call_broke)
        self._nursery.start_soon(run_owned, owner, task, *arguments)

    def _spawn_search(self, search: Callable[[], Awaitable[None]]) -> None:
        self._running().start_soon(run_owned, Owner("address", str(self.key), Decision.GIVE_UP), search)

    def _running(self) -> trio.Nursery:
        if self._nursery is None:
            raise AssertionError("not running")
        return self._nursery

    async def _run_probe(self, address: Address, scope: trio.CancelScope) -> None:
        with scope:
            await run_owned(self._owner("probe"), self._probe_once, address, scope)

    async def _probe_once(self, address: Address, scope: trio.CancelScope) -> None:
        wait = wait_listening if self.rules.owned else wait_listening_seldom
        listening = functools.partial(wait, address, lambda words, silent: self._feed(msg.ProbeFailed(words, silent)))
        await self._whereabouts.wait_certain(listening, self._spawn_search)
        self._feed(msg.Ready())
        # The waiting clients have their leases; what follows is for the ledger and the sleep mode.
        found = await self._resumes.detect(address)
        if scope is self._probe and self.state is SatelliteState.OPERATIONAL:
            self._facts.resumed(found)
            self.resumes[found] += 1
            self._log("woken", {"memory": found.value})
            self._feed(msg.ResumeDetected(found))
