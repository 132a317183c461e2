"""When the satellite may sleep, and in which way, as far as this machine's past shows it. Pure.

The state machine knows whether a client uses the satellite. This class keeps the times and what was found.
"""

from bentpipe.daemon.errors import ProviderError, SleepTooEarly
from bentpipe.daemon.fleet.machine.messages import ProblemFound, SleepProblem
from bentpipe.daemon.fleet.machine.rules import (
    SLEEP_PROBLEM_S,
    SLEEP_RETRY_FIRST_S,
    SLEEP_RETRY_MOST_S,
    VAIN_HIBERNATIONS,
    Rules,
    backed_off,
)
from bentpipe.daemon.model import Machine, MachineState, Resume, SleepMode


class SleepPolicy:
    """Times are seconds of one monotonic clock."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.idle_since = 0.0
        self.client_at = 0.0
        """When a client used it last, or it became operational; builds alone do not count."""
        self._awake_since = 0.0
        self._not_before = 0.0
        self._failures = 0
        self._mode = rules.sleep_mode
        self._stops_since = 0.0
        self._vain = 0
        self.slept_in: MachineState | None = None
        """How it was last asleep."""

    def follow(self, rules: Rules) -> None:
        """Other rules hold from now on. Another sleep mode is tried, whatever was found about the old one."""
        if rules.sleep_mode is not self._rules.sleep_mode:
            self._mode = rules.sleep_mode
            self._vain = 0
        self._rules = rules

    def woke(self, now: float) -> None:
        """It is operational."""
        self.idle_since = self.client_at = self._awake_since = now

    def used(self, now: float) -> None:
        """A client has used it until now."""
        self.idle_since = self.client_at = now

    def built(self, now: float) -> None:
        """A build has run on it until now."""
        self.idle_since = now

    @property
    def evictable_at(self) -> float:
        """From then on it may be put to sleep for another satellite, if no client uses it."""
        return max(self._awake_since + self._rules.min_awake_s, self._not_before)

    @property
    def sleep_at(self) -> float:
        """When it sleeps if no client uses it."""
        return max(self.idle_since + self._rules.sleep_after_s, self.evictable_at)

    def choose_mode(self, machine: Machine, now: float) -> tuple[SleepMode, list[ProblemFound]]:
        """Return how to put it to sleep, and what was found."""
        if self._mode is not self._rules.sleep_mode and now >= self._stops_since + SLEEP_PROBLEM_S:
            self._mode = self._rules.sleep_mode
            self._vain = 0
        if self._mode is SleepMode.HIBERNATE and not machine.can_hibernate:
            self._stop_from_now_on(now)
            return self._mode, [ProblemFound(SleepProblem.CANNOT_HIBERNATE, machine.reason)]
        return self._mode, []

    def refused(self, error: ProviderError, now: float) -> ProblemFound:
        """Hibernation was refused, so it is not tried for SLEEP_PROBLEM_S."""
        self._stop_from_now_on(now)
        return ProblemFound(SleepProblem.HIBERNATE_REFUSED, str(error))

    def failed(self, error: ProviderError, now: float) -> None:
        """It could not be put to sleep now. It is tried again later."""
        if isinstance(error, SleepTooEarly):
            self._not_before = now + self._rules.traits.too_early_retry_s
        else:
            self._not_before = now + backed_off(SLEEP_RETRY_FIRST_S, SLEEP_RETRY_MOST_S, self._failures)
            self._failures += 1

    def fell_asleep(self, machine: Machine, asked: SleepMode | None, now: float) -> list[ProblemFound]:
        """It sleeps. `asked` is the mode that we asked for; None if others put it to sleep. Returns what was found."""
        self.slept_in = machine.state
        if asked is not None:
            self._failures = 0
        if asked is SleepMode.HIBERNATE and machine.state is MachineState.STOPPED:
            return self._kept_nothing(ProblemFound(SleepProblem.FELL_BACK, machine.reason), now)
        return []

    def resume_detected(self, resume: Resume, now: float) -> list[ProblemFound]:
        """It is known whether the last sleep has kept its memory. Returns what was found."""
        if resume is Resume.RESUMED:
            self._vain = 0
        elif resume is Resume.COLD and self.slept_in is MachineState.HIBERNATED:
            return self._kept_nothing(ProblemFound(SleepProblem.COLD_RESUME, ""), now)
        return []

    def resumed_unreachable(self, now: float) -> list[ProblemFound]:
        """It has resumed and cannot be reached, so its memory is given up. Returns what was found."""
        return self._kept_nothing(ProblemFound(SleepProblem.UNREACHABLE_RESUME, ""), now)

    def reset(self) -> None:
        """Forget what was learned, so that the configuration decides again."""
        self._mode = self._rules.sleep_mode
        self._vain = self._failures = 0
        self._not_before = 0.0

    def _stop_from_now_on(self, now: float) -> None:
        self._mode = SleepMode.STOP
        self._stops_since = now

    def _kept_nothing(self, found: ProblemFound, now: float) -> list[ProblemFound]:
        self._vain += 1
        if self._vain >= VAIN_HIBERNATIONS:
            self._stop_from_now_on(now)
            words = f"{found.words}; {self._vain} times in a row: for {SLEEP_PROBLEM_S / 3600:g} h it is stopped"
            words = words.removeprefix("; ")
            return [ProblemFound(found.problem, words)]
        return [found]
