"""Adds up the ledger: hours, money, wakes and waiting, for each satellite, each org, and all. Pure.

Only observed time counts. UNKNOWN hours are reported, but are in no sum of hours or money. OFFLINE and FAILED machines
would cost nothing if they were always on, so they save nothing either. Nor do machines of the reserve. Durations are what
the intervals really lasted.
"""

import dataclasses

from bentpipe.config.prices import PricesSection
from bentpipe.daemon.ledger.contract import LedgerSpan
from bentpipe.daemon.model import (
    RESERVE_ORG,
    BootPhase,
    Peaks,
    Resume,
    SatelliteKey,
    Suspicion,
    Waits,
    WakePhase,
)
from bentpipe.daemon.report.days import add_up
from bentpipe.daemon.report.durations import Durations, Spread
from bentpipe.daemon.report.tally import TOTAL, Tally, tallies_of

HOUR_S = 3600.0
NO_DURATIONS = Durations()


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
class _Sums:
    """The sums of some satellites, and what they cost."""

    tally: Tally = dataclasses.field(default_factory=Tally)
    cost: float = 0.0
    always_on: float = 0.0

    def add(self, other: "_Sums") -> None:
        self.tally.add(other.tally)
        self.cost += other.cost
        self.always_on += other.always_on


def summarise(span: LedgerSpan, prices: PricesSection | None) -> Report:
    """Add up what the ledger has of a span: the one query of `bentpipe report` and of every page that shows the same.

    Read the span by `Ledger.span`. A year of a million intervals takes a few tenths of a second here: outside the thread of
    a daemon's event loop. Sums that cannot be read are left out, and logged.
    """
    tallies = add_up(span.sums)
    for stretch in span.stretches:
        for key, tally in tallies_of(stretch.intervals, stretch.since_us, stretch.until_us).items():
            tallies.setdefault(key, Tally()).add(tally)
    everything, orgs, satellites = _Sums(), dict[str, _Sums](), dict[str, _Sums]()
    for key in sorted(tallies, key=lambda key: (key.org, key.name)):
        sums = _priced(key, tallies[key], prices)
        satellites[str(key)] = sums
        orgs.setdefault(key.org, _Sums()).add(sums)
        everything.add(sums)
    priced = prices is not None
    return Report(
        span.since_us,
        span.until_us,
        prices.currency if prices is not None else "",
        tuple(_summary(name, sums, priced=priced) for name, sums in satellites.items()),
        tuple(_summary(name, sums, priced=priced) for name, sums in orgs.items()),
        _summary("all", everything, priced=priced),
    )


def _priced(key: SatelliteKey, tally: Tally, prices: PricesSection | None) -> _Sums:
    cost = always_on = 0.0
    if prices is not None:
        own = prices.of(key.org, key.name)
        watched_h = (tally.awake_s + tally.asleep_s) / HOUR_S
        cost = tally.billed_s(prices.minimum_s) / HOUR_S * own.awake_hour + watched_h * own.always_hour
        always_on = watched_h * (own.awake_hour + own.always_hour)
    if key.org == RESERVE_ORG:
        # Nobody would have these machines always on: they save nothing, and what they cost is taken off the savings.
        tally.asleep_s = always_on = 0.0
    return _Sums(tally, cost, always_on)


def _summary(name: str, sums: _Sums, *, priced: bool) -> ReportLine:
    tally = sums.tally
    return ReportLine(
        name,
        tally.awake_s / HOUR_S,
        tally.asleep_s / HOUR_S,
        tally.unknown_s / HOUR_S,
        Money(sums.cost, sums.always_on, sums.always_on - sums.cost) if priced else None,
        len(tally.wake.get(TOTAL, NO_DURATIONS)),
        tally.failed,
        {each: tally.wake.get(each, NO_DURATIONS).spread() for each in (TOTAL, *(phase.value for phase in WakePhase))},
        tally.waits,
        dict(tally.woken_by.most_common()),
        {resume.value: tally.resumes[resume] for resume in Resume},
        {str(attempts): count for attempts, count in sorted(tally.start_attempts.items())},
        tally.peaks,
        tally.kills,
        tally.suspicion,
        {phase.value: tally.boot[phase].spread() for phase in BootPhase if phase in tally.boot},
    )
