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
from bentpipe.daemon.ledger.contract import DAY_US, Stamp, StampedTransition
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
from bentpipe.daemon.report.days import add_up, read_day, write_day
from bentpipe.daemon.report.durations import Durations
from bentpipe.daemon.report.summary import Report, summarise
from bentpipe.daemon.service.report import _read
from bentpipe.daemon.service.rolling import roll_up_day
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


async def report_of(path: Path, since_us: int, until_us: int) -> Report:
    read = await _read(StoreSection(path=path), since_us, until_us)
    report = summarise(read.intervals, read.detail_us, until_us, PRICES, add_up(read.days))
    return dataclasses.replace(report, since_us=read.since_us)


def leaves(value: object, at: str = "") -> dict[str, object]:
    """Every value of a report by its path, without those of which rolled days know only 1 %."""
    if isinstance(value, dict):
        items = [(str(key), inner) for key, inner in value.items() if key not in {"p50_s", "p95_s"}]
    elif isinstance(value, list | tuple):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return {at: value}
    return {path: leaf for key, inner in items for path, leaf in leaves(inner, f"{at}/{key}").items()}


async def roll_up_all(path: Path, now_us: int, section: StoreSection) -> int:
    ledger = SqliteLedger(path)
    rolled = 0
    while await roll_up_day(ledger, section, now_us):
        rolled += 1
    await ledger.aclose()
    return rolled


async def test_a_report_says_the_same_of_days_that_are_rolled_up(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    end_us = await fill(path)
    first_day = BEGIN_US // DAY_US * DAY_US
    spans = [(first_day, end_us), (first_day + 2 * DAY_US, end_us), (first_day + 5 * DAY_US, end_us)]
    before = [await report_of(path, *span) for span in spans]
    reader = SqliteLedger(path, read_only=True)
    all_before = await reader.intervals(*ALWAYS)
    await reader.aclose()
    section = StoreSection(path=path, detail=2 * 86_400)
    rolled = await roll_up_all(path, end_us, section)
    assert rolled == (end_us - 2 * DAY_US - first_day) // DAY_US
    reader = SqliteLedger(path, read_only=True)
    left = await reader.intervals(*ALWAYS)
    await reader.aclose()
    check_laws(left, end_us)
    assert len(left) < len(all_before) * 0.7
    for span, report in zip(spans, before, strict=True):
        after = await report_of(path, *span)
        found, wanted = leaves(dataclasses.asdict(after)), leaves(dataclasses.asdict(report))
        assert found.keys() == wanted.keys()
        for at, leaf in wanted.items():
            assert found[at] == (pytest.approx(leaf, rel=1e-6, abs=1e-4) if isinstance(leaf, float) else leaf), at
        for line, exact in zip(after.satellites, report.satellites, strict=True):
            for phase, spread in line.wake.items():
                assert spread.p50_s == pytest.approx(exact.wake[phase].p50_s, rel=0.0101)
                assert spread.p95_s == pytest.approx(exact.wake[phase].p95_s, rel=0.0101)


async def test_a_span_that_begins_within_a_rolled_day_counts_the_day_whole(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    end_us = await fill(path)
    await roll_up_all(path, end_us, StoreSection(path=path, detail=86_400))
    day_us = BEGIN_US // DAY_US * DAY_US + 2 * DAY_US
    report = await report_of(path, day_us + 1_000_000, end_us)
    assert report.since_us == day_us
    assert report.satellites == (await report_of(path, day_us, end_us)).satellites


async def test_a_day_is_rolled_up_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    end_us = await fill(path)
    ledger = SqliteLedger(path)
    day_us = await ledger.rolled_until_us()
    assert day_us == BEGIN_US // DAY_US * DAY_US
    await ledger.roll_up(day_us, {KEYS[0]: "first"})
    left = await ledger.intervals(*ALWAYS)
    await ledger.roll_up(day_us, {KEYS[0]: "second"})
    assert [each.sums for each in await ledger.days(*ALWAYS)] == ["first"]
    assert await ledger.intervals(*ALWAYS) == left
    assert await ledger.rolled_until_us() == day_us + DAY_US
    await ledger.aclose()
    assert end_us > day_us


async def test_nothing_is_rolled_up_with_detail_0_and_days_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    end_us = await fill(path)
    assert await roll_up_all(path, end_us, StoreSection(path=path, detail=0)) == 0
    assert await roll_up_all(path, end_us, StoreSection(path=path, detail=86_400)) > 3
    ledger = SqliteLedger(path)
    days = len(await ledger.days(*ALWAYS))
    await roll_up_day(ledger, StoreSection(path=path, detail=86_400, keep=3 * 86_400), end_us)
    kept = await ledger.days(*ALWAYS)
    assert 0 < len(kept) < days
    assert min(each.day_us for each in kept) >= end_us - 3 * DAY_US - DAY_US
    await ledger.aclose()


async def test_an_empty_ledger_has_no_day(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    assert await ledger.rolled_until_us() is None
    assert not await roll_up_day(ledger, StoreSection(detail=86_400), BEGIN_US)
    await ledger.aclose()


async def test_sums_that_cannot_be_read_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ledger.sqlite"
    end_us = await fill(path)
    await roll_up_all(path, end_us, StoreSection(path=path, detail=86_400))
    whole = await report_of(path, BEGIN_US, end_us)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE day SET sums = '{\"wake\": 3}' WHERE day_us = (SELECT min(day_us) FROM day)")
    connection.close()
    spoiled = await report_of(path, BEGIN_US, end_us)
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
