"""The part of the satellite's machine that wakes: from the first waiter to OPERATIONAL, or to a failure. Pure."""

import dataclasses
import math

from bentpipe.daemon.errors import BentpipeError, MachineNotFound, ProviderError, WakeFailed
from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.fleet.machine.core import WAKING, Core, Wake, about
from bentpipe.daemon.fleet.machine.rules import APPEAR_GRACE_S, BOOT_LOOK_S, PATIENCE_S, START_GRACE_S, STOPS_FORGIVEN
from bentpipe.daemon.fleet.machine.setbacks import FAULTS, Verdict, verdict_on
from bentpipe.daemon.fleet.machine.states import ASLEEP
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
            if not self._suspected:
                self._boots_until = now + BOOT_LOOK_S
        if now >= self._patience_at:
            words = f"for {now - self._trouble.since:.0f} s every attempt has failed"
            self._wake_failed(Verdict.FAILED, self._last_reason(words), now)
            return
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
        if error is None:
            self._start_trouble.worked()
        if self.state not in WAKING:
            return
        if error is None:
            self._wake.settle_by = now + (APPEAR_GRACE_S if self.state is S.CREATING else START_GRACE_S)
            self._boots_until = now + BOOT_LOOK_S
        elif not self._wake.came_up:
            self._start_trouble.failed(error, now)
            self._suspected |= isinstance(error, MachineNotFound)
            verdict = verdict_on(error)
            if verdict in (Verdict.AGAIN, Verdict.THROTTLED, Verdict.SPENT):
                self._generation += verdict is Verdict.SPENT
                self._wake.call_at = self._setbacks.next_call_at(verdict, now)
            else:
                self._wake_failed(verdict, error, now)

    @property
    def _called(self) -> bool:
        """Whether this wake has called for the machine to start, so that its going down may be the start's failure."""
        return self.state in WAKING and (self.busy or self._wake.settle_by > 0)

    def _came_down(self, machine: Machine, now: float) -> bool:
        """It was up, and is down before it was ready. Returns whether that is the failure of a start.

        What nobody has called for, or others have stopped, is merely asleep: whoever waits is served by the next start.
        """
        self._stops += self._called
        if machine.fault is None and self._stops <= STOPS_FORGIVEN:
            return False
        words = "the satellite stopped while starting"
        self._wake_failed(FAULTS[machine.fault], about(WakeFailed, words, machine), now)
        return True

    def _lost(self, machine: Machine, now: float) -> None:
        """It was launched, and is not there."""
        self._generation += 1
        words = "the satellite could not be created"
        if not machine.reason:
            machine = dataclasses.replace(machine, reason="it never appeared", hint="it never appeared")
        self._wake_failed(FAULTS[machine.fault], about(WakeFailed, words, machine), now)

    def _wake_failed(self, verdict: Verdict, error: BentpipeError, now: float) -> None:
        self._give_up(verdict, error, now)
        self._renewing = False
        self._move(S.FAILED if verdict is Verdict.BLOCKED else S.SLEEP, f"wake failed: {error}")

    def _give_up(self, verdict: Verdict, error: BentpipeError, now: float) -> None:
        """Remember the failure, and tell it to all who wait."""
        self._setbacks.remember(verdict, error, now)
        self._fail_all(self._setbacks.replay(now) or error)

    @property
    def _reason_is_known(self) -> bool:
        """Whether calls have failed since this wake began (or since nothing is known), and none has worked."""
        trouble = self._trouble
        if trouble.error is None:
            return False
        return self.state is S.UNKNOWN or (self.state in WAKING and trouble.last_at >= self._wake.began)

    @property
    def _patience_at(self) -> float:
        """When those who wait are told that every attempt fails."""
        in_vain = self.state in WAKING and not self._wake.came_up and self._reason_is_known
        return self._trouble.since + PATIENCE_S if in_vain else math.inf

    def _last_reason(self, words: str) -> WakeFailed:
        """Say `words`, and the last reason for which a call has failed."""
        error = self._trouble.error
        if error is None:
            return WakeFailed(words)
        return WakeFailed(
            f"{words}; the last reason: {error}", peer_hint=f"{words}; the last reason: {error.peer_hint}"
        )

    def _not_ready(self, after_s: float) -> WakeFailed:
        """Say that it was not ready in time, and what is known of why."""
        words = f"the satellite was not ready after {after_s:.0f} s"
        machine = self.machine
        if self._reason_is_known or machine is None:
            return self._last_reason(words)
        match machine.state:
            case M.RUNNING:
                port = f"port {machine.address.port}" if machine.address is not None else "its port"
                state = f"its machine runs, but {self._probe_words or f'{port} does not answer'}"
            case M.PENDING:
                state = "its machine is still starting"
            case M.STOPPING:
                state = "its machine is still going to sleep"
            case M.STOPPED | M.HIBERNATED | M.TERMINATED:
                state = "its start was accepted, and has not been seen yet" if self._called else "it was not started"
        found = about(WakeFailed, f"{words}: {state}", machine if self._up else None)
        return WakeFailed(str(found), peer_hint=found.peer_hint)

    def _overdue(self, now: float) -> None:
        """The wake deadline has passed. What is up, or may yet come up, is not said to be asleep."""
        wake = self._wake
        error = self._not_ready(self._rules.wake_deadline_s)
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
        self._probe_words = ""
        self._stops = 0
        self._setbacks.clear()
        self._start_trouble.worked()
        self._sleep.woke(now)
        if self._wake.measured:
            self._room.wake_took(now - self._wake.began)
        self._enter_operational("ready", now)
