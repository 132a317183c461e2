"""The part of the satellite's machine that wakes: from the first waiter to OPERATIONAL, or to a failure. Pure."""

import dataclasses
import math

from bentpipe.daemon.errors import BentpipeError, ProviderError, WakeFailed
from bentpipe.daemon.fleet import messages as msg
from bentpipe.daemon.fleet.core import WAKING, Core, Wake
from bentpipe.daemon.fleet.rules import APPEAR_GRACE_S, START_GRACE_S
from bentpipe.daemon.fleet.setbacks import FAULTS, Verdict, verdict_on
from bentpipe.daemon.fleet.states import ASLEEP
from bentpipe.daemon.model import Machine, MachineState, SatelliteState

S = SatelliteState
M = MachineState


class Waking(Core):
    """Begins wakes and follows them."""

    def _wanted(self, now: float) -> bool:
        if self.waiting:
            return True
        upkeep = self._keep_awake or self._renewing
        return upkeep and not self._draining and self._setbacks.replay(now) is None

    def _begin_asked_wake(self, now: float) -> None:
        self.wakes += 1
        if self.waiting:
            self._begin_wake("a client came", now)
        else:
            self._begin_wake("these are hours to be awake" if self._keep_awake else "hibernated for too long", now)

    def _begin_wake(self, cause: str, now: float) -> None:
        by = now + self._rules.wake_deadline_s
        self._wake = Wake(now, by, call_at=now, came_up=self._up, measured=self._is(*ASLEEP))
        self._room.wake_begins(now)
        self._move(S.CREATING if self._is(M.TERMINATED) else S.STARTING, cause)

    def _progress_wake(self, now: float) -> None:
        wake, machine = self._wake, self.machine
        if machine is None:
            raise AssertionError("a wake of a machine that was never seen")
        if machine.state is M.RUNNING and machine.address is not None and not self._probing:
            self._probing = True
            self._actions.append(msg.Probe(machine.address))
        if self.busy or wake.came_up:
            return
        if machine.state is M.TERMINATED and wake.settle_by and now >= wake.settle_by:
            self._lost(dataclasses.replace(machine, reason=""), now)
        elif machine.state is M.TERMINATED and now >= wake.call_at:
            self._call(msg.Launch(self._generation))
        elif self.state is S.CREATING and machine.state in ASLEEP:
            self._move(S.STARTING, "it exists already")
            self._call(msg.Start())
        elif machine.state in ASLEEP and now >= wake.call_at:
            self._call(msg.Start())

    def _call(self, action: msg.Start | msg.Launch) -> None:
        self.busy = True
        self._wake.call_at = math.inf
        self._actions.append(action)

    def _start_done(self, error: ProviderError | None, now: float) -> None:
        if self.state not in WAKING:
            return
        if error is None:
            self._wake.settle_by = now + (APPEAR_GRACE_S if self.state is S.CREATING else START_GRACE_S)
        elif not self._wake.came_up:
            verdict = verdict_on(error)
            if verdict in (Verdict.AGAIN, Verdict.THROTTLED, Verdict.SPENT):
                self._generation += verdict is Verdict.SPENT
                self._wake.call_at = self._setbacks.next_call_at(verdict, now)
            else:
                self._wake_failed(verdict, error, now)

    def _came_down(self, machine: Machine, now: float) -> None:
        """It came up, and went down again before it was ready: a start that was accepted has failed."""
        words = f"the satellite stopped while starting: {machine.reason}"
        self._wake_failed(FAULTS[machine.fault], WakeFailed(words), now)

    def _lost(self, machine: Machine, now: float) -> None:
        """It was launched, and is not there."""
        self._generation += 1
        words = machine.reason or "it never appeared"
        self._wake_failed(FAULTS[machine.fault], WakeFailed(f"the satellite could not be created: {words}"), now)

    def _wake_failed(self, verdict: Verdict, error: BentpipeError, now: float) -> None:
        self._setbacks.remember(verdict, error, now)
        self._fail_all(self._setbacks.replay(now) or error)
        self._renewing = False
        self._move(S.FAILED if verdict is Verdict.TERMINAL else S.SLEEP, f"wake failed: {error}")

    def _overdue(self, now: float) -> None:
        """The wake deadline has passed. What is up, or may yet come up, is not said to be asleep."""
        wake = self._wake
        error = WakeFailed(f"the satellite was not ready after {self._rules.wake_deadline_s:g} s")
        if not self.busy and not self._up and now >= wake.settle_by:
            if self.machine is not None and self._is(M.TERMINATED) and wake.settle_by:
                self._lost(dataclasses.replace(self.machine, reason=""), now)
            else:
                self._wake_failed(Verdict.FAILED, error, now)
            return
        self._setbacks.remember(Verdict.FAILED, error, now)
        self._fail_all(self._setbacks.replay(now) or error)
        wake.by = now + self._rules.wake_deadline_s if self.busy or self._up else wake.settle_by
        wake.rounds += 1

    def _ready(self, now: float) -> None:
        if self.state not in WAKING or not self._probing:
            return
        self._probing = False
        self._setbacks.clear()
        self._sleep.woke(now)
        if self._wake.measured:
            self._room.wake_took(now - self._wake.began)
        self._enter_operational("ready", now)
