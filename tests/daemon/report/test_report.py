"""The report's sums against hand-made days, its pictures, and the command on a ledger of its own."""

import dataclasses
import io
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import rich.console
import trio
from click.testing import CliRunner

from bentpipe.config.prices import PricesSection
from bentpipe.daemon.ids import reserve_key
from bentpipe.daemon.ledger.contract import Interval, LedgerSpan, Stamp, StampedTransition, Stretch
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.model import (
    NO_FACTS,
    NO_WAITS,
    BootPhase,
    Peaks,
    Resume,
    SatelliteKey,
    SatelliteState,
    StateFacts,
    Suspicion,
    Transition,
    Waits,
    WakePhase,
)
from bentpipe.daemon.report.durations import spread_of
from bentpipe.daemon.report.picture import COLUMNS, Label, Rect, draw
from bentpipe.daemon.report.summary import summarise
from bentpipe.daemon.report.svg import to_svg
from bentpipe.daemon.report.table import to_tables
from bentpipe.daemon.report.timeline import STYLES, LineStyle
from bentpipe.daemon.service.cli import main
from bentpipe.daemon.service.report import parse_since

S = SatelliteState
HOUR_US = 3_600_000_000
MIDNIGHT_US = 1_767_225_600 * 1_000_000
"""2026-01-01T00:00:00Z"""
PHASES = ((WakePhase.START, 2.0), (WakePhase.BOOT, 33.0), (WakePhase.LISTEN, 1.0))


def chain(name: str, *stretches: tuple[SatelliteState, float], who: str = "ci") -> list[Interval]:
    """Intervals of so many hours each, from midnight; wakes have phases and two clients."""
    found: list[Interval] = []
    at_us = MIDNIGHT_US
    for state, hours in stretches:
        end_us = at_us + round(hours * HOUR_US)
        waking = state is S.STARTING
        found.append(
            Interval(
                SatelliteKey("acme", name),
                state,
                at_us,
                end_us,
                end_us - at_us,
                "test",
                who if waking else "",
                is_open=False,
                facts=StateFacts(PHASES, Waits(2, 50.0, 36.0)) if waking else NO_FACTS,
            )
        )
        at_us = end_us
    return found


def detailed(intervals: list[Interval], since_us: int, until_us: int) -> LedgerSpan:
    """A span of which the ledger has all intervals."""
    return LedgerSpan(since_us, until_us, (Stretch(since_us, until_us, intervals),), [], since_us)


DAY = chain("a", (S.SLEEP, 9), (S.STARTING, 0.01), (S.OPERATIONAL, 2.97), (S.STOPPING, 0.02), (S.SLEEP, 12))
PRICES = PricesSection(awake_hour=1.0, always_hour=0.1)


def test_what_the_wakes_found_of_the_memory() -> None:
    states = (S.STARTING, S.OPERATIONAL, S.SLEEP) * 3
    wakes = chain("a", *((state, 1) for state in states))
    found = iter((Resume.RESUMED, Resume.COLD, Resume.RESUMED))
    told = [
        dataclasses.replace(each, facts=StateFacts(resume=next(found))) if each.state is S.OPERATIONAL else each
        for each in wakes
    ]
    report = summarise(detailed(told, MIDNIGHT_US, MIDNIGHT_US + 24 * HOUR_US), None)
    assert report.everything.resumes == {"resumed": 2, "cold": 1, "unknown": 0}


def test_wakes_by_how_often_a_start_was_attempted() -> None:
    states = (S.SLEEP, S.CREATING, S.STARTING, S.OPERATIONAL, S.SLEEP, S.STARTING, S.SLEEP, S.STARTING, S.OPERATIONAL)
    attempts = iter((0, 2, 1, 0, 0, 3, 0, 1, 0))
    chained = [
        dataclasses.replace(each, facts=dataclasses.replace(each.facts, start_attempts=next(attempts)))
        for each in chain("a", *((state, 1) for state in states))
    ]
    (line,) = summarise(detailed(chained, MIDNIGHT_US, MIDNIGHT_US + 24 * HOUR_US), None).satellites
    assert (line.wakes, line.failed_wakes) == (2, 1)
    assert line.start_attempts == {"1": 1, "3": 2}


def test_a_launch_is_a_wake_and_counts_once() -> None:
    states = (S.SLEEP, S.CREATING, S.STARTING, S.OPERATIONAL, S.SLEEP, S.CREATING, S.OPERATIONAL, S.SLEEP, S.CREATING)
    launched = chain("a", *((state, 0.1) for state in (*states, S.SLEEP)))
    launched = [dataclasses.replace(each, who="ci" if each.state is S.CREATING else each.who) for each in launched]
    (line,) = summarise(detailed(launched, MIDNIGHT_US, MIDNIGHT_US + 24 * HOUR_US), PRICES).satellites
    assert (line.wakes, line.failed_wakes) == (2, 1)


def test_a_day_adds_up() -> None:
    report = summarise(detailed(DAY, MIDNIGHT_US, MIDNIGHT_US + 24 * HOUR_US), PRICES)
    (line,) = report.satellites
    assert (round(line.awake_h, 6), round(line.saved_h, 6), line.unknown_h) == (3, 21, 0)
    assert line.money is not None
    assert [round(x, 6) for x in (line.money.cost, line.money.always_on, line.money.saved)] == [5.4, 26.4, 21]
    assert (line.wakes, line.failed_wakes, line.woken_by) == (1, 0, {"ci": 1})
    assert line.wake["boot"].p95_s == 33.0
    assert line.wake["total"].longest_s == 36.0
    assert line.waits == Waits(2, 50.0, 36.0)
    assert report.everything == dataclasses.replace(line, name="all")


def test_a_span_cuts_hours_and_leaves_out_what_ended_before_it() -> None:
    report = summarise(detailed(DAY, MIDNIGHT_US + 10 * HOUR_US, MIDNIGHT_US + 13 * HOUR_US), None)
    (line,) = report.satellites
    assert (round(line.awake_h, 6), round(line.saved_h, 6)) == (2, 1)
    assert (line.wakes, line.waits, line.money) == (0, NO_WAITS, None)


def test_time_that_nobody_observed_or_used_saves_nothing() -> None:
    days = [
        *chain("gone", (S.OFFLINE, 24)),
        *chain("lost", (S.UNKNOWN, 10), (S.FAILED, 10), (S.SLEEP, 4)),
    ]
    report = summarise(detailed(days, MIDNIGHT_US, MIDNIGHT_US + 24 * HOUR_US), PRICES)
    (line,) = report.satellites
    assert (line.name, line.awake_h, line.saved_h, line.unknown_h) == ("acme/lost", 0, 4, 10)


def test_a_clock_step_changes_no_sum() -> None:
    (sleep,) = chain("a", (S.SLEEP, 100))
    stepped = dataclasses.replace(sleep, elapsed_us=HOUR_US)
    (line,) = summarise(detailed([stepped], MIDNIGHT_US, MIDNIGHT_US + 100 * HOUR_US), None).satellites
    assert line.saved_h == 1


def test_wakes_that_failed_were_nobodys_or_have_no_end() -> None:
    wake = (S.STARTING, 0.1)
    failed = chain("failed", (S.SLEEP, 1), wake, (S.SLEEP, 1))
    crashed = chain("crashed", (S.SLEEP, 1), wake, (S.UNKNOWN, 1))
    (asleep, foreign, awake) = chain("foreign", (S.SLEEP, 1), wake, (S.OPERATIONAL, 1), who="")
    bare = dataclasses.replace(foreign, facts=StateFacts(PHASES[1:]))
    report = summarise(
        detailed([*crashed, *failed, asleep, bare, awake], MIDNIGHT_US, MIDNIGHT_US + 24 * HOUR_US), None
    )
    assert {s.name: (s.wakes, s.failed_wakes) for s in report.satellites} == {
        "acme/crashed": (0, 0),
        "acme/failed": (0, 1),
        "acme/foreign": (0, 0),
    }


def test_each_wake_is_billed_for_a_minimum() -> None:
    short = chain("a", (S.SLEEP, 1), (S.STARTING, 0.001), (S.OPERATIONAL, 0.001), (S.SLEEP, 1), (S.OPERATIONAL, 1))
    prices = PricesSection(awake_hour=1.0, minimum=360)
    (line,) = summarise(detailed(short, MIDNIGHT_US, MIDNIGHT_US + 24 * HOUR_US), prices).satellites
    assert line.money is not None
    assert round(line.money.cost, 6) == 1.1


def printed(intervals: list[Interval], prices: PricesSection | None = None) -> list[list[str]]:
    """The report's tables as a terminal shows them: each line's words."""
    console = rich.console.Console(width=200, record=True, file=io.StringIO())
    for table in to_tables(summarise(detailed(intervals, MIDNIGHT_US, MIDNIGHT_US + 24 * HOUR_US), prices)):
        console.print(table)
    return [line.split() for line in console.export_text().splitlines()]


def test_what_responders_and_boots_told_has_tables_if_there_is_any() -> None:
    facts = StateFacts(
        peaks=Peaks(91.4, 12.0, 3.0),
        kills=2,
        suspicion=Suspicion(40, ("a busy core for hours", "no traffic")),
        boot=((BootPhase.KERNEL, 4.56), (BootPhase.BUILDKIT, 79.8), (BootPhase.FIRST_BUILD, 110.3)),
    )
    told = [dataclasses.replace(each, facts=facts) if each.state is S.OPERATIONAL else each for each in DAY]
    lines = printed([*told, *chain("b", (S.SLEEP, 24))])
    assert ["acme/a", "91", "12", "3", "2", "40", "a", "busy", "core", "for", "hours;", "no", "traffic"] in lines
    kernel, listening, built = (f"{text}/{text}/{text}" for text in ("4.56", "79.8", "110"))
    assert ["acme/a", kernel, listening, built] in lines, "no word of cloud-init"
    assert ["acme/b", "0", "0", "0", "0", "0"] in lines
    plain = printed(DAY)
    assert not any("abuse" in line or "boots:" in line for line in plain)


def test_money_and_the_orgs_sums_are_shown_if_there_are_any() -> None:
    other = [dataclasses.replace(each, key=SatelliteKey("else", "c")) for each in DAY]
    lines = printed([*DAY, *other], PRICES)
    assert ["acme/a", "3.00", "21.00", "88%", "0.00", "5.40", "26.40", "21.00"] in lines
    assert ["else", "3.00", "21.00", "88%", "0.00", "5.40", "26.40", "21.00"] in lines
    assert ["all", "6.00", "42.00", "88%", "0.00", "10.80", "52.80", "42.00"] in lines
    unseen = printed([], None)
    assert ["all", "0.00", "0.00", "0.00"] in unseen, "no share of nothing"


def test_the_reserve_costs_and_saves_nothing() -> None:
    prices = PricesSection(awake_hour=1.0, always_hour=0.1)
    mine = chain("one", (S.OPERATIONAL, 10), (S.SLEEP, 10))
    spare = [
        dataclasses.replace(each, key=reserve_key("large", "linux/amd64", 0))
        for each in chain("x", (S.STARTING, 1), (S.SLEEP, 19))
    ]
    alone = summarise(detailed(mine, MIDNIGHT_US, MIDNIGHT_US + 24 * HOUR_US), prices).everything
    both = summarise(detailed([*mine, *spare], MIDNIGHT_US, MIDNIGHT_US + 24 * HOUR_US), prices)
    line = both.satellites[-1]
    assert line.name == "~reserve/large~linux~amd64~0"
    assert line.money is not None
    assert (round(line.awake_h, 6), line.saved_h) == (1, 0)
    assert round(line.money.cost, 6) == 3.0
    assert alone.money is not None
    assert both.everything.money is not None
    assert round(alone.money.saved - both.everything.money.saved, 6) == 3.0, "it is taken off the savings"
    assert both.everything.saved_h == alone.saved_h


def test_spread_is_by_nearest_rank() -> None:
    assert spread_of(range(1, 101)).p95_s == 95
    assert spread_of([3.0]).p50_s == spread_of([3.0]).p95_s == 3.0
    assert spread_of([]).count == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1h", 6400.0), ("1970-01-01", 0.0), ("1970-01-01T01:00", 3600.0), ("1970-01-01T01:00+01:00", 0.0)],
)
def test_since(text: str, expected: float) -> None:
    assert parse_since(text, 10_000.0) == expected


def test_the_picture_shows_each_state_where_it_was() -> None:
    assert set(STYLES) == set(S)
    picture = draw(
        [*DAY, *chain("gone", (S.OFFLINE, 24)), *chain("z<&>", (S.FAILED, 12))],
        MIDNIGHT_US,
        MIDNIGHT_US + 24 * HOUR_US,
    )
    words = [shape.text for shape in picture.shapes if isinstance(shape, Label)]
    assert "acme/a" in words
    assert "acme/gone" not in words
    assert "03:00" in words
    rects = [shape for shape in picture.shapes if isinstance(shape, Rect)]
    (awake,) = [r for r in rects if r.colour == LineStyle.AWAKE.value[1] and r.height == 18]
    assert awake.width == pytest.approx(COLUMNS / 8, abs=2)
    assert awake.x - rects[0].x == pytest.approx(16 + 200 + COLUMNS * 9 / 24, abs=2)
    assert all(r.x >= 0 and r.x + r.width <= picture.width and r.y + r.height <= picture.height for r in rects)
    root = ET.fromstring(to_svg(picture))
    assert len(root) == len(picture.shapes)
    assert "acme/z<&>" in [element.text for element in root]


async def _write(path: Path) -> None:
    ledger = SqliteLedger(path)
    key = SatelliteKey("acme", "a")
    now = Stamp.now()
    at = [Stamp(now.wall_us - s * 1_000_000, now.boot_us - s * 1_000_000, now.boot_id) for s in (300, 200, 164, 0)]
    await ledger.begin([key], at[0])
    woken = StateFacts(PHASES, Waits(1, 36.0, 36.0), start_attempts=2)
    moves = [
        (at[0], Transition(key, S.UNKNOWN, S.SLEEP, 0.0, "stopped")),
        (at[1], Transition(key, S.SLEEP, S.STARTING, 0.0, "came", "ci")),
        (at[2], Transition(key, S.STARTING, S.OPERATIONAL, 0.0, "ready", "", woken)),
    ]
    await ledger.record([StampedTransition(serial, *move) for serial, move in enumerate(moves, start=1)])
    await ledger.beat(at[3])
    await ledger.aclose()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    trio.run(_write, tmp_path / "ledger.sqlite")
    path = tmp_path / "bentpipe.toml"
    path.write_text(f"""
[store]
path = "{tmp_path / "ledger.sqlite"}"
[prices]
currency = "EUR"
awake_hour = 36
[[listener]]
address = ":1"
[[satellite]]
org = "acme"
name = "a"
[satellite.process]
command = ["true", "{{port}}"]
""")
    return path


def test_the_command_prints_a_table_json_and_pictures(config: Path, tmp_path: Path) -> None:
    svg, png = tmp_path / "a.svg", tmp_path / "a.png"
    run = CliRunner().invoke(main, ["report", "--config", str(config), "--svg", str(svg), "--png", str(png)])
    assert run.exit_code == 0, run.output
    assert "acme/a" in run.output
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ET.parse(svg).getroot().tag.endswith("svg")
    run = CliRunner().invoke(main, ["report", "--config", str(config), "--since", "1h", "--json"])
    (line,) = json.loads(run.output)["satellites"]
    assert line["awake_h"] == pytest.approx(200 / 3600)
    assert line["money"]["cost"] == pytest.approx(2.0)
    assert line["wake"]["total"] == {"count": 1, "p50_s": 36.0, "p95_s": 36.0, "longest_s": 36.0}
    assert line["woken_by"] == {"ci": 1}
    assert line["start_attempts"] == {"2": 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--since", "yesterday"], "expected"), (["--since", "2999-01-01"], "in the future"), ([], "no ledger at")],
)
def test_mistakes_are_told_in_words(config: Path, arguments: list[str], words: str) -> None:
    if not arguments:
        (config.parent / "ledger.sqlite").unlink()
    run = CliRunner().invoke(main, ["report", "--config", str(config), *arguments])
    assert run.exit_code == 2
    assert words in run.output
    assert "Traceback" not in run.output


def test_without_pillow_the_command_says_what_to_install(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    run = CliRunner().invoke(main, ["report", "--config", str(config), "--png", str(config.parent / "a.png")])
    assert run.exit_code == 2
    assert "pip install 'bentpipe[picture]'" in run.output
