"""All that is known of one satellite, and the questions that can be answered from it. Pure: no answer changes anything.

Only `SatelliteMachine` changes what is kept here.
"""

import math

from bentpipe.daemon.errors import BentpipeError, SatelliteUnusable, WakeFailed
from bentpipe.daemon.fleet.machine.builds import Builds
from bentpipe.daemon.fleet.machine.descent import Descent, DescentStep
from bentpipe.daemon.fleet.machine.failures import Consequence, Failures
from bentpipe.daemon.fleet.machine.looking import Looks
from bentpipe.daemon.fleet.machine.messages import SleepReason
from bentpipe.daemon.fleet.machine.rules import RESTART_AT, SILENT_LEAST_S, UNREADY_ROUNDS, Rules
from bentpipe.daemon.fleet.machine.sleeping import SleepPolicy
from bentpipe.daemon.fleet.machine.states import UP, WAKING
from bentpipe.daemon.fleet.machine.troubles import Troubles
from bentpipe.daemon.fleet.machine.waiting import WaitQueue
from bentpipe.daemon.fleet.machine.wake import Failed, Wake, WakeCall
from bentpipe.daemon.fleet.machine.words import NOT_OURS, UNSEEN, about, not_ready, not_ready_since
from bentpipe.daemon.model import Fault, Machine, MachineState, SatelliteState, SleepMode

S = SatelliteState
M = MachineState


class Known:
    """Times are seconds of one monotonic clock."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.state = S.UNKNOWN
        self.machine: Machine | None = None
        """The newest look at it."""
        self.busy = False
        """A provider call is under way."""
        self.leases = 0
        self.metered = 0
        """Leases whose traffic can be read."""
        self.wakes = 0
        """Wakes begun for a client, or for upkeep."""
        self.queue = WaitQueue(rules.hold_limit_s)
        self.failures = Failures(rules.retry_after_s, rules.capacity_retry_s)
        self.troubles = Troubles()
        self.sleep = SleepPolicy(rules)
        self.builds = Builds(rules)
        self.looks = Looks()
        self.wake = Wake.begin(None, 0.0, rules.wake_deadline_s)
        """The last one; it is under way if the state is one of WAKING."""
        self.descent = Descent(None)
        """The last one; it is under way in STOPPING."""
        self.stops = 0
        """Since it was last ready: how often others have stopped it after a start of ours."""
        self.generation = 0
        """Machines that were lost."""
        self.probing = False
        self.probe_words = ""
        """Why its port does not answer; empty if nothing was said of that."""
        self.silent_since: float | None = None
        """Since when nothing at all has answered the probe under way; None if something has, or nothing was said of it."""
        self.restarted = False
        """Since it was last ready, it was stopped and started because it could not be reached."""
        self.keep_awake = False
        """These are hours in which it is to be awake."""
        self.renewing = False
        """It is woken only to be stopped plainly."""
        self.relaunching = False
        """Its machine came to nothing for lack of capacity, and an alternative is left: it is launched again at once."""
        self.refusal: BentpipeError | None = None
        """What clients get if it accepts no more of them."""

    def take_over(self, broken: "Known", *, leases: int, metered: int, refusal: BentpipeError | None) -> None:
        """Start from what the broken machine of the same satellite knew for certain, and from the leases that live."""
        self.leases, self.metered = leases, metered
        self.busy, self.wakes = broken.busy, broken.wakes
        self.generation = broken.generation
        self.refusal, self.keep_awake = refusal, broken.keep_awake

    def follow(self, rules: Rules) -> None:
        """Other rules hold from now on. A wake that is under way keeps its deadline, and a waiting client its own."""
        self.rules = rules
        self.queue.follow(rules.hold_limit_s)
        self.failures.follow(rules.retry_after_s, rules.capacity_retry_s)
        self.sleep.follow(rules)
        self.builds.rules = rules

    # -- clients -------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self.queue)

    def hopeless(self, now: float) -> BentpipeError | None:
        """Return why a new client should not wait; None if it should. If a look is near, it waits for that look."""
        if (self.state is S.UNKNOWN or self.is_gone) and self.looks.is_soon(now):
            return None
        if self.is_gone:
            return self.gone()
        if self.state is S.UNKNOWN and self.troubles.current.error is not None and self.troubles.lasts(now):
            return self.troubles.last_reason(UNSEEN)
        return None if self.is_up else self.failures.replay(now)

    @property
    def reason_is_known(self) -> bool:
        """Whether calls have failed since this wake began (or since nothing is known), and none has worked."""
        if self.state is S.UNKNOWN:
            return self.troubles.has_failed_since(-math.inf)
        return self.state in WAKING and self.troubles.has_failed_since(self.wake.began)

    def not_ready(self, after_s: float) -> WakeFailed:
        """Make the error that says that it was not ready in time, and what is known of why."""
        if self.reason_is_known or self.machine is None:
            return self.troubles.last_reason(not_ready(after_s))
        return not_ready_since(after_s, self.machine, called=self.has_called, probe_words=self.probe_words)

    def gone(self) -> BentpipeError:
        """Make the error that says that there is no machine, or that a machine of others sends no heartbeats."""
        words = "the satellite's machine is gone" if self.rules.owned else "the satellite is offline"
        return about(SatelliteUnusable, words, self.machine)

    # -- the provider's machine ----------------------------------------------------------------------------------------

    def machine_is(self, *states: MachineState) -> bool:
        """Whether the machine was last seen in one of `states`."""
        return self.machine is not None and self.machine.state in states

    @property
    def is_up(self) -> bool:
        """Whether the machine runs, or begins to."""
        return self.machine_is(*UP)

    @property
    def is_gone(self) -> bool:
        """It is FAILED because there is no machine and none may be launched. The next client leads to a new look."""
        return self.state is S.FAILED and self.machine_is(M.TERMINATED) and not self.may_launch

    @property
    def may_launch(self) -> bool:
        """Whether a machine may be launched. If one is marked as another satellite's, an operator must act first."""
        return self.rules.launch and (self.machine is None or self.machine.fault is not Fault.FOREIGN)

    @property
    def is_blocked(self) -> bool:
        """It is FAILED because of something that people must mend. After a time it may be tried again."""
        return self.state is S.FAILED and not self.is_gone

    @property
    def look_at(self) -> float:
        """When to ask for a look of our own; infinity if there is no reason to."""
        wanted = self.waiting > 0 and (self.state is S.UNKNOWN or self.is_gone)
        unsettled = self.state in WAKING and not self.busy and (self.probing or self.wake.is_unseen)
        return self.looks.due_at(wanted=wanted, unsettled=unsettled)

    @property
    def seen_machine(self) -> Machine:
        """The newest look at the machine. Raises AssertionError if there was none, in a state that follows a look."""
        if self.machine is None:
            raise AssertionError(f"{self.state.name} with a machine that was never seen")
        return self.machine

    @property
    def is_unready(self) -> bool:
        """Whether the machine has run for so long without becoming ready that it is stopped, and nothing forbids that."""
        may_stop = self.rules.owned and not self.busy and not self.leases
        return may_stop and self.wake.rounds >= UNREADY_ROUNDS and self.machine_is(M.RUNNING)

    # -- wake and sleep ------------------------------------------------------------------------------------------------

    def is_wanted(self, now: float) -> bool:
        """Whether it should be awake: for a client, or for upkeep that has not just failed."""
        if self.waiting:
            return True
        upkeep = self.keep_awake or self.renewing or self.relaunching
        return upkeep and self.refusal is None and self.failures.replay(now) is None

    @property
    def wake_cause(self) -> str:
        """Why it wakes, if it is wanted."""
        if self.waiting:
            return "a client came"
        if self.relaunching:
            return "its machine came to nothing, and another is launched"
        return "these are hours to be awake" if self.keep_awake else "hibernated for too long"

    @property
    def has_called(self) -> bool:
        """Whether this wake has called for the machine to start, so that its going down may be the start's failure."""
        return self.state in WAKING and (self.busy or self.wake.settle_by > 0)

    @property
    def patience_ends_at(self) -> float:
        """When the waiting clients are told that every attempt fails."""
        no_success = self.state in WAKING and not self.wake.came_up and self.reason_is_known
        return self.troubles.patience_ends_at if no_success else math.inf

    @property
    def unseen_told_at(self) -> float:
        """When clients that wait for the first look at the machine are told that all looks fail.

        Those that come later wait for the look that is near.
        """
        if self.state is not S.UNKNOWN or self.troubles.current.error is None:
            return math.inf
        ends_at = self.troubles.patience_ends_at
        return ends_at if self.queue.first_arrived < ends_at else math.inf

    def wake_step(self, now: float) -> WakeCall | Failed | None:
        """What the wake under way needs now; None: nothing, or not yet."""
        if now >= self.patience_ends_at:
            words = f"for {now - self.troubles.current.since:.0f} s every attempt has failed"
            return Failed(Consequence.FAILED, self.troubles.last_reason(words))
        if self.busy:
            return None
        return self.wake.next_call(self.seen_machine, now, creating=self.state is S.CREATING)

    def wake_overdue(self, error: WakeFailed, now: float) -> Failed | Wake:
        """What becomes of the wake whose deadline has passed; `error` says so."""
        deadline_s = self.rules.wake_deadline_s
        return self.wake.overdue(self.seen_machine, error, now, busy=self.busy, deadline_s=deadline_s)

    def descent_step(self, now: float) -> DescentStep | None:
        """What the sleep under way needs now; None: nothing, or not yet."""
        if self.descent.pending:
            return self.descent.before_call(now, waiting=self.waiting > 0, leases=self.leases)
        if self.busy:
            return None
        return self.descent.after_call(self.seen_machine, now, waiting=self.waiting > 0)

    @property
    def idle_sleep(self) -> tuple[SleepReason, SleepMode | None]:
        """Why it sleeps when nobody uses it, and in which mode; None: as it has proved best."""
        if self.renewing and not self.leases:
            return SleepReason.RENEWED, SleepMode.STOP
        return SleepReason.IDLE, None

    @property
    def is_unused(self) -> bool:
        """It is OPERATIONAL, ours, and no client and no build uses it.

        The rules say whether quiet connections count as use.
        """
        quiet = self.metered if self.rules.ends_quiet else 0
        return (
            self.rules.owned
            and self.state is S.OPERATIONAL
            and self.leases == quiet
            and not self.busy
            and not self.builds.hold(leases=self.leases)
        )

    @property
    def may_sleep(self) -> bool:
        """Whether it sleeps at `sleep_at` if nothing happens before."""
        return self.is_unused and not self.keep_awake

    @property
    def sleep_at(self) -> float:
        """When it sleeps, if it may."""
        if self.leases:
            return max(self.sleep.sleep_at, self.sleep.idle_since + self.rules.quiet_window_s)
        return self.sleep.evictable_at if self.renewing else self.sleep.sleep_at

    @property
    def is_hibernated(self) -> bool:
        """Whether a wake that begins now is a resume. Others may have begun it, so that the machine is seen up already."""
        slept_in = self.sleep.slept_in
        return self.state is S.SLEEP and slept_in is M.HIBERNATED and not self.machine_is(M.TERMINATED, M.STOPPED)

    @property
    def restart_at(self) -> float:
        """When a machine that has resumed and is silent is stopped and started for the clients that wait, else infinity."""
        is_wanted = self.state in WAKING and self.wake.from_memory and self.waiting
        if not is_wanted or self.restarted or self.busy or self.leases:
            return math.inf
        if self.silent_since is None or not self.machine_is(M.RUNNING):
            return math.inf
        until_s = RESTART_AT * min(self.rules.wake_deadline_s, self.queue.hold_s)
        return max(self.silent_since + SILENT_LEAST_S, self.wake.began + until_s)

    @property
    def is_restarting(self) -> bool:
        """Whether it is being stopped so that it is started for the clients that wait."""
        return self.state is S.STOPPING and self.descent.restarts

    def next_deadline(self) -> float | None:
        """When the next Tick must come at the latest, if no other input comes before."""
        times = [self.queue.first_until, self.look_at, self.unseen_told_at]
        if self.reason_is_known:
            times.append(self.queue.first_tell)
        if self.state in WAKING:
            times.append(self.wake.next_deadline(busy=self.busy, creating=self.state is S.CREATING))
            times += [self.patience_ends_at, self.restart_at]
        elif self.state is S.STOPPING:
            times.append(self.descent.next_deadline(busy=self.busy, up=self.is_up, waiting=self.waiting > 0))
        elif (self.state is S.SLEEP and self.keep_awake and self.refusal is None) or self.is_blocked:
            times.append(self.failures.retry_at or math.inf)
        elif self.may_sleep and not self.builds.asking:
            times.append(self.sleep_at)
        elif self.state is S.OPERATIONAL:
            times.append(self.builds.next_lapse(self.sleep.client_at))
        first = min(times)
        return None if first == math.inf else first

    # -- what the awake budget asks ------------------------------------------------------------------------------------

    @property
    def holds_place(self) -> bool:
        """Whether it counts as awake: it is, or may be, or a call that may wake it is under way."""
        return self.state not in (S.SLEEP, S.FAILED) or self.busy

    def wants_place(self, now: float) -> bool:
        """Whether it would begin to wake if the awake budget had a place for it."""
        return self.rules.budgeted and self.state is S.SLEEP and not self.busy and self.is_wanted(now)

    @property
    def idle_since(self) -> float | None:
        """Since when nobody has used it; None if somebody does, or it is not up."""
        return self.sleep.idle_since if self.is_unused and not self.leases else None

    @property
    def evictable_at(self) -> float:
        """From when on it may be evicted, if `idle_since` is not None."""
        return self.sleep.evictable_at

    @property
    def why_awake(self) -> str:
        """Return why it was not put to sleep, for the caller that asked for it."""
        if not self.rules.owned:
            return NOT_OURS
        if self.leases or self.waiting:
            return f"the satellite is used: {self.leases} connections or reservations, {self.waiting} clients waiting"
        if self.builds.hold(leases=0):
            return f"the satellite says that builds run on it: {self.builds.running}"
        return "these are hours in which it is kept awake" if self.keep_awake else "the satellite is busy; try again"

    def last_used(self, now: float, wall: float) -> float | None:
        """When a client used it last, as time.time() has it; `wall` is that clock's `now`. None if nobody knows."""
        if self.leases or self.waiting:
            return wall
        if self.sleep.idle_since:
            return wall - (now - self.sleep.idle_since)
        return self.machine.asleep_since if self.machine is not None else None
