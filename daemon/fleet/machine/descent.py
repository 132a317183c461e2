"""The part of the satellite's machine that puts it to sleep, and follows it down whoever wanted that. Pure."""

import math

from bentpipe.daemon.errors import ProviderError, SleepModeRefused, SleepVetoed, WakeFailed
from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.fleet.machine.core import Descent, about
from bentpipe.daemon.fleet.machine.messages import Lesson, SleepReason
from bentpipe.daemon.fleet.machine.rules import CLOSE_QUIET_S, STOPS_FORGIVEN, STUCK_STOPPING_S, UNHEEDED_STOP_S
from bentpipe.daemon.fleet.machine.setbacks import Verdict
from bentpipe.daemon.fleet.machine.wake import Waking
from bentpipe.daemon.model import Machine, MachineState, SatelliteState, SleepMode

S = SatelliteState
M = MachineState


class Descending(Waking):
    """Decides sleeps, and what their outcome means."""

    @property
    def _unused(self) -> bool:
        """Up, and no one to be seen but, if they do not count, quiet connections."""
        quiet = self._metered if self._rules.ends_quiet else 0
        return self.state is S.OPERATIONAL and self.leases == quiet and not self.busy

    @property
    def _may_sleep(self) -> bool:
        return self._unused and not self._keep_awake

    @property
    def _sleep_at(self) -> float:
        if self.leases:
            return max(self._sleep.sleep_at, self._sleep.idle_since + self._rules.quiet_window_s)
        return self._sleep.evictable_at if self._renewing else self._sleep.sleep_at

    def _begin_idle_sleep(self, now: float) -> None:
        if self._renewing and not self.leases:
            self._begin_sleep(SleepReason.RENEWED, now, SleepMode.STOP)
        else:
            self._begin_sleep(SleepReason.IDLE, now)

    def _begin_sleep(self, reason: SleepReason, now: float, mode: SleepMode | None = None) -> None:
        if self.machine is None:
            raise AssertionError("awake without a machine")
        if mode is None:
            mode, learned = self._sleep.choose_mode(self.machine, now)
            self._actions += learned
        self._descent = Descent(mode, pending=True, cut_at=now + CLOSE_QUIET_S)
        self._move(S.STOPPING, reason.value)
        if self.leases:
            self._actions.append(msg.EndQuiet())

    def _fall(self, machine: Machine, now: float) -> None:
        """Others stop it."""
        self._stops += self._called
        self._descent = Descent(None, dropped=True, force_at=now + STUCK_STOPPING_S)
        self._move(S.STOPPING, machine.reason or "stopped by others")

    def _drop(self, now: float) -> None:
        """It is seen going down in STOPPING."""
        self._descent.pending = False
        if not self._descent.dropped:
            self._descent.dropped = True
            self._descent.force_at = now + STUCK_STOPPING_S

    def _fell_asleep(self, machine: Machine, now: float) -> None:
        asked = self._descent.mode if self.state is S.STOPPING else None
        self._actions += self._sleep.fell_asleep(machine, asked, now)
        if machine.state is M.STOPPED:
            self._renewing = False
        self._move(S.SLEEP, machine.reason or machine.state.value)
        if asked is None and self._stops > STOPS_FORGIVEN:
            words = f"the satellite was stopped {self._stops} times while starting"
            self._give_up(Verdict.FAILED, about(WakeFailed, words, machine), now)

    def _stop_done(self, error: ProviderError | None, now: float) -> None:
        descent = self._descent
        if self.state is not S.STOPPING:
            return
        if error is None:
            descent.heed_by = now + UNHEEDED_STOP_S
            descent.force_at = now + STUCK_STOPPING_S
        elif isinstance(error, SleepModeRefused) and descent.mode is SleepMode.HIBERNATE:
            self._actions.append(self._sleep.refused(error, now))
            self._descent = Descent(SleepMode.STOP, pending=True, cut_at=now + CLOSE_QUIET_S)
        else:
            if isinstance(error, SleepVetoed):
                self._sleep.used(now)
            else:
                self._sleep.failed(error, now)
            self._call_off(f"sleep refused: {error}", now)

    def _call_off(self, cause: str, now: float) -> None:
        """Nothing was stopped by us: serve again, unless the machine goes down all the same."""
        descent = self._descent
        descent.pending = False
        if self._is(M.RUNNING) and not descent.dropped:
            self._enter_operational(cause, now)
        else:
            descent.heed_by = now
            descent.force_at = min(descent.force_at, now + STUCK_STOPPING_S)

    def _progress_descent(self, now: float) -> None:
        descent = self._descent
        if descent.pending:
            if self.waiting:
                self._sleep.used(now)
                self._call_off("somebody came", now)
            elif not self.leases and descent.mode is not None:
                descent.pending = False
                self._stop(descent.mode)
            elif now >= descent.cut_at:
                descent.cut_at = now + CLOSE_QUIET_S
                self._actions.append(msg.EndQuiet(cut=True))
        if self.state is not S.STOPPING or descent.pending or self.busy:
            return
        if self._up and (descent.dropped or self._is(M.PENDING) or now >= descent.heed_by):
            self._begin_wake("it is up again", now)
            self._progress_wake(now)
        elif self._is(M.STOPPING) and now >= self._force_at:
            self._descent = Descent(SleepMode.STOP, dropped=True, force_at=now + STUCK_STOPPING_S)
            self._actions.append(msg.Learned(Lesson.FORCED, f"after {STUCK_STOPPING_S:g} s"))
            self._stop(SleepMode.STOP, force=True)

    @property
    def _force_at(self) -> float:
        """When to cut it off: what others stop is theirs, until somebody waits for it."""
        return self._descent.force_at if self._descent.mode is not None or self.waiting else math.inf

    @property
    def _descent_deadline(self) -> float:
        if self._descent.pending:
            return self._descent.cut_at
        if self.busy:
            return math.inf
        return self._descent.heed_by if self._up else self._force_at

    def _stop(self, mode: SleepMode, *, force: bool = False) -> None:
        self.busy = True
        self._actions.append(msg.Stop(mode, force))
