"""The sums of a satellite's chain of intervals over a span, which add up with those of other spans and satellites. Pure."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from bentpipe.daemon.ledger.contract import Interval
from bentpipe.daemon.model import (
    NO_PEAKS,
    NO_SUSPICION,
    NO_WAITS,
    BootPhase,
    Peaks,
    Resume,
    SatelliteKey,
    SatelliteState,
    Suspicion,
    Waits,
    WakePhase,
)
from bentpipe.daemon.report.durations import Durations

S = SatelliteState

WAKING = (S.CREATING, S.STARTING)
BILLED = frozenset({S.CREATING, S.STARTING, S.OPERATIONAL, S.STOPPING, S.UPDATING, S.DESTROYING})
"""A machine that hibernates is billed until it is down. AWS's pages disagree, so this takes the more expensive reading."""
TOTAL = "total"


@dataclasses.dataclass(slots=True)
class Tally:
    """Sums. `begun` are the billed runs that began in the span; `wake` has TOTAL and each phase of wakes that succeeded."""

    awake_s: float = 0.0
    asleep_s: float = 0.0
    unknown_s: float = 0.0
    begun: Durations = dataclasses.field(default_factory=Durations)
    failed: int = 0
    wake: dict[str, Durations] = dataclasses.field(default_factory=dict)
    waits: Waits = NO_WAITS
    woken_by: Counter[str] = dataclasses.field(default_factory=Counter)
    resumes: Counter[Resume] = dataclasses.field(default_factory=Counter)
    start_attempts: Counter[int] = dataclasses.field(default_factory=Counter)
    peaks: Peaks = NO_PEAKS
    kills: int = 0
    suspicion: Suspicion = NO_SUSPICION
    boot: dict[BootPhase, Durations] = dataclasses.field(default_factory=dict)

    def add(self, other: "Tally") -> None:
        """Add the sums of another span or satellite."""
        self.awake_s += other.awake_s
        self.asleep_s += other.asleep_s
        self.unknown_s += other.unknown_s
        self.begun.extend(other.begun)
        self.failed += other.failed
        for name, durations in other.wake.items():
            self.wake.setdefault(name, Durations()).extend(durations)
        self.waits += other.waits
        self.woken_by += other.woken_by
        self.resumes += other.resumes
        self.start_attempts += other.start_attempts
        self.peaks |= other.peaks
        self.kills += other.kills
        self.suspicion |= other.suspicion
        for phase, ends in other.boot.items():
            self.boot.setdefault(phase, Durations()).extend(ends)

    def billed_s(self, minimum_s: float) -> float:
        """Awake seconds. Each run, from waking to asleep, counts at least `minimum_s` if it began in the span."""
        return self.awake_s + self.begun.shortfall_s(minimum_s)


def share_within(interval: Interval, since_us: int, until_us: int) -> float:
    """The share of the interval that lies in the span, by the wall clock."""
    whole_us = interval.to_us - interval.from_us
    if not whole_us:
        return float(since_us <= interval.from_us < until_us)
    return max(0, min(interval.to_us, until_us) - max(interval.from_us, since_us)) / whole_us


def tallies_of(intervals: Iterable[Interval], since_us: int, until_us: int) -> dict[SatelliteKey, Tally]:
    """Add up the intervals of each satellite, as `tally_of` does. One that was never configured in the span has no sums."""
    tallies = {}
    for key, group in itertools.groupby(intervals, key=lambda interval: interval.key):
        chain = list(group)
        within = [each for each in chain if each.to_us >= since_us and each.from_us <= until_us]
        if any(interval.state is not S.OFFLINE for interval in within):
            tallies[key] = tally_of(chain, since_us, until_us)
    return tallies


def tally_of(chain: Sequence[Interval], since_us: int, until_us: int) -> Tally:
    """Add up a satellite's intervals within a span. `chain` has all that touch it, so also the one that follows the last.

    What of it lies outside the span tells how long runs and wakes are that go over an end of the span.
    """
    tally = Tally()
    attempts = 0  # of all states of one wake: a launched machine is first CREATING, then STARTING
    for interval, after in itertools.zip_longest(chain, chain[1:]):
        attempts = attempts + interval.facts.start_attempts if interval.state in WAKING else 0
        lasted_s = interval.elapsed_us / 1e6 * share_within(interval, since_us, until_us)
        if interval.state in BILLED:
            tally.awake_s += lasted_s
        elif interval.state is S.SLEEP:
            tally.asleep_s += lasted_s
        elif interval.state is S.UNKNOWN:
            tally.unknown_s += lasted_s
        if after is not None and since_us <= interval.to_us < until_us:
            _add_facts(tally, interval)
            if interval.state in WAKING and after.state not in WAKING and is_ours(interval):
                _count_wake(tally, interval, after, attempts)
    _add_runs(tally, chain, since_us, until_us)
    return tally


def _add_facts(tally: Tally, interval: Interval) -> None:
    tally.waits += interval.facts.waits
    tally.peaks |= interval.facts.peaks
    tally.kills += interval.facts.kills
    tally.suspicion |= interval.facts.suspicion
    for phase, ended_s in interval.facts.boot:
        tally.boot.setdefault(phase, Durations()).add(ended_s)


def is_ours(waking: Interval) -> bool:
    """Whether bentpipe woke it, and did not find it running or started by others."""
    return bool(waking.who or waking.facts.waits.clients or WakePhase.START in dict(waking.facts.phases))


def _count_wake(tally: Tally, waking: Interval, after: Interval, attempts: int) -> None:
    if after.state is S.UNKNOWN:
        return  # the end was not observed
    if waking.who:
        tally.woken_by[waking.who] += 1
    if attempts > 0:  # a row of an older daemon does not say
        tally.start_attempts[attempts] += 1
    if after.state is not S.OPERATIONAL:
        tally.failed += 1
        return
    tally.resumes[after.facts.resume] += 1
    tally.wake.setdefault(TOTAL, Durations()).add(waking.elapsed_us / 1e6)
    for phase, seconds in waking.facts.phases:
        tally.wake.setdefault(phase.value, Durations()).add(seconds)


def _add_runs(tally: Tally, chain: Sequence[Interval], since_us: int, until_us: int) -> None:
    """Each run that began in the span, with its whole length: one that goes over the end is not short for it."""
    for awake, group in itertools.groupby(chain, key=lambda interval: interval.state in BILLED):
        run = list(group)
        if awake and since_us <= run[0].from_us < until_us:
            tally.begun.add(sum(interval.elapsed_us / 1e6 for interval in run))
