"""The life of one satellite as a pure state machine: inputs and the time go in, actions come out.

This class decides every move, by the steps in `moves`; no other module does. `known` keeps all that is known, and answers
questions about it. `wake` and `descent` are the ways up and down, as values that decide. The rules:

- At most one provider call is under way (`busy`). A lease is granted in OPERATIONAL only.
- Sleep is decided in the step that moves to STOPPING. At that moment there is no waiter, and no lease except quiet ones.
  These are ended, and the stop call is made when the last of them is gone. If a client comes before, sleep is called off.
- A wake goes on when its clients leave. If it fails, all waiters are told at once, and the failure is remembered.
- The provider knows the truth about the machine. What others do to the machine arrives as `Seen`, as everything else does.
"""

from typing import assert_never

from bentpipe.daemon.errors import (
    BentpipeError,
    LimitReached,
    MachineNotFound,
    ProviderError,
    SleepModeRefused,
    SleepVetoed,
)
from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.fleet.machine.descent import Descent, DescentStep
from bentpipe.daemon.fleet.machine.failures import REPEATED, Consequence, consequence_of
from bentpipe.daemon.fleet.machine.messages import Action, Input, SleepProblem, SleepReason
from bentpipe.daemon.fleet.machine.moves import Moves
from bentpipe.daemon.fleet.machine.rules import Rules
from bentpipe.daemon.fleet.machine.states import MEANINGS, WAKING, Meaning
from bentpipe.daemon.fleet.machine.wake import Failed, Wake, WakeCall, came_down, lost, stopped_too_often
from bentpipe.daemon.fleet.machine.words import UNSEEN
from bentpipe.daemon.model import Machine, MachineState, SatelliteState, SleepMode

S = SatelliteState
M = MachineState


class SatelliteMachine(Moves):
    """One satellite. `handle` is the only way to change it; times are seconds of one monotonic clock."""

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self._traits = rules.traits

    def take_over(
        self, broken: "SatelliteMachine", *, leases: int, metered: int, refusal: BentpipeError | None
    ) -> None:
        """Start from what the broken machine of the same satellite knew for certain, and from the leases that live."""
        self.known.take_over(broken.known, leases=leases, metered=metered, refusal=refusal)

    def calls_ended(self, *, looks: bool) -> None:
        """The call under way has ended with its task, and with `looks` the look too. No input will tell their end."""
        self.known.busy = False
        if looks:
            self.known.looks.under_way = self.known.builds.asking = False

    # -- inputs --------------------------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> list[Action]:
        """Take one input. Returns what to do, in order."""
        self._actions = []
        self.known.failures.lapse(now)
        self.known.builds.lapse(now, self.known.sleep.client_at)
        match event:
            case msg.Arrived() | msg.Adopted() | msg.Departed() | msg.Metered() | msg.Released() | msg.Drain():
                self._take_clients(event, now)
            case msg.Traffic() | msg.StillUsed():
                self._take_clients(event, now)
            case msg.KeepAwake() | msg.Renew() | msg.PlaceGranted() | msg.Evict() | msg.SleepAsked() | msg.Reset():
                self._take_order(event, now)
            case msg.Distrusted():
                self.known.builds.distrust()
            case msg.Tick():
                pass
            case _:
                self._take_machine(event, now)
        self._expire(now)
        self._progress(now)
        if now >= self.known.look_at:
            self.known.looks.begin()
            self._actions.append(msg.Describe())
        return self._actions

    def _take_clients(self, event: msg.ClientsInput, now: float) -> None:
        known = self.known
        match event:
            case msg.Arrived():
                self._arrived(event, now)
            case msg.Departed(waiter):
                known.queue.leave(waiter)
            case msg.Metered():
                known.metered += 1
            case msg.Released(metered):
                known.leases -= 1
                known.metered -= metered
                if known.state is not S.STOPPING:
                    known.sleep.used(now)
            case msg.Traffic():
                known.sleep.used(now)
            case msg.Adopted() | msg.StillUsed():
                known.leases += isinstance(event, msg.Adopted)
                known.sleep.used(now)
                if known.state is S.STOPPING and known.descent.pending:
                    self._call_off("a client uses it", now)
            case msg.Drain(error):
                known.refusal = error
                if error is not None:
                    self._fail_all(error)
            case _:
                assert_never(event)

    def _take_machine(self, event: msg.MachineInput, now: float) -> None:
        known = self.known
        match event:
            case msg.StartDone(error):
                known.busy = False
                self._start_done(error, now)
            case msg.StopDone(error):
                known.busy = False
                if known.state is S.STOPPING:
                    self._stop_done(error, now)
            case msg.StopWithdrawn():
                known.busy = False
                known.sleep.used(now)
                if known.state is S.STOPPING:
                    self._call_off("somebody came", now)
            case msg.Ready():
                if known.state in WAKING and known.probing:
                    self._ready(now)
            case msg.ProbeFailed(words, silent):
                known.probe_words = words
                known.silent_since = now if silent else None
            case msg.BuildsRead(running):
                self._builds_read(running, now)
            case msg.ResumeDetected(resume):
                self._actions += known.sleep.resume_detected(resume, now)
            case msg.Unreachable() | msg.Suspected():
                if known.state is S.OPERATIONAL:
                    known.looks.suspect()
                    if isinstance(event, msg.Unreachable):
                        self._begin_wake("could not be reached", now)
            case msg.Seen(machine):
                self._seen(machine, now)
            case msg.Unseen(error):
                self._unseen(error, now)
            case msg.DescribeDone(error):
                known.looks.end(now)
                if error is None:
                    known.troubles.look.worked()
                else:
                    self._unseen(error, now)
                if known.is_gone:
                    self._fail_all(known.gone())
            case _:
                assert_never(event)

    def _take_order(self, event: msg.OrderInput, now: float) -> None:
        known = self.known
        match event:
            case msg.KeepAwake(wanted):
                known.keep_awake = wanted
            case msg.Renew():
                known.renewing = known.state is S.SLEEP and known.machine_is(M.HIBERNATED)
            case msg.PlaceGranted():
                if known.wants_place(now):
                    self._begin_wanted_wake(now)
            case msg.Evict():
                if known.idle_since is not None and now >= known.evictable_at:
                    self._begin_sleep(SleepReason.EVICTED, now)
            case msg.SleepAsked():
                if known.idle_since is not None and not known.keep_awake:
                    self._begin_sleep(SleepReason.ASKED, now)
            case msg.Reset():
                known.failures.clear()
                known.sleep.reset()
                known.troubles.clear()
                if known.is_gone and known.rules.launch:
                    self._move(S.SLEEP, "to be tried again")  # the operator has said that another may be launched
            case _:
                assert_never(event)

    def _progress(self, now: float) -> None:
        """Do what follows from the state and the time."""
        known = self.known
        if now >= known.unseen_told_at:
            self._fail_all(known.troubles.last_reason(UNSEEN))
        if known.is_blocked and known.failures.replay(now) is None:
            self._move(S.SLEEP, "it may be tried again")
        if known.state is S.SLEEP and known.is_wanted(now) and not known.rules.budgeted:
            self._begin_wanted_wake(now)
        if known.state in WAKING and now >= known.wake.by:
            self._overdue(now)
            if known.is_unready:
                self._begin_sleep(SleepReason.UNREADY, now, SleepMode.STOP)
        if known.state in WAKING:
            self._progress_wake(now)
            if now >= known.restart_at:
                self._restart(now)
        if known.may_sleep and now >= known.sleep_at:
            self._fall_idle(now)
        if known.state is S.STOPPING:
            self._progress_descent(now)

    # -- clients -------------------------------------------------------------------------------------------------------

    def _arrived(self, event: msg.Arrived, now: float) -> None:
        if self.known.refusal is not None:
            self._fail(event.waiter, self.known.refusal)
        elif self.known.state is S.OPERATIONAL:
            self._grant(event.waiter, now)
        elif (error := self.known.hopeless(now)) is not None:
            self._fail(event.waiter, error)
        elif event.crowded:
            self._fail(event.waiter, LimitReached(event.words))
        else:
            self.known.queue.enter(event.waiter, now if event.since is None else event.since, event.tell_by)

    # -- what is seen of the machine -----------------------------------------------------------------------------------

    def _unseen(self, error: ProviderError, now: float) -> None:
        self.known.troubles.look.failed(error, now)
        if self.known.state is S.UNKNOWN and self.known.troubles.lasts(now):
            self._fail_all(self.known.troubles.last_reason(UNSEEN))

    def _seen(self, machine: Machine, now: float) -> None:
        known = self.known
        before, known.machine = known.machine, machine
        known.troubles.look.worked()
        if before != machine:
            known.looks.news(now)
        moved_away = before is not None and before.address != machine.address
        if known.probing and (machine.state is not M.RUNNING or moved_away):
            self._end_probe()
        existed = before is not None and before.state is not M.TERMINATED
        meaning = MEANINGS[known.state][machine.state]
        match meaning:
            case Meaning.NOTHING:
                if known.state is S.FAILED and existed:
                    known.failures.forgive()  # it was about that machine
            case Meaning.RISEN:
                pass  # `_progress_descent` decides by our call what it means
            case Meaning.ROSE:
                known.failures.forgive()
                others = "found up" if known.state is S.UNKNOWN else "started by others"
                self._begin_wake("an earlier start took effect" if known.busy else others, now)
            case Meaning.COMING:
                known.wake = known.wake.seen(up=True)
            case Meaning.LOOKS_UP | Meaning.RESTARTED:
                if moved_away or meaning is Meaning.RESTARTED:
                    self._begin_wake("restarted by others", now)
            case Meaning.FALLING:
                self._fall(machine, now)
            case Meaning.DROPPED:
                known.descent = known.descent.going_down(now + self._traits.stuck_stopping_s)
            case Meaning.DOWN:
                if known.wake.came_up:
                    self._came_down(machine, now)
            case Meaning.ASLEEP | Meaning.STILL_ASLEEP:
                if meaning is Meaning.ASLEEP or known.failures.replay(now) is None:
                    self._fell_asleep(machine, now)
            case Meaning.VANISHED:
                known.generation += known.wake.has_lost(machine, busy=known.busy)
                known.wake = known.wake.vanished(machine, now, busy=known.busy)
                if machine.fault is not None and not machine.other_left:
                    self._wake_failed(lost(machine), now)
            case Meaning.GONE:
                self._machine_gone(machine, existed=existed)
            case _:
                assert_never(meaning)

    def _machine_gone(self, machine: Machine, *, existed: bool) -> None:
        if existed:
            self.known.generation += 1
            self.known.sleep.reset()  # what was learned was about that machine
            self.known.relaunching = machine.other_left and self.known.may_launch
        if not self.known.may_launch:
            self._fail_all(self.known.gone())
            self._move(S.FAILED, machine.reason or "terminated")
        elif self.known.state is not S.SLEEP:
            self._move(S.SLEEP, machine.reason or "there is no machine yet")

    # -- the wake ------------------------------------------------------------------------------------------------------

    def _begin_wanted_wake(self, now: float) -> None:
        self.known.wakes += 1
        self._begin_wake(self.known.wake_cause, now)

    def _begin_wake(self, cause: str, now: float) -> None:
        deadline_s, resumes = self.known.rules.wake_deadline_s, self.known.is_hibernated
        self.known.wake = Wake.begin(self.known.machine, now, deadline_s, from_memory=resumes)
        self.known.queue.wake_begins(now)
        self._move(S.CREATING if self.known.machine_is(M.TERMINATED) else S.STARTING, cause)

    def _progress_wake(self, now: float) -> None:
        known, machine = self.known, self.known.seen_machine
        if machine.state is M.RUNNING and machine.address is not None and not known.probing:
            known.probing = True
            self._actions.append(msg.Probe(machine.address))
            known.looks.came_up(now)
        step = known.wake_step(now)
        if isinstance(step, Failed):
            self._wake_failed(step, now)
        elif step is not None:
            self._call(step)

    def _call(self, call: WakeCall) -> None:
        if call is WakeCall.START and self.known.state is S.CREATING:
            self._move(S.STARTING, "it exists already")
        self.known.busy = True
        self.known.wake = self.known.wake.called()
        self._actions.append(msg.Start() if call is WakeCall.START else msg.Launch(self.known.generation))

    def _start_done(self, error: ProviderError | None, now: float) -> None:
        known = self.known
        if error is None:
            known.troubles.start.worked()
        if known.state not in WAKING:
            return
        if error is None:
            grace_s = self._traits.appear_grace_s if known.state is S.CREATING else self._traits.start_grace_s
            known.wake = known.wake.call_accepted(now + grace_s)
            known.looks.start_accepted(now)
        elif not known.wake.came_up:
            known.troubles.start.failed(error, now)
            if isinstance(error, MachineNotFound):
                known.looks.suspect()
            consequence = consequence_of(error)
            if consequence in REPEATED:
                known.generation += consequence is Consequence.SPENT
                known.wake = known.wake.call_again(known.failures.next_call_at(consequence, now))
            else:
                self._wake_failed(Failed(consequence, error), now)

    def _came_down(self, machine: Machine, now: float) -> None:
        """The machine was up, and went down before it was ready."""
        if machine.other_left:
            self.known.wake = self.known.wake.tried_otherwise(now)
            return
        self.known.stops += self.known.has_called
        failed = came_down(machine, self.known.stops)
        if failed is not None:
            self._wake_failed(failed, now)
        else:
            self._fell_asleep(machine, now)

    def _overdue(self, now: float) -> None:
        error = self.known.not_ready(self.known.rules.wake_deadline_s)
        after = self.known.wake_overdue(error, now)
        if isinstance(after, Failed):
            self._wake_failed(after, now)
        else:
            self._give_up(Failed(Consequence.FAILED, error), now)
            self.known.wake = after

    def _wake_failed(self, failed: Failed, now: float) -> None:
        self.known.generation += failed.lost
        self._give_up(failed, now)
        self.known.renewing = self.known.relaunching = False
        self._move(S.FAILED if failed.consequence is Consequence.BLOCKED else S.SLEEP, f"wake failed: {failed.error}")

    def _give_up(self, failed: Failed, now: float) -> None:
        """Remember the failure, and tell it to all waiters."""
        self.known.failures.remember(failed.consequence, failed.error, now)
        self._fail_all(self.known.failures.replay(now) or failed.error)

    def _ready(self, now: float) -> None:
        known = self.known
        known.probing = False
        known.probe_words = ""
        known.stops = 0
        known.relaunching = False
        known.restarted = False
        known.failures.clear()
        known.troubles.start.worked()
        known.sleep.woke(now)
        if known.wake.measured:
            known.queue.wake_took(now - known.wake.began)
        self._enter_operational("ready", now)

    def _restart(self, now: float) -> None:
        """It has resumed and cannot be reached: stop it and start it once. Its clients wait on."""
        known = self.known
        known.restarted = True
        self._actions += known.sleep.resumed_unreachable(now)
        known.descent = Descent.decided(SleepMode.STOP, now, restarts=True)
        self._move(S.STOPPING, SleepReason.UNREACHABLE.value)

    # -- the descent ---------------------------------------------------------------------------------------------------

    def _builds_read(self, running: int | None, now: float) -> None:
        known = self.known
        if known.state is S.OPERATIONAL:
            known.builds.read(running, now)
            if known.builds.hold(leases=0):
                known.sleep.built(now)

    def _fall_idle(self, now: float) -> None:
        """Nobody uses it. If its builds are counted, they are counted once more first."""
        if not self.known.builds.is_fresh(now):
            if not self.known.builds.asking:
                self.known.builds.asking = True
                self._actions.append(msg.CountBuilds())
            return
        reason, mode = self.known.idle_sleep
        self._begin_sleep(reason, now, mode)

    def _begin_sleep(self, reason: SleepReason, now: float, mode: SleepMode | None = None) -> None:
        if mode is None:
            mode, found = self.known.sleep.choose_mode(self.known.seen_machine, now)
            self._actions += found
        self.known.descent = Descent.decided(mode, now, was_ready=self.known.state is S.OPERATIONAL)
        self._move(S.STOPPING, reason.value)
        if self.known.leases:
            self._actions.append(msg.EndQuiet())

    def _fall(self, machine: Machine, now: float) -> None:
        """Others stop the machine."""
        self.known.stops += self.known.has_called
        self.known.descent = Descent.by_others(now + self._traits.stuck_stopping_s)
        self._move(S.STOPPING, machine.reason or "stopped by others")

    def _progress_descent(self, now: float) -> None:
        if self.known.descent.pending:
            self._take_step(self.known.descent_step(now), now)
        if self.known.state is S.STOPPING and not self.known.descent.pending:
            self._take_step(self.known.descent_step(now), now)

    def _take_step(self, step: DescentStep | None, now: float) -> None:
        known = self.known
        match step:
            case DescentStep.CALL_OFF:
                known.sleep.used(now)
                self._call_off("somebody came", now)
            case DescentStep.STOP:
                known.descent = known.descent.called()
                self._stop(known.descent.mode or SleepMode.STOP)
            case DescentStep.CUT:
                known.descent = known.descent.cut(now)
                self._actions.append(msg.EndQuiet(cut=True))
            case DescentStep.WAKE:
                self._begin_wake("it is up again", now)
                self._progress_wake(now)
            case DescentStep.FORCE:
                known.descent = Descent.forced(now + self._traits.stuck_stopping_s)
                self._actions.append(
                    msg.ProblemFound(SleepProblem.FORCED, f"after {self._traits.stuck_stopping_s:g} s")
                )
                self._stop(SleepMode.STOP, force=True)
            case None:
                pass
            case _:
                assert_never(step)

    def _stop(self, mode: SleepMode, *, force: bool = False) -> None:
        self.known.busy = True
        self._actions.append(msg.Stop(mode, force, restart=self.known.descent.restarts))

    def _stop_done(self, error: ProviderError | None, now: float) -> None:
        known = self.known
        if error is None:
            known.descent = known.descent.accepted(now + self._traits.stop_grace_s, now + self._traits.stuck_stopping_s)
        elif isinstance(error, SleepModeRefused) and known.descent.mode is SleepMode.HIBERNATE:
            self._actions.append(known.sleep.refused(error, now))
            known.descent = Descent.decided(SleepMode.STOP, now, was_ready=known.descent.was_ready)
        else:
            if isinstance(error, SleepVetoed):
                known.sleep.used(now)
            else:
                known.sleep.failed(error, now)
            self._call_off(f"sleep refused: {error}", now)

    def _call_off(self, cause: str, now: float) -> None:
        """We have not stopped the machine: serve again, unless it goes down nevertheless, or has never answered."""
        if self.known.machine_is(M.RUNNING) and not self.known.descent.dropped:
            if self.known.descent.was_ready:
                self._enter_operational(cause, now)
            else:
                self._begin_wake(cause, now)
                self._progress_wake(now)
        else:
            self.known.descent = self.known.descent.called_off(now, now + self._traits.stuck_stopping_s)

    def _fell_asleep(self, machine: Machine, now: float) -> None:
        asked = self.known.descent.mode if self.known.state is S.STOPPING else None
        self._actions += self.known.sleep.fell_asleep(machine, asked, now)
        if machine.state is M.STOPPED:
            self.known.renewing = False
        self._move(S.SLEEP, machine.reason or machine.state.value)
        failed = stopped_too_often(machine, self.known.stops) if asked is None else None
        if failed is not None:
            self._give_up(failed, now)
