"""The life of one satellite as a pure state machine: inputs and the time go in, actions come out.

The states and their tables are in `states`, what goes in and out in `messages`; `waking` and `descending` are its two
ways, `setbacks`, `sleeping` and `waiting` its memory of failures, of sleeps, and of those who wait. Rules:

- At most one provider call is under way (`busy`). A lease is granted in OPERATIONAL only.
- Sleep is decided in the same step that moves to STOPPING, with no waiter and no lease but quiet ones, which are then
  ended; the stop call is made when the last of them is gone, and called off if somebody comes before.
- A wake outlives its clients. A failed one is told to all waiters at once and remembered.
- The provider is the truth about the machine: what others do to it arrives as `Seen` like everything else.
"""

import math
from typing import assert_never

from bentpipe.daemon.errors import BentpipeError, Draining, LimitReached, ProviderError, SatelliteUnusable
from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.fleet.machine.core import WAKING, about
from bentpipe.daemon.fleet.machine.descent import Descending
from bentpipe.daemon.fleet.machine.messages import Action, Input, SleepReason
from bentpipe.daemon.fleet.machine.rules import LOOK_WAIT_S, PATIENCE_S, UNREADY_ROUNDS
from bentpipe.daemon.fleet.machine.setbacks import Verdict, verdict_on
from bentpipe.daemon.fleet.machine.states import SIGHTS, Sight
from bentpipe.daemon.model import Fault, Machine, MachineState, SatelliteState, SleepMode

S = SatelliteState
M = MachineState
UNSEEN = "nobody can say how the satellite's machine is"
DRAINING = "the edge host is shutting down; try again in a moment"


class SatelliteMachine(Descending):
    """State of one satellite. `handle` is the only way to change it; times are seconds of one monotonic clock."""

    # -- what the awake budget asks -----------------------------------------------------------------------------------

    @property
    def holds_place(self) -> bool:
        """Whether it counts as awake: it is, or may be, or a call that may wake it is under way."""
        return self.state not in (S.SLEEP, S.FAILED) or self.busy

    def wants_place(self, now: float) -> bool:
        """Whether it would begin to wake if the awake budget had a place for it."""
        return self._rules.budgeted and self.state is S.SLEEP and not self.busy and self._wanted(now)

    @property
    def kept_awake(self) -> bool:
        """Whether these are hours in which it is to be awake."""
        return self._keep_awake

    @property
    def idle_since(self) -> float | None:
        """Since when nobody has used it; None if somebody does, or it is not up."""
        return self._sleep.idle_since if self._unused and not self.leases else None

    @property
    def evictable_at(self) -> float:
        """From when on it may be evicted, if `idle_since` is not None."""
        return self._sleep.evictable_at

    # -- inputs ------------------------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> list[Action]:
        """Take one input. Returns what to do, in order."""
        self._actions = []
        self._setbacks.lapse(now)
        match event:
            case msg.Arrived():
                self._arrived(event, now)
            case msg.Departed(waiter):
                self._room.leave(waiter)
            case msg.Metered():
                self._metered += 1
            case msg.Released(metered):
                self.leases -= 1
                self._metered -= metered
                if self.state is not S.STOPPING:
                    self._sleep.used(now)
            case msg.Traffic():
                self._sleep.used(now)
            case msg.Seen(machine):
                self._seen(machine, now)
            case msg.StartDone(error):
                self.busy = False
                self._start_done(error, now)
            case msg.StopDone(error):
                self.busy = False
                self._stop_done(error, now)
            case msg.StopWithdrawn():
                self.busy = False
                self._sleep.used(now)
                if self.state is S.STOPPING:
                    self._call_off("somebody came", now)
            case msg.Ready():
                self._ready(now)
            case msg.Witnessed(resume):
                self._actions += self._sleep.witnessed(resume, now)
            case msg.Unreachable():
                if self.state is S.OPERATIONAL:
                    self._suspected = True
                    self._begin_wake("could not be reached", now)
            case msg.Suspected():
                self._suspected |= self.state is S.OPERATIONAL
            case msg.Looked(error):
                self._looked(error, now)
            case msg.Unseen(error):
                self._unseen(error, now)
            case msg.ProbeFailed(words):
                self._probe_words = words
            case msg.KeepAwake(wanted):
                self._keep_awake = wanted
            case msg.Renew():
                self._renewing = self.state is S.SLEEP and self._is(M.HIBERNATED)
            case msg.PlaceGranted():
                if self.wants_place(now):
                    self._begin_asked_wake(now)
            case msg.Evict():
                if self.idle_since is not None and now >= self.evictable_at:
                    self._begin_sleep(SleepReason.EVICTED, now)
            case msg.Reset():
                self._reset()
            case msg.Tick():
                pass
            case msg.Drain():
                self._draining = True
                self._fail_all(Draining(DRAINING))
            case _:
                assert_never(event)
        self._expire(now)
        self._progress(now)
        if now >= self._look_at:
            self._suspected = False
            self._pace.begin()
            self._actions.append(msg.Look())
        return self._actions

    def next_deadline(self) -> float | None:
        """When to send the next Tick at the latest."""
        times = [self._room.first_until, self._look_at]
        if self._reason_is_known:
            times.append(self._room.first_tell)
        if self.state in WAKING:
            times += [self._wake.by, self._patience_at]
            if not self.busy and not self._wake.came_up:
                times.append(self._wake.call_at)
                if self.state is S.CREATING:
                    times.append(self._wake.settle_by or math.inf)
        elif self.state is S.STOPPING:
            times.append(self._descent_deadline)
        elif (self.state is S.SLEEP and self._keep_awake and not self._draining) or self._is_blocked:
            times.append(self._setbacks.retry_at or math.inf)
        elif self._may_sleep:
            times.append(self._sleep_at)
        first = min(times)
        return None if first == math.inf else first

    def _progress(self, now: float) -> None:
        """Do what follows from the state and the time."""
        if self._is_blocked and self._setbacks.replay(now) is None:
            self._move(S.SLEEP, "it may be tried again")
        if self.state is S.SLEEP and self._wanted(now) and not self._rules.budgeted:
            self._begin_asked_wake(now)
        if self.state in WAKING and now >= self._wake.by:
            self._overdue(now)
            if self._wake.rounds >= UNREADY_ROUNDS and self._is(M.RUNNING) and not self.busy and not self.leases:
                self._begin_sleep(SleepReason.UNREADY, now, SleepMode.STOP)
        if self.state in WAKING:
            self._progress_wake(now)
        if self._may_sleep and now >= self._sleep_at:
            self._begin_idle_sleep(now)
        if self.state is S.STOPPING:
            self._progress_descent(now)

    # -- clients -----------------------------------------------------------------------------------------------------

    def _arrived(self, event: msg.Arrived, now: float) -> None:
        if self._draining:
            self._fail(event.waiter, Draining(DRAINING))
        elif self.state is S.OPERATIONAL:
            self._grant(event.waiter, now)
        elif (error := self._hopeless(now)) is not None:
            self._fail(event.waiter, error)
        elif event.crowded:
            self._fail(event.waiter, LimitReached(event.words))
        else:
            self._room.enter(event.waiter, now if event.since is None else event.since, event.tell_by)

    def _hopeless(self, now: float) -> BentpipeError | None:
        """Why there is no use in waiting now; None if there is. Whoever can have it looked at anew waits for that look."""
        if self._can_look(now):
            return None
        if self._is_gone:
            return self._gone()
        if self.state is S.UNKNOWN and self._trouble.error is not None and self._is_told_at_once(now):
            return self._last_reason(UNSEEN)
        return None if self._up else self._setbacks.replay(now)

    def _expire(self, now: float) -> None:
        if self._reason_is_known:
            for waiter in self._room.untold(now):
                self._fail(waiter, self._last_reason("the satellite is not ready"))
        queued = self.wants_place(now)
        for waiter, waited_s in self._room.expired(now):
            if queued:
                words = f"in {waited_s:.0f} s no place became free among the satellites that may be awake at once"
                self._fail(waiter, LimitReached(words))
            else:
                self._fail(waiter, self._not_ready(waited_s))

    def _gone(self) -> BentpipeError:
        return about(SatelliteUnusable, "the satellite's machine is gone", self.machine)

    # -- looks that we ask for ---------------------------------------------------------------------------------------

    @property
    def _is_gone(self) -> bool:
        """Failed since there is no machine, and none is launched: it is looked for when somebody wants it."""
        machine = self.machine
        if self.state is not S.FAILED or machine is None or machine.state is not M.TERMINATED:
            return False
        return not self._rules.launch or machine.fault is Fault.FOREIGN

    @property
    def _is_blocked(self) -> bool:
        """Failed by what people must mend: after a time it may be tried again."""
        return self.state is S.FAILED and not self._is_gone

    @property
    def _look_at(self) -> float:
        """When to look at the machine ourselves; infinity if there is no reason to."""
        unsettled = self._probing or (self._wake.settle_by > 0 and not self._wake.came_up)
        if self._suspected or (self.waiting and (self.state is S.UNKNOWN or self._is_gone)):
            return self._pace.next_at
        if self.state in WAKING and not self.busy and unsettled:
            return max(self._pace.next_at, self._boots_until)
        return math.inf

    def _can_look(self, now: float) -> bool:
        """Whether a machine that is not known, or gone, is looked at so soon that somebody who comes now waits for it."""
        may_look = self._pace.under_way or now + LOOK_WAIT_S >= self._pace.next_at
        return may_look and (self.state is S.UNKNOWN or self._is_gone)

    def _is_told_at_once(self, now: float) -> bool:
        """Whether those who wait for an unknown machine hear why nobody can see it: people must mend it, or it lasts."""
        error = self._trouble.error
        passing = isinstance(error, ProviderError) and verdict_on(error) in (Verdict.AGAIN, Verdict.THROTTLED)
        return not passing or now >= self._trouble.since + PATIENCE_S

    def _unseen(self, error: ProviderError, now: float) -> None:
        self._look_trouble.failed(error, now)
        if self.state is S.UNKNOWN and self._is_told_at_once(now):
            self._fail_all(self._last_reason(UNSEEN))

    def _looked(self, error: ProviderError | None, now: float) -> None:
        self._pace.end(now)
        if error is None:
            self._look_trouble.worked()
        else:
            self._unseen(error, now)
        if self._is_gone:
            self._fail_all(self._gone())

    # -- the machine -------------------------------------------------------------------------------------------------

    def _seen(self, machine: Machine, now: float) -> None:
        before, self.machine = self.machine, machine
        self._look_trouble.worked()
        if before != machine:
            self._pace.news(now)
        moved_away = before is not None and before.address != machine.address
        if self._probing and (machine.state is not M.RUNNING or moved_away):
            self._end_probe()
        sight = SIGHTS[self.state][machine.state]
        match sight:
            case Sight.NOTHING:
                if self.state is S.FAILED and before is not None and before.state is not M.TERMINATED:
                    self._setbacks.forgive()  # it was about that machine
            case Sight.RISEN:
                pass  # what it means depends on our call: `_progress_descent`
            case Sight.ROSE:
                self._setbacks.forgive()
                others = "found up" if self.state is S.UNKNOWN else "started by others"
                self._begin_wake("an earlier start took effect" if self.busy else others, now)
            case Sight.COMING:
                self._wake.came_up = True
            case Sight.LOOKS_UP:
                if moved_away:
                    self._begin_wake("restarted by others", now)
            case Sight.RESTARTED:
                self._begin_wake("restarted by others", now)
            case Sight.FALLING:
                self._fall(machine, now)
            case Sight.DROPPED:
                self._drop(now)
            case Sight.DOWN:
                if self._wake.came_up and not self._came_down(machine, now):
                    self._fell_asleep(machine, now)
            case Sight.ASLEEP:
                self._fell_asleep(machine, now)
            case Sight.STILL_ASLEEP:
                if self._setbacks.replay(now) is None:
                    self._fell_asleep(machine, now)
            case Sight.VANISHED:
                self._wake.came_up = False
                if machine.fault is not None:
                    self._lost(machine, now)
            case Sight.GONE:
                self._machine_gone(machine, existed=before is not None and before.state is not M.TERMINATED)
            case _:
                assert_never(sight)

    def _machine_gone(self, machine: Machine, *, existed: bool) -> None:
        if existed:
            self._generation += 1
            self._sleep.reset()  # what was learned was about that machine
        # One that is marked as another's is there still: people say what it is, before a second one is paid for.
        if not self._rules.launch or machine.fault is Fault.FOREIGN:
            self._fail_all(self._gone())
            self._move(S.FAILED, machine.reason or "terminated")
        elif self.state is not S.SLEEP:
            self._move(S.SLEEP, machine.reason or "there is no machine yet")

    def _reset(self) -> None:
        self._setbacks.clear()
        self._sleep.reset()
        self._start_trouble.worked()
        self._look_trouble.worked()
        if self._is_gone and self._rules.launch:
            self._move(S.SLEEP, "to be tried again")  # people have said that another may be launched
