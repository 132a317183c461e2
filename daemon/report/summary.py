"""Adds up the ledger: hours, money, wakes and waiting, for each satellite, each org, and all. Pure.

Only observed time counts. UNKNOWN hours are reported, but are in no sum of hours or money. OFFLINE and FAILED machines
would cost nothing if they were always on, so they save nothing either. Nor do machines of the reserve. Durations are what
the intervals really lasted.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from bentpipe.config.prices import PricesSection
from bentpipe.daemon.ledger.contract import Interval
from bentpipe.daemon.model import (
    NO_PEAKS,
    NO_SUSPICION,
    NO_WAITS,
    RESERVE_ORG,
    BootPhase,
    Peaks,
    Resume,
    SatelliteState,
    Suspicion,
    Waits,
    WakePhase,
)

S = SatelliteState

WAKING = (S.CREATING, S.STARTING)
BILLED = frozenset({S.CREATING, S.STARTING, S.OPERATIONAL, S.STOPPING, S.UPDATING, S.DESTROYING})
"""A machine that hibernates is billed until it is down. AWS's pages disagree, so this takes the more expensive reading."""
HOUR_S = 3600.0
TOTAL = "total"


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """The distribution of a duration, by nearest rank, in seconds."""

    count: int
    p50_s: float
    p95_s: float
    longest_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Money:
    """What was paid, and what a machine that is always on would have cost."""

    cost: float
    always_on: float
    saved: float


@dataclasses.dataclass(frozen=True, slots=True)
class ReportLine:
    """One line of the report. `saved_h` is against a machine that is always on; `wake` has TOTAL and each phase."""

    name: str
    awake_h: float
    saved_h: float
    unknown_h: float
    money: Money | None
    wakes: int
    failed_wakes: int
    wake: dict[str, Spread]
    waits: Waits
    woken_by: dict[str, int]
    resumes: dict[str, int]
    """Wakes, by whether the machine still had its memory: resumed, cold (booted anew), or unknown."""
    start_attempts: dict[str, int]
    """Wakes, failed ones included, by how often the provider was asked to start or launch the machine."""
    peaks: Peaks
    """The highest shares of 10 s in which tasks waited, in percent, as the responder told."""
    kills: int
    """Processes and steps of builds that were ended because memory ran out."""
    suspicion: Suspicion
    """The highest score of abuse, and its reasons."""
    boot: dict[str, Spread]
    """Of wakes that booted: the machine's uptime at which each phase of the boot was over."""


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The whole report; times in microseconds since the epoch."""

    since_us: int
    until_us: int
    currency: str
    satellites: tuple[ReportLine, ...]
    orgs: tuple[ReportLine, ...]
    everything: ReportLine


@dataclasses.dataclass(slots=True)
class _Tally:
    awake_s: float = 0.0
    asleep_s: float = 0.0
    unknown_s: float = 0.0
    cost: float = 0.0
    always_on: float = 0.0
    failed: int = 0
    durations: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    waits: Waits = NO_WAITS
    woken_by: Counter[str] = dataclasses.field(default_factory=Counter)
    resumes: Counter[Resume] = dataclasses.field(default_factory=Counter)
    start_attempts: Counter[int] = dataclasses.field(default_factory=Counter)
    peaks: Peaks = NO_PEAKS
    kills: int = 0
    suspicion: Suspicion = NO_SUSPICION
    boot: dict[BootPhase, list[float]] = dataclasses.field(default_factory=dict)

    def add(self, other: "_Tally") -> None:
        self.awake_s += other.awake_s
        self.asleep_s += other.asleep_s
        self.unknown_s += other.unknown_s
        self.cost += other.cost
        self.always_on += other.always_on
        self.failed += other.failed
        for name, durations in other.durations.items():
            self.durations.setdefault(name, []).extend(durations)
        self.waits += other.waits
        self.woken_by += other.woken_by
        self.resumes += other.resumes
        self.start_attempts += other.start_attempts
        self.peaks |= other.peaks
        self.kills += other.kills
        self.suspicion |= other.suspicion
        for phase, ends in other.boot.items():
            self.boot.setdefault(phase, []).extend(ends)


def spread_of(durations: Iterable[float]) -> Spread:
    """Sort durations into a Spread; all zero if there are none."""
    ordered = sorted(durations)
    if not ordered:
        return Spread(0, 0.0, 0.0, 0.0)
    p50, p95 = (ordered[math.ceil(len(ordered) * share) - 1] for share in (0.5, 0.95))
    return Spread(len(ordered), p50, p95, ordered[-1])


def summarise(intervals: Sequence[Interval], since_us: int, until_us: int, prices: PricesSection | None) -> Report:
    """Add up what the ledger returned for the span."""
    everything, orgs, satellites = _Tally(), dict[str, _Tally](), dict[str, _Tally]()
    for key, group in itertools.groupby(intervals, key=lambda interval: interval.key):
        chain = list(group)
        if all(interval.state is S.OFFLINE for interval in chain):
            continue
        tally = _tally(chain, since_us, until_us)
        if prices is not None:
            own = prices.of(key.org, key.name)
            billed_s = _billed_s(chain, since_us, until_us, prices.minimum_s)
            watched_h = (tally.awake_s + tally.asleep_s) / HOUR_S
            tally.cost = billed_s / HOUR_S * own.awake_hour + watched_h * own.always_hour
            tally.always_on = watched_h * (own.awake_hour + own.always_hour)
        if key.org == RESERVE_ORG:
            # Nobody would have these machines always on: they save nothing, and what they cost is taken off the savings.
            tally.asleep_s = tally.always_on = 0.0
        satellites[str(key)] = tally
        orgs.setdefault(key.org, _Tally()).add(tally)
        everything.add(tally)
    priced = prices is not None
    return Report(
        since_us,
        until_us,
        prices.currency if prices is not None else "",
        tuple(_summary(name, tally, priced=priced) for name, tally in satellites.items()),
        tuple(_summary(name, tally, priced=priced) for name, tally in orgs.items()),
        _summary("all", everything, priced=priced),
    )


def share_within(interval: Interval, since_us: int, until_us: int) -> float:
    """The share of the interval that lies in the span, by the wall clock."""
    whole_us = interval.to_us - interval.from_us
    if not whole_us:
        return float(since_us <= interval.from_us < until_us)
    return max(0, min(interval.to_us, until_us) - max(interval.from_us, since_us)) / whole_us


def _tally(chain: Sequence[Interval], since_us: int, until_us: int) -> _Tally:
    tally = _Tally()
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
            tally.waits += interval.facts.waits
            tally.peaks |= interval.facts.peaks
            tally.kills += interval.facts.kills
            tally.suspicion |= interval.facts.suspicion
            for phase, ended_s in interval.facts.boot:
                tally.boot.setdefault(phase, []).append(ended_s)
            if interval.state in WAKING and after.state not in WAKING and _is_ours(interval):
                _count_wake(tally, interval, after, attempts)
    return tally


def _is_ours(waking: Interval) -> bool:
    """Whether bentpipe woke it, and did not find it running or started by others."""
    return bool(waking.who or waking.facts.waits.clients or WakePhase.START in dict(waking.facts.phases))


def _count_wake(tally: _Tally, waking: Interval, after: Interval, attempts: int) -> None:
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
    tally.durations.setdefault(TOTAL, []).append(waking.elapsed_us / 1e6)
    for phase, seconds in waking.facts.phases:
        tally.durations.setdefault(phase.value, []).append(seconds)


def _billed_s(chain: Sequence[Interval], since_us: int, until_us: int, minimum_s: float) -> float:
    """Awake seconds. Each run, from waking to asleep, counts at least `minimum_s` if it began in the span."""
    billed_s = 0.0
    for awake, group in itertools.groupby(chain, key=lambda interval: interval.state in BILLED):
        run = list(group)
        if awake:
            run_s = sum(i.elapsed_us / 1e6 * share_within(i, since_us, until_us) for i in run)
            billed_s += max(run_s, minimum_s) if since_us <= run[0].from_us < until_us else run_s
    return billed_s


def _summary(name: str, tally: _Tally, *, priced: bool) -> ReportLine:
    return ReportLine(
        name,
        tally.awake_s / HOUR_S,
        tally.asleep_s / HOUR_S,
        tally.unknown_s / HOUR_S,
        Money(tally.cost, tally.always_on, tally.always_on - tally.cost) if priced else None,
        len(tally.durations.get(TOTAL, ())),
        tally.failed,
        {name: spread_of(tally.durations.get(name, ())) for name in (TOTAL, *(phase.value for phase in WakePhase))},
        tally.waits,
        dict(tally.woken_by.most_common()),
        {resume.value: tally.resumes[resume] for resume in Resume},
        {str(attempts): count for attempts, count in sorted(tally.start_attempts.items())},
        tally.peaks,
        tally.kills,
        tally.suspicion,
        {phase.value: spread_of(tally.boot[phase]) for phase in BootPhase if phase in tally.boot},
    )
