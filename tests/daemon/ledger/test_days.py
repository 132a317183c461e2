"""Days of the ledger of which only the sums are left: a report says the same as before, and nothing is counted twice."""

import dataclasses
import json
import random
import sqlite3
from pathlib import Path

import pytest

from beds.contracts.ledger import ALWAYS, check_laws
from bentpipe.config.model import StoreSection
from bentpipe.config.prices import PricesSection
from bentpipe.daemon.ledger.contract import (
    DAY_US,
    SETTLE_US,
    Interval,
    RolledState,
    Stamp,
    StampedTransition,
)
from bentpipe.daemon.ledger.sqlite import SqliteLedger
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
from bentpipe.daemon.report.days import read_day, write_day
from bentpipe.daemon.report.durations import Durations
from bentpipe.daemon.report.summary import Report, summarise
from bentpipe.daemon.service.ledger_reading import read_span
from bentpipe.daemon.service.rolling import roll_up_step
from bentpipe.daemon.store.malformed import MalformedRow

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


async def fill(path: Path) -> int:
    """Some days of satellites that wake, sleep and fail. Returns their end."""
    ledger = SqliteLedger(path)
    chance = random.Random(7)
    await ledger.begin(KEYS, stamp(BEGIN_US))
    moves: list[tuple[int, SatelliteKey, SatelliteState, SatelliteState]] = []
    for key in KEYS:
        at, state = BEGIN_US, S.UNKNOWN
        while at < BEGIN_US + DAYS * DAY_US:
            following = CYCLE[(CYCLE.index(state) + 1) % 4] if state in CYCLE else S.SLEEP
            if state is S.STARTING and chance.random() < 0.1:
                following = S.FAILED
            moves.append((at := at + chance.randrange(1_000_000, 7_200_000_000), key, state, following))
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


def report_of(path: Path, since_us: int, until_us: int) -> Report:
    return summarise(read_span(StoreSection(path=path), since_us, until_us), PRICES)


def leaves(value: object, at: str = "") -> dict[str, object]:
    """Every value of a report by its path, without those of which rolled days know only 1 %."""
    if isinstance(value, dict):
        items = [(str(key), inner) for key, inner in value.items() if key not in {"p50_s", "p95_s"}]
    elif isinstance(value, list | tuple):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return {at: value}
    return {path: leaf for key, inner in items for path, leaf in leaves(inner, f"{at}/{key}").items()}


async def roll_up_all(path: Path, now_us: int, section: StoreSection) -> None:
    ledger = SqliteLedger(path)
    while await roll_up_step(ledger, section, now_us):
        pass
    await ledger.aclose()


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


async def all_intervals(path: Path) -> list[Interval]:
    reader = SqliteLedger(path, read_only=True)
    try:
        return await reader.intervals(*ALWAYS)
    finally:
        await reader.aclose()


@pytest.mark.parametrize("detail_days", [0, 2])
async def test_a_report_says_the_same_of_days_that_are_rolled_up(tmp_path: Path, detail_days: int) -> None:
    path = tmp_path / "ledger.sqlite"
    end_us = await fill(path)
    first_day = BEGIN_US // DAY_US * DAY_US
    within_us = first_day + 4 * DAY_US + 47_000_000_000  # of this day there are intervals
    spans = [(since_us, end_us) for since_us in (first_day, first_day + 2 * DAY_US, first_day + 5 * DAY_US, within_us)]
    before = [report_of(path, *span) for span in spans]
    all_before = await all_intervals(path)
    await roll_up_all(path, end_us, StoreSection(path=path, detail=detail_days * 86_400))
    left = await all_intervals(path)
    check_laws(left, end_us)
    assert left == all_before if not detail_days else len(left) < len(all_before) * 0.7
    for span, report in zip(spans, before, strict=True):
        read = read_span(StoreSection(path=path), *span)
        assert read.sums or span[0] > first_day + 4 * DAY_US
        check_same(summarise(read, PRICES), report)


async def test_a_span_that_begins_within_a_rolled_day_counts_the_day_whole(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    end_us = await fill(path)
    await roll_up_all(path, end_us, StoreSection(path=path, detail=86_400))
    day_us = BEGIN_US // DAY_US * DAY_US + 2 * DAY_US
    report = report_of(path, day_us + 1_000_000, end_us)
    assert report.since_us == day_us
    assert report.satellites == report_of(path, day_us, end_us).satellites


async def test_a_short_run_over_midnight_is_billed_for_one_minimum(tmp_path: Path) -> None:
    """Ten seconds before midnight it wakes, and it is awake for a minute."""
    path = tmp_path / "ledger.sqlite"
    midnight_us = BEGIN_US // DAY_US * DAY_US + DAY_US
    ledger = SqliteLedger(path)
    await ledger.begin(KEYS[:1], stamp(BEGIN_US))
    moves = [(-10, S.UNKNOWN, S.STARTING), (20, S.STARTING, S.OPERATIONAL), (50, S.OPERATIONAL, S.SLEEP)]
    for serial, (at_s, before, after) in enumerate(moves, 1):
        told = Transition(KEYS[0], before, after, 0.0, "cause", who="ci")
        await ledger.record([StampedTransition(serial, stamp(midnight_us + at_s * 1_000_000), told)])
    end_us = midnight_us + 3 * DAY_US
    await ledger.beat(stamp(end_us))
    await ledger.aclose()
    exact = report_of(path, BEGIN_US, end_us)
    await roll_up_all(path, end_us, StoreSection(path=path))
    (line,) = report_of(path, BEGIN_US, end_us).satellites
    assert line.money is not None
    assert line.money == exact.satellites[0].money
    assert line.wakes == 1


async def test_a_day_is_rolled_up_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    await fill(path)
    ledger = SqliteLedger(path)
    day_us = BEGIN_US // DAY_US * DAY_US
    assert await ledger.rolled() == RolledState(day_us, day_us)
    await ledger.roll_up(day_us, {KEYS[0]: "first"})
    await ledger.roll_up(day_us, {KEYS[0]: "second"})
    assert [each.sums for each in await ledger.days(*ALWAYS)] == ["first"]
    assert await ledger.rolled() == RolledState(day_us + DAY_US, day_us)
    await ledger.clear(day_us + 9 * DAY_US)
    left = await ledger.intervals(*ALWAYS)
    assert min(each.to_us for each in left) > day_us + DAY_US, "no more is deleted than was added up"
    assert await ledger.rolled() == RolledState(day_us + DAY_US, day_us + DAY_US)
    await ledger.aclose()


async def test_a_day_is_added_up_when_all_of_it_is_recorded(tmp_path: Path) -> None:
    """The daemon's last heartbeat counts, and not the clock: what it has not recorded yet may be of that day."""
    path = tmp_path / "ledger.sqlite"
    ledger = SqliteLedger(path)
    day_us = BEGIN_US // DAY_US * DAY_US
    await ledger.begin(KEYS, stamp(BEGIN_US))
    await ledger.beat(stamp(day_us + DAY_US + SETTLE_US - 1))
    assert not await roll_up_step(ledger, StoreSection(), day_us + 9 * DAY_US)
    await ledger.beat(stamp(day_us + DAY_US + SETTLE_US))
    assert not await roll_up_step(ledger, StoreSection(), day_us + DAY_US)
    assert await roll_up_step(ledger, StoreSection(), day_us + 9 * DAY_US)
    await ledger.aclose()


async def test_days_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    end_us = await fill(path)
    await roll_up_all(path, end_us, StoreSection(path=path, detail=86_400))
    ledger = SqliteLedger(path)
    days = len(await ledger.days(*ALWAYS))
    await roll_up_step(ledger, StoreSection(path=path, detail=86_400, keep=3 * 86_400), end_us)
    kept = await ledger.days(*ALWAYS)
    assert 0 < len(kept) < days
    assert min(each.day_us for each in kept) >= end_us - 3 * DAY_US - DAY_US
    await ledger.aclose()


async def test_an_empty_ledger_has_no_day(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    assert await ledger.rolled() is None
    assert not await roll_up_step(ledger, StoreSection(detail=86_400), BEGIN_US)
    await ledger.aclose()


async def test_a_clock_that_steps_back_takes_sums_back(tmp_path: Path) -> None:
    """The days after the new time are added up again, with what happens now; deleted days stay as they are."""
    path = tmp_path / "ledger.sqlite"
    end_us = await fill(path)
    section = StoreSection(path=path, detail=3 * 86_400)
    await roll_up_all(path, end_us, section)
    ledger = SqliteLedger(path)
    state = await ledger.rolled()
    assert state is not None
    back_us = end_us - 2 * DAY_US
    await ledger.begin(KEYS, Stamp(back_us, end_us, "boot"))
    assert await ledger.rolled() == RolledState(back_us // DAY_US * DAY_US, state.cleared_us)
    assert max(each.day_us for each in await ledger.days(*ALWAYS)) < back_us // DAY_US * DAY_US
    later_us = back_us + 2 * DAY_US
    await ledger.beat(Stamp(later_us, end_us + 2 * DAY_US, "boot"))
    since_us = back_us // DAY_US * DAY_US - DAY_US
    exact = report_of(path, since_us, later_us)
    await ledger.aclose()
    await roll_up_all(path, later_us, StoreSection(path=path, detail=0))
    assert len(read_span(section, since_us, later_us).sums) > len(KEYS)
    check_same(report_of(path, since_us, later_us), exact)
    ledger = SqliteLedger(path)
    await ledger.begin(KEYS, Stamp(BEGIN_US, end_us + 3 * DAY_US, "boot"))
    assert await ledger.rolled() == RolledState(state.cleared_us, state.cleared_us)
    await ledger.aclose()


async def test_sums_that_cannot_be_read_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ledger.sqlite"
    end_us = await fill(path)
    await roll_up_all(path, end_us, StoreSection(path=path, detail=86_400))
    whole = report_of(path, BEGIN_US, end_us)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE day SET sums = '{\"wake\": 3}' WHERE day_us = (SELECT min(day_us) FROM day)")
    connection.close()
    spoiled = report_of(path, BEGIN_US, end_us)
    assert 0 < spoiled.everything.awake_h < whole.everything.awake_h
    assert "a row is left out" in caplog.text


def test_a_day_is_read_as_it_was_written() -> None:
    found = read_day(write_day(read_day(json.dumps({"awake_s": 1.5, "later": 1, "wake": {"total": [9.0, 1, 2]}}))))
    assert (found.awake_s, len(found.wake["total"]), found.wake["total"].longest_s) == (1.5, 2, 9.0)


@pytest.mark.parametrize(
    "plain_form", [[], [1.0, 2], ["x"], [1.0, 1, 0], [1.0, 1, -1], [1.0, 10**6, 1], {}, None, [True]]
)
def test_durations_that_are_never_written_are_refused(plain_form: object) -> None:
    with pytest.raises(MalformedRow):
        Durations.of_plain(plain_form)


def test_counted_durations_are_at_most_1_percent_off() -> None:
    chance = random.Random(3)
    exact = Durations([chance.lognormvariate(2, 2) for _ in range(5000)])
    counted = Durations.of_plain(json.loads(json.dumps(exact.to_plain())))
    there, here = exact.spread(), counted.spread()
    assert here.count == there.count
    assert here.longest_s == pytest.approx(there.longest_s, abs=1e-6)
    assert here.p50_s == pytest.approx(there.p50_s, rel=0.0101)
    assert here.p95_s == pytest.approx(there.p95_s, rel=0.0101)
    assert counted.shortfall_s(10) == pytest.approx(exact.shortfall_s(10), rel=0.01)
