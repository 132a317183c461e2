"""The life of one satellite as a pure state machine: inputs and the time go in, actions come out.

This class owns every move: no other module changes the state, answers a waiter or asks for a call. `facts` has all that is
known, and answers questions about it; `wake` and `descent` are the ways up and down as values, which decide; `states` has
the tables, `messages` what goes in and out. Rules:

- At most one provider call is under way (`busy`). A lease is granted in OPERATIONAL only.
- Sleep is decided in the same step that moves to STOPPING, with no waiter and no lease but quiet ones, which are then
  ended; the stop call is made when the last of them is gone, and called off if somebody comes before.
- A wake outlives its clients. A failed one is told to all waiters at once and remembered.
- The provider is the truth about the machine: what others do to it arrives as `Seen` like everything else.
"""

from typing import assert_never

from bentpipe.daemon.errors import (
    BentpipeError,
    Draining,
    LimitReached,
    MachineNotFound,
    ProviderError,
    SleepModeRefused,
    SleepVetoed,
)
from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.fleet.machine.descent import Descent, DescentStep
from bentpipe.daemon.fleet.machine.facts import Facts
from bentpipe.daemon.fleet.machine.messages import Action, Input, Lesson, SleepReason, WaiterId
from bentpipe.daemon.fleet.machine.rules import (
    APPEAR_GRACE_S,
    START_GRACE_S,
    STUCK_STOPPING_S,
    UNHEEDED_STOP_S,
    UNREADY_ROUNDS,
    Rules,
)
from bentpipe.daemon.fleet.machine.setbacks import REPEATED, Verdict, verdict_on
from bentpipe.daemon.fleet.machine.states import SIGHTS, TRANSITIONS, WAKING, Sight
from bentpipe.daemon.fleet.machine.wake import Failed, Wake, WakeCall, came_down, lost, stopped_too_often
from bentpipe.daemon.fleet.machine.words import DRAINING, UNSEEN
from bentpipe.daemon.model import Machine, MachineState, SatelliteState, SleepMode

S = SatelliteState
M = MachineState


class SatelliteMachine:
    """One satellite. `handle` is the only way to change it; times are seconds of one monotonic clock."""

    def __init__(self, rules: Rules) -> None:
        self.facts = Facts(rules)
        """For others to read. Nobody but this class changes them."""
        self._actions: list[Action] = []

    def take_over(self, broken: "SatelliteMachine", *, leases: int, metered: int, draining: bool) -> None:
        """Begin where another machine of the same satellite has broken, with what is certain beside the leases."""
        self.facts.take_over(broken.facts, leases=leases, metered=metered, draining=draining)

    def calls_ended(self, *, looks: bool) -> None:
        """The call under way, and with `looks` the look too, has ended with its task: no input will tell its end."""
        self.facts.busy = False
        if looks:
            self.facts.looks.under_way = False

    # -- inputs --------------------------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> list[Action]:
        """Take one input. Returns what to do, in order."""
        self._actions = []
        self.facts.setbacks.lapse(now)
        match event:
            case msg.Arrived() | msg.Departed() | msg.Metered() | msg.Released() | msg.Traffic() | msg.Drain():
                self._take_clients(event, now)
            case msg.KeepAwake() | msg.Renew() | msg.PlaceGranted() | msg.Evict() | msg.Reset():
                self._take_order(event, now)
            case msg.Tick():
                pass
            case _:
                self._take_machine(event, now)
        self._expire(now)
        self._progress(now)
        if now >= self.facts.look_at:
            self.facts.looks.begin()
            self._actions.append(msg.Look())
        return self._actions

    def _take_clients(self, event: msg.ClientsInput, now: float) -> None:
        facts = self.facts
        match event:
            case msg.Arrived():
                self._arrived(event, now)
            case msg.Departed(waiter):
                facts.room.leave(waiter)
            case msg.Metered():
                facts.metered += 1
            case msg.Released(metered):
                facts.leases -= 1
                facts.metered -= metered
                if facts.state is not S.STOPPING:
                    facts.sleep.used(now)
            case msg.Traffic():
                facts.sleep.used(now)
            case msg.Drain():
                facts.draining = True
                self._fail_all(Draining(DRAINING))
            case _:
                assert_never(event)

    def _take_machine(self, event: msg.MachineInput, now: float) -> None:
        facts = self.facts
        match event:
            case msg.StartDone(error):
                facts.busy = False
                self._start_done(error, now)
            case msg.StopDone(error):
                facts.busy = False
                if facts.state is S.STOPPING:
                    self._stop_done(error, now)
            case msg.StopWithdrawn():
                facts.busy = False
                facts.sleep.used(now)
                if facts.state is S.STOPPING:
                    self._call_off("somebody came", now)
            case msg.Ready():
                if facts.state in WAKING and facts.probing:
                    self._ready(now)
            case msg.ProbeFailed(words):
                facts.probe_words = words
            case msg.Witnessed(resume):
                self._actions += facts.sleep.witnessed(resume, now)
            case msg.Unreachable() | msg.Suspected():
                if facts.state is S.OPERATIONAL:
                    facts.looks.suspect()
                    if isinstance(event, msg.Unreachable):
                        self._begin_wake("could not be reached", now)
            case msg.Seen(machine):
                self._seen(machine, now)
            case msg.Unseen(error):
                self._unseen(error, now)
            case msg.Looked(error):
                facts.looks.end(now)
                if error is None:
                    facts.troubles.look.worked()
                else:
                    self._unseen(error, now)
                if facts.is_gone:
                    self._fail_all(facts.gone())
            case _:
                assert_never(event)

    def _take_order(self, event: msg.OrderInput, now: float) -> None:
        facts = self.facts
        match event:
            case msg.KeepAwake(wanted):
                facts.keep_awake = wanted
            case msg.Renew():
                facts.renewing = facts.state is S.SLEEP and facts.machine_is(M.HIBERNATED)
            case msg.PlaceGranted():
                if facts.wants_place(now):
                    self._begin_wanted_wake(now)
            case msg.Evict():
                if facts.idle_since is not None and now >= facts.evictable_at:
                    self._begin_sleep(SleepReason.EVICTED, now)
            case msg.Reset():
                facts.setbacks.clear()
                facts.sleep.reset()
                facts.troubles.clear()
                if facts.is_gone and facts.rules.launch:
                    self._move(S.SLEEP, "to be tried again")  # people have said that another may be launched
            case _:
                assert_never(event)

    def _progress(self, now: float) -> None:
        """Do what follows from the state and the time."""
        facts = self.facts
        if facts.is_blocked and facts.setbacks.replay(now) is None:
            self._move(S.SLEEP, "it may be tried again")
        if facts.state is S.SLEEP and facts.is_wanted(now) and not facts.rules.budgeted:
            self._begin_wanted_wake(now)
        if facts.state in WAKING and now >= facts.wake.by:
            self._overdue(now)
            if (
                facts.wake.rounds >= UNREADY_ROUNDS
                and facts.machine_is(M.RUNNING)
                and not facts.busy
                and not facts.leases
            ):
                self._begin_sleep(SleepReason.UNREADY, now, SleepMode.STOP)
        if facts.state in WAKING:
            self._progress_wake(now)
        if facts.may_sleep and now >= facts.sleep_at:
            reason, mode = facts.idle_sleep
            self._begin_sleep(reason, now, mode)
        if facts.state is S.STOPPING:
            self._progress_descent(now)

    # -- clients -------------------------------------------------------------------------------------------------------

    def _arrived(self, event: msg.Arrived, now: float) -> None:
        if self.facts.draining:
            self._fail(event.waiter, Draining(DRAINING))
        elif self.facts.state is S.OPERATIONAL:
            self._grant(event.waiter, now)
        elif (error := self.facts.hopeless(now)) is not None:
            self._fail(event.waiter, error)
        elif event.crowded:
            self._fail(event.waiter, LimitReached(event.words))
        else:
            self.facts.room.enter(event.waiter, now if event.since is None else event.since, event.tell_by)

    def _expire(self, now: float) -> None:
        facts = self.facts
        if facts.reason_is_known:
            for waiter in facts.room.untold(now):
                self._fail(waiter, facts.troubles.last_reason("the satellite is not ready"))
        queued = facts.wants_place(now)
        for waiter, waited_s in facts.room.expired(now):
            if queued:
                words = f"in {waited_s:.0f} s no place became free among the satellites that may be awake at once"
                self._fail(waiter, LimitReached(words))
            else:
                self._fail(waiter, facts.not_ready(waited_s))

    def _grant(self, waiter: WaiterId, now: float) -> None:
        facts = self.facts
        if facts.machine is None or facts.machine.address is None:
            raise AssertionError("operational without an address")
        facts.leases += 1
        facts.renewing = False
        facts.sleep.used(now)
        self._actions.append(msg.Grant(waiter, facts.machine.address))

    def _fail(self, waiter: WaiterId, error: BentpipeError) -> None:
        self._actions.append(msg.Fail(waiter, error))

    def _fail_all(self, error: BentpipeError) -> None:
        for waiter in self.facts.room.empty():
            self._fail(waiter, error)

    # -- what is seen of the machine -----------------------------------------------------------------------------------

    def _unseen(self, error: ProviderError, now: float) -> None:
        self.facts.troubles.look.failed(error, now)
        if self.facts.state is S.UNKNOWN and self.facts.troubles.lasts(now):
            self._fail_all(self.facts.troubles.last_reason(UNSEEN))

    def _seen(self, machine: Machine, now: float) -> None:
        facts = self.facts
        before, facts.machine = facts.machine, machine
        facts.troubles.look.worked()
        if before != machine:
            facts.looks.news(now)
        moved_away = before is not None and before.address != machine.address
        if facts.probing and (machine.state is not M.RUNNING or moved_away):
            self._end_probe()
        existed = before is not None and before.state is not M.TERMINATED
        sight = SIGHTS[facts.state][machine.state]
        match sight:
            case Sight.NOTHING:
                if facts.state is S.FAILED and existed:
                    facts.setbacks.forgive()  # it was about that machine
            case Sight.RISEN:
                pass  # what it means depends on our call: `_progress_descent`
            case Sight.ROSE:
                facts.setbacks.forgive()
                others = "found up" if facts.state is S.UNKNOWN else "started by others"
                self._begin_wake("an earlier start took effect" if facts.busy else others, now)
            case Sight.COMING:
                facts.wake = facts.wake.seen(up=True)
            case Sight.LOOKS_UP | Sight.RESTARTED:
                if moved_away or sight is Sight.RESTARTED:
                    self._begin_wake("restarted by others", now)
            case Sight.FALLING:
                self._fall(machine, now)
            case Sight.DROPPED:
                facts.descent = facts.descent.going_down(now + STUCK_STOPPING_S)
            case Sight.DOWN:
                if facts.wake.came_up:
                    self._came_down(machine, now)
            case Sight.ASLEEP | Sight.STILL_ASLEEP:
                if sight is Sight.ASLEEP or facts.setbacks.replay(now) is None:
                    self._fell_asleep(machine, now)
            case Sight.VANISHED:
                facts.wake = facts.wake.seen(up=False)
                if machine.fault is not None:
                    self._wake_failed(lost(machine), now)
            case Sight.GONE:
                self._machine_gone(machine, existed=existed)
            case _:
                assert_never(sight)

    def _machine_gone(self, machine: Machine, *, existed: bool) -> None:
        if existed:
            self.facts.generation += 1
            self.facts.sleep.reset()  # what was learned was about that machine
        if not self.facts.may_launch:
            self._fail_all(self.facts.gone())
            self._move(S.FAILED, machine.reason or "terminated")
        elif self.facts.state is not S.SLEEP:
            self._move(S.SLEEP, machine.reason or "there is no machine yet")

    # -- the wake ------------------------------------------------------------------------------------------------------

    def _begin_wanted_wake(self, now: float) -> None:
        self.facts.wakes += 1
        if self.facts.waiting:
            self._begin_wake("a client came", now)
        else:
            self._begin_wake("these are hours to be awake" if self.facts.keep_awake else "hibernated for too long", now)

    def _begin_wake(self, cause: str, now: float) -> None:
        self.facts.wake = Wake.begin(self.facts.machine, now, self.facts.rules.wake_deadline_s)
        self.facts.room.wake_begins(now)
        self._move(S.CREATING if self.facts.machine_is(M.TERMINATED) else S.STARTING, cause)

    def _progress_wake(self, now: float) -> None:
        facts, machine = self.facts, self.facts.seen_machine
        if machine.state is M.RUNNING and machine.address is not None and not facts.probing:
            facts.probing = True
            self._actions.append(msg.Probe(machine.address))
            facts.looks.came_up(now)
        step = facts.wake_step(now)
        if isinstance(step, Failed):
            self._wake_failed(step, now)
        elif step is not None:
            self._call(step)

    def _call(self, call: WakeCall) -> None:
        if call is WakeCall.START and self.facts.state is S.CREATING:
            self._move(S.STARTING, "it exists already")
        self.facts.busy = True
        self.facts.wake = self.facts.wake.called()
        self._actions.append(msg.Start() if call is WakeCall.START else msg.Launch(self.facts.generation))

    def _start_done(self, error: ProviderError | None, now: float) -> None:
        facts = self.facts
        if error is None:
            facts.troubles.start.worked()
        if facts.state not in WAKING:
            return
        if error is None:
            grace_s = APPEAR_GRACE_S if facts.state is S.CREATING else START_GRACE_S
            facts.wake = facts.wake.call_accepted(now + grace_s)
            facts.looks.start_accepted(now)
        elif not facts.wake.came_up:
            facts.troubles.start.failed(error, now)
            if isinstance(error, MachineNotFound):
                facts.looks.suspect()
            verdict = verdict_on(error)
            if verdict in REPEATED:
                facts.generation += verdict is Verdict.SPENT
                facts.wake = facts.wake.call_again(facts.setbacks.next_call_at(verdict, now))
            else:
                self._wake_failed(Failed(verdict, error), now)

    def _came_down(self, machine: Machine, now: float) -> None:
        """It was up, and is down before it was ready."""
        self.facts.stops += self.facts.has_called
        failed = came_down(machine, self.facts.stops)
        if failed is not None:
            self._wake_failed(failed, now)
        else:
            self._fell_asleep(machine, now)

    def _overdue(self, now: float) -> None:
        error = self.facts.not_ready(self.facts.rules.wake_deadline_s)
        after = self.facts.wake_overdue(error, now)
        if isinstance(after, Failed):
            self._wake_failed(after, now)
        else:
            self._give_up(Failed(Verdict.FAILED, error), now)
            self.facts.wake = after

    def _wake_failed(self, failed: Failed, now: float) -> None:
        self.facts.generation += failed.lost
        self._give_up(failed, now)
        self.facts.renewing = False
        self._move(S.FAILED if failed.verdict is Verdict.BLOCKED else S.SLEEP, f"wake failed: {failed.error}")

    def _give_up(self, failed: Failed, now: float) -> None:
        """Remember the failure, and tell it to all who wait."""
        self.facts.setbacks.remember(failed.verdict, failed.error, now)
        self._fail_all(self.facts.setbacks.replay(now) or failed.error)

    def _ready(self, now: float) -> None:
        facts = self.facts
        facts.probing = False
        facts.probe_words = ""
        facts.stops = 0
        facts.setbacks.clear()
        facts.troubles.start.worked()
        facts.sleep.woke(now)
        if facts.wake.measured:
            facts.room.wake_took(now - facts.wake.began)
        self._enter_operational("ready", now)

    # -- the descent ---------------------------------------------------------------------------------------------------

    def _begin_sleep(self, reason: SleepReason, now: float, mode: SleepMode | None = None) -> None:
        if mode is None:
            mode, learned = self.facts.sleep.choose_mode(self.facts.seen_machine, now)
            self._actions += learned
        self.facts.descent = Descent.decided(mode, now)
        self._move(S.STOPPING, reason.value)
        if self.facts.leases:
            self._actions.append(msg.EndQuiet())

    def _fall(self, machine: Machine, now: float) -> None:
        """Others stop it."""
        self.facts.stops += self.facts.has_called
        self.facts.descent = Descent.by_others(now + STUCK_STOPPING_S)
        self._move(S.STOPPING, machine.reason or "stopped by others")

    def _progress_descent(self, now: float) -> None:
        if self.facts.descent.pending:
            self._take_step(self.facts.descent_step(now), now)
        if self.facts.state is S.STOPPING and not self.facts.descent.pending:
            self._take_step(self.facts.descent_step(now), now)

    def _take_step(self, step: DescentStep | None, now: float) -> None:
        facts = self.facts
        match step:
            case DescentStep.CALL_OFF:
                facts.sleep.used(now)
                self._call_off("somebody came", now)
            case DescentStep.STOP:
                facts.descent = facts.descent.called()
                self._stop(facts.descent.mode or SleepMode.STOP)
            case DescentStep.CUT:
                facts.descent = facts.descent.cut(now)
                self._actions.append(msg.EndQuiet(cut=True))
            case DescentStep.WAKE:
                self._begin_wake("it is up again", now)
                self._progress_wake(now)
            case DescentStep.FORCE:
                facts.descent = Descent.forced(now + STUCK_STOPPING_S)
                self._actions.append(msg.Learned(Lesson.FORCED, f"after {STUCK_STOPPING_S:g} s"))
                self._stop(SleepMode.STOP, force=True)
            case None:
                pass
            case _:
                assert_never(step)

    def _stop(self, mode: SleepMode, *, force: bool = False) -> None:
        self.facts.busy = True
        self._actions.append(msg.Stop(mode, force))

    def _stop_done(self, error: ProviderError | None, now: float) -> None:
        facts = self.facts
        if error is None:
            facts.descent = facts.descent.accepted(now + UNHEEDED_STOP_S, now + STUCK_STOPPING_S)
        elif isinstance(error, SleepModeRefused) and facts.descent.mode is SleepMode.HIBERNATE:
            self._actions.append(facts.sleep.refused(error, now))
            facts.descent = Descent.decided(SleepMode.STOP, now)
        else:
            if isinstance(error, SleepVetoed):
                facts.sleep.used(now)
            else:
                facts.sleep.failed(error, now)
            self._call_off(f"sleep refused: {error}", now)

    def _call_off(self, cause: str, now: float) -> None:
        """Nothing was stopped by us: serve again, unless the machine goes down all the same."""
        if self.facts.machine_is(M.RUNNING) and not self.facts.descent.dropped:
            self._enter_operational(cause, now)
        else:
            self.facts.descent = self.facts.descent.called_off(now, now + STUCK_STOPPING_S)

    def _fell_asleep(self, machine: Machine, now: float) -> None:
        asked = self.facts.descent.mode if self.facts.state is S.STOPPING else None
        self._actions += self.facts.sleep.fell_asleep(machine, asked, now)
        if machine.state is M.STOPPED:
            self.facts.renewing = False
        self._move(S.SLEEP, machine.reason or machine.state.value)
        failed = stopped_too_often(machine, self.facts.stops) if asked is None else None
        if failed is not None:
            self._give_up(failed, now)

    # -- moves ---------------------------------------------------------------------------------------------------------

    def _enter_operational(self, cause: str, now: float) -> None:
        self._move(S.OPERATIONAL, cause)
        for waiter in self.facts.room.empty():
            self._grant(waiter, now)

    def _end_probe(self) -> None:
        self.facts.probe_words = ""
        if self.facts.probing:
            self.facts.probing = False
            self._actions.append(msg.EndProbe())

    def _move(self, after: SatelliteState, cause: str) -> None:
        if after not in TRANSITIONS[self.facts.state]:
            raise AssertionError(f"{self.facts.state.name} to {after.name}: {cause}")
        self._actions.append(msg.Moved(self.facts.state, after, cause))
        if after not in WAKING:
            self._end_probe()
            self.facts.room.wake_ends()
        self.facts.state = after
