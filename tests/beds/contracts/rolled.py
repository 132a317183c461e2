"""The laws of past days as tests, for every ledger that keeps sums: a report says the same by sums as by intervals.

A test module subclasses `RolledContract` and gives a fixture `books`: the same ledger, opened as often as a test likes.
"""

import dataclasses
import random
from collections.abc import Callable

import pytest

from beds.contracts.ledger import ALWAYS, check_laws
from bentpipe.config.prices import PricesSection
from bentpipe.config.store import StoreSection
from bentpipe.daemon.ledger.contract import (
    DAY_US,
    SETTLE_US,
    Interval,
    Ledger,
    LedgerSpan,
    RolledLedger,
    RolledState,
    Stamp,
    StampedTransition,
)
from bentpipe.daemon.model import (
    BootPhase,
    Resume,
    SatelliteKey,
    SatelliteState,
    StateFacts,
    Suspicion,
    Transition,
    Waits,
    WakePhase,
)
from bentpipe.daemon.report.days import write_day
from bentpipe.daemon.report.durations import Durations
from bentpipe.daemon.report.summary import Report, summarise
from bentpipe.daemon.report.tally import TOTAL, Tally
from bentpipe.daemon.service.rolling import roll_up_step

S = SatelliteState
KEYS = [SatelliteKey("acme", "a"), SatelliteKey("acme", "b"), SatelliteKey("other", "c")]
CYCLE = (S.SLEEP, S.STARTING, S.OPERATIONAL, S.STOPPING)
BEGIN_US = 1_780_000_000_000_000 // DAY_US * DAY_US + 3_000_000_000
DAYS = 6
PRICES = PricesSection(awake_hour=1.0, always_hour=0.1, minimum=60)


def stamp(wall_us: int) -> Stamp:
    return Stamp(wall_us, wall_us, "boot")


def facts_of(state: SatelliteState, chance: random.Random) -> StateFacts:
    if state is S.STARTING:
        wait_s = chance.uniform(0, 30)
        return StateFacts(
            phases=((WakePhase.START, chance.uniform(1, 9)),),
            waits=Waits(2, 2 * wait_s, wait_s),
            start_attempts=1,
            boot=((BootPhase.KERNEL, chance.uniform(1, 4)),),
        )
    if state is S.OPERATIONAL:
        suspicion = Suspicion(chance.randrange(90), ("mines",))
        return StateFacts(resume=chance.choice(list(Resume)), kills=chance.randrange(3), suspicion=suspicion)
    return StateFacts()


@dataclasses.dataclass(frozen=True)
class Books:
    """A ledger: opened to record, and to keep sums. `settings` are what [store] says beside `detail` and `keep`."""

    open: Callable[[], Ledger]
    open_rolled: Callable[[], RolledLedger]
    settings: dict[str, str]
    gap_us: int = 7_200_000_000
    """Longest time between two changes of a satellite. A store that is slow in tests gets fewer changes."""

    def section(self, *, detail_days: int = 14, keep_days: int = 0) -> StoreSection:
        return StoreSection.model_validate(
            {**self.settings, "detail": detail_days * 86_400, "keep": keep_days * 86_400}
        )

    async def span(self, since_us: int, until_us: int) -> LedgerSpan:
        ledger = self.open()
        try:
            return await ledger.span(since_us, until_us)
        finally:
            await ledger.aclose()

    async def report(self, since_us: int, until_us: int, prices: PricesSection | None = PRICES) -> Report:
        return summarise(await self.span(since_us, until_us), prices)

    async def intervals(self) -> list[Interval]:
        ledger = self.open()
        try:
            return await ledger.intervals(*ALWAYS)
        finally:
            await ledger.aclose()

    async def roll_up(self, now_us: int, section: StoreSection) -> None:
        """Until nothing is due any more."""
        rolled = self.open_rolled()
        while await roll_up_step(rolled, section, now_us):
            pass


async def fill(books: Books) -> int:
    """Some days of satellites that wake, sleep and fail. Returns their end."""
    ledger = books.open()
    chance = random.Random(7)
    await ledger.begin(KEYS, stamp(BEGIN_US))
    moves: list[tuple[int, SatelliteKey, SatelliteState, SatelliteState]] = []
    for key in KEYS:
        at, state = BEGIN_US, S.UNKNOWN
        while at < BEGIN_US + DAYS * DAY_US:
            following = CYCLE[(CYCLE.index(state) + 1) % 4] if state in CYCLE else S.SLEEP
            if state is S.STARTING and chance.random() < 0.1:
                following = S.FAILED
            moves.append((at := at + chance.randrange(1_000_000, books.gap_us), key, state, following))
            state = following
    moves.sort(key=lambda move: move[0])
    told = [
        StampedTransition(
            serial, stamp(at), Transition(key, before, after, 0.0, "cause", who="ci", facts=facts_of(before, chance))
        )
        for serial, (at, key, before, after) in enumerate(moves, 1)
    ]
    await ledger.record(told)
    end_us = moves[-1][0] + 1
    await ledger.beat(stamp(end_us))
    await ledger.aclose()
    return end_us


def leaves(value: object, at: str = "") -> dict[str, object]:
    """Every value of a report by its path, without those of which rolled days know only 1 %."""
    if isinstance(value, dict):
        items = [(str(key), inner) for key, inner in value.items() if key not in {"p50_s", "p95_s"}]
    elif isinstance(value, list | tuple):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return {at: value}
    return {path: leaf for key, inner in items for path, leaf in leaves(inner, f"{at}/{key}").items()}


def check_same(after: Report, before: Report) -> None:
    """All is the same but percentiles, which may be 1 % off."""
    found, wanted = leaves(dataclasses.asdict(after)), leaves(dataclasses.asdict(before))
    assert found.keys() == wanted.keys()
    for at, leaf in wanted.items():
        assert found[at] == (pytest.approx(leaf, rel=1e-6, abs=1e-4) if isinstance(leaf, float) else leaf), at
    for line, exact in zip(after.satellites, before.satellites, strict=True):
        for phase, spread in line.wake.items():
            assert spread.p50_s == pytest.approx(exact.wake[phase].p50_s, rel=0.0101)
            assert spread.p95_s == pytest.approx(exact.wake[phase].p95_s, rel=0.0101)


class RolledContract:
    @pytest.mark.parametrize("detail_days", [0, 2])
    async def test_a_report_says_the_same_of_days_that_are_rolled_up(self, books: Books, detail_days: int) -> None:
        end_us = await fill(books)
        first_day = BEGIN_US // DAY_US * DAY_US
        within_us = first_day + 4 * DAY_US + 47_000_000_000  # of this day there are intervals
        begins = (first_day, first_day + 2 * DAY_US, first_day + 5 * DAY_US, within_us)
        spans = [(since_us, end_us) for since_us in begins]
        before = [await books.report(*span) for span in spans]
        all_before = await books.intervals()
        await books.roll_up(end_us, books.section(detail_days=detail_days))
        left = await books.intervals()
        check_laws(left, end_us)
        assert left == all_before if not detail_days else len(left) < len(all_before) * 0.7
        for span, report in zip(spans, before, strict=True):
            read = await books.span(*span)
            assert read.sums or span[0] > first_day + 4 * DAY_US
            check_same(summarise(read, PRICES), report)

    async def test_a_span_that_begins_within_a_rolled_day_counts_the_day_whole(self, books: Books) -> None:
        end_us = await fill(books)
        await books.roll_up(end_us, books.section(detail_days=1))
        day_us = BEGIN_US // DAY_US * DAY_US + 2 * DAY_US
        report = await books.report(day_us + 1_000_000, end_us)
        assert report.since_us == day_us
        assert report.satellites == (await books.report(day_us, end_us)).satellites

    async def test_a_short_run_over_midnight_is_billed_for_one_minimum(self, books: Books) -> None:
        """Ten seconds before midnight it wakes, and it is awake for a minute."""
        midnight_us = BEGIN_US // DAY_US * DAY_US + DAY_US
        ledger = books.open()
        await ledger.begin(KEYS[:1], stamp(BEGIN_US))
        moves = [(-10, S.UNKNOWN, S.STARTING), (20, S.STARTING, S.OPERATIONAL), (50, S.OPERATIONAL, S.SLEEP)]
        for serial, (at_s, before, after) in enumerate(moves, 1):
            told = Transition(KEYS[0], before, after, 0.0, "cause", who="ci")
            await ledger.record([StampedTransition(serial, stamp(midnight_us + at_s * 1_000_000), told)])
        end_us = midnight_us + 3 * DAY_US
        await ledger.beat(stamp(end_us))
        await ledger.aclose()
        exact = await books.report(BEGIN_US, end_us)
        await books.roll_up(end_us, books.section())
        (line,) = (await books.report(BEGIN_US, end_us)).satellites
        assert line.money is not None
        assert line.money == exact.satellites[0].money
        assert line.wakes == 1

    async def test_a_day_is_rolled_up_once(self, books: Books) -> None:
        await fill(books)
        rolled = books.open_rolled()
        day_us = BEGIN_US // DAY_US * DAY_US
        assert await rolled.rolled() == RolledState(day_us, day_us)
        await rolled.roll_up(day_us, {KEYS[0]: "first"})
        await rolled.roll_up(day_us, {KEYS[0]: "second"})
        assert [each.sums for each in await rolled.days(*ALWAYS)] == ["first"]
        assert await rolled.rolled() == RolledState(day_us + DAY_US, day_us)
        await rolled.clear(day_us + 9 * DAY_US)
        left = await books.intervals()
        assert min(each.to_us for each in left) > day_us + DAY_US, "no more is deleted than was added up"
        assert await rolled.rolled() == RolledState(day_us + DAY_US, day_us + DAY_US)

    async def test_a_day_is_added_up_when_all_of_it_is_recorded(self, books: Books) -> None:
        """The daemon's last heartbeat counts, and not the clock: what it has not recorded yet may be of that day."""
        ledger, rolled = books.open(), books.open_rolled()
        day_us = BEGIN_US // DAY_US * DAY_US
        await ledger.begin(KEYS, stamp(BEGIN_US))
        await ledger.beat(stamp(day_us + DAY_US + SETTLE_US - 1))
        assert not await roll_up_step(rolled, books.section(), day_us + 9 * DAY_US)
        await ledger.beat(stamp(day_us + DAY_US + SETTLE_US))
        assert not await roll_up_step(rolled, books.section(), day_us + DAY_US)
        assert await roll_up_step(rolled, books.section(), day_us + 9 * DAY_US)
        await ledger.aclose()

    async def test_days_are_forgotten(self, books: Books) -> None:
        end_us = await fill(books)
        await books.roll_up(end_us, books.section(detail_days=1))
        rolled = books.open_rolled()
        days = len(await rolled.days(*ALWAYS))
        await roll_up_step(rolled, books.section(detail_days=1, keep_days=3), end_us)
        kept = await rolled.days(*ALWAYS)
        assert 0 < len(kept) < days
        assert min(each.day_us for each in kept) >= end_us - 3 * DAY_US - DAY_US

    async def test_an_empty_ledger_has_no_day(self, books: Books) -> None:
        rolled = books.open_rolled()
        assert await rolled.rolled() is None
        assert not await roll_up_step(rolled, books.section(detail_days=1), BEGIN_US)

    async def test_a_clock_that_steps_back_takes_sums_back(self, books: Books) -> None:
        """The days after the new time are added up again, with what happens now; deleted days stay as they are."""
        end_us = await fill(books)
        await books.roll_up(end_us, books.section(detail_days=3))
        ledger, rolled = books.open(), books.open_rolled()
        state = await rolled.rolled()
        assert state is not None
        back_us = end_us - 2 * DAY_US
        await ledger.begin(KEYS, Stamp(back_us, end_us, "boot"))
        assert await rolled.rolled() == RolledState(back_us // DAY_US * DAY_US, state.cleared_us)
        assert max(each.day_us for each in await rolled.days(*ALWAYS)) < back_us // DAY_US * DAY_US
        later_us = back_us + 2 * DAY_US
        await ledger.beat(Stamp(later_us, end_us + 2 * DAY_US, "boot"))
        since_us = back_us // DAY_US * DAY_US - DAY_US
        exact = await books.report(since_us, later_us)
        await ledger.aclose()
        await books.roll_up(later_us, books.section(detail_days=0))
        assert len((await books.span(since_us, later_us)).sums) > len(KEYS)
        check_same(await books.report(since_us, later_us), exact)
        ledger = books.open()
        await ledger.begin(KEYS, Stamp(BEGIN_US, end_us + 3 * DAY_US, "boot"))
        assert await books.open_rolled().rolled() == RolledState(state.cleared_us, state.cleared_us)
        await ledger.aclose()


FIRST_US = 20_003 * DAY_US
"""A day with which no run of days begins."""


class RunsContract:
    """`DAYS` days of which only the sums are left, each different."""

    DAYS = 300

    async def fill(self, books: Books) -> None:
        ledger, rolled = books.open(), books.open_rolled()
        await ledger.begin(KEYS[:2], Stamp(FIRST_US, FIRST_US, "boot"))
        await ledger.beat(Stamp(FIRST_US + self.DAYS * DAY_US, self.DAYS * DAY_US, "boot"))
        await rolled.rolled()
        for number in range(self.DAYS):
            keys = KEYS[:2] if number % 3 else KEYS[:1]
            tally = Tally(awake_s=number + 0.25, failed=number % 2, wake={TOTAL: Durations([1.0 + number])})
            await rolled.roll_up(FIRST_US + number * DAY_US, {key: write_day(tally) for key in keys})
        await rolled.clear(FIRST_US + self.DAYS * DAY_US)
        await ledger.aclose()

    async def add_runs(self, books: Books) -> None:
        await books.roll_up(FIRST_US + self.DAYS * DAY_US, books.section(detail_days=0))

    def spans(self) -> list[tuple[int, int]]:
        days = self.DAYS
        whole = [(0, days), (0, 1), (1, 5), (13, days - 6), (29, 29 + 64), (days - 1, days), (5, days - 1)]
        return [(FIRST_US + begin * DAY_US, FIRST_US + end * DAY_US) for begin, end in whole]

    async def test_runs_say_the_same_as_days(self, books: Books) -> None:
        await self.fill(books)
        before = [await books.report(*span, None) for span in self.spans()]
        rows = [len((await books.span(*span)).sums) for span in self.spans()]
        await self.add_runs(books)
        for span, report in zip(self.spans(), before, strict=True):
            assert await books.report(*span, None) == report
        assert len((await books.span(*self.spans()[0])).sums) < 50 < rows[0]

    async def test_days_that_are_forgotten_leave_what_is_kept(self, books: Books) -> None:
        """A run of which some days are forgotten is not used; its other days are."""
        await self.fill(books)
        await self.add_runs(books)
        rolled = books.open_rolled()
        await rolled.forget_days(FIRST_US + 7 * DAY_US)
        by_day = await rolled.days(*ALWAYS)
        found = await books.report(FIRST_US, FIRST_US + self.DAYS * DAY_US, None)
        assert found.everything.wakes == len(by_day) > self.DAYS
