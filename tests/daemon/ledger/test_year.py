"""A year of a ledger with a million intervals: what `bentpipe report` takes for all of it is printed."""

import itertools
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bentpipe.config.store import StoreSection
from bentpipe.daemon.ledger.contract import DAY_US, Stamp
from bentpipe.daemon.ledger.facts import write_facts
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.model import SatelliteKey, StateFacts, Waits, WakePhase
from bentpipe.daemon.service.rolling import roll_up_step

pytestmark = [pytest.mark.slow, pytest.mark.untraced]

SATELLITES = 50
INTERVALS = 1_000_000
DAYS = 365
STATES = ("sleep", "starting", "operational", "stopping")


async def fill(path: Path, end_us: int) -> None:
    """A year of satellites that wake all the time, written without the daemon's transactions."""
    keys = [SatelliteKey("acme", f"s{number}") for number in range(SATELLITES)]
    ledger = SqliteLedger(path)
    await ledger.begin(keys, Stamp(end_us - DAYS * DAY_US, end_us - DAYS * DAY_US, "boot"))
    await ledger.beat(Stamp(end_us, end_us, "boot"))
    await ledger.aclose()
    woken = StateFacts(phases=((WakePhase.START, 4.0),), waits=Waits(2, 9.5, 5.0), start_attempts=1)
    facts = [json.dumps(write_facts(each)) for each in (StateFacts(), woken, StateFacts(), StateFacts())]
    each = INTERVALS // SATELLITES
    step_us = DAYS * DAY_US // each
    begin_us = end_us - DAYS * DAY_US
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM interval")
        connection.executemany(
            "INSERT INTO interval"
            " (satellite, state, from_us, from_boot_us, from_boot_id, to_us, elapsed_us, cause, who, facts)"
            " VALUES (?, ?, ?, ?, 'boot', ?, ?, 'cause', 'ci', ?)",
            (
                (satellite, STATES[n % 4], at, at, at + step_us, step_us, facts[n % 4])
                for n, satellite in itertools.product(range(each), range(1, SATELLITES + 1))
                for at in [begin_us + n * step_us]
            ),
        )
    connection.close()


def report_s(config: Path, since: str) -> tuple[float, dict[str, object]]:
    """CPU seconds of the whole command, Python's start included, and what it says. The clock would show the load, too."""
    before = os.times()
    command = [sys.executable, "-P", "-m", "bentpipe.daemon.service.cli", "report", "--config", str(config)]
    done = subprocess.run([*command, "--since", since, "--json"], capture_output=True, check=True)
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu_s, json.loads(done.stdout)


async def test_a_year(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, config = tmp_path / "ledger.sqlite", tmp_path / "bentpipe.toml"
    config.write_text(f'[store]\npath = "{path}"\n[[listener]]\naddress = "127.0.0.1:0"\n')
    end_us = time.time_ns() // 1000
    await fill(path, end_us)
    size_before = path.stat().st_size
    ledger = SqliteLedger(path)
    section = StoreSection(path=path)
    began, steps = time.monotonic(), 0
    while await roll_up_step(ledger, section, end_us):
        steps += 1
    step_s = (time.monotonic() - began) / steps
    await ledger.aclose()
    after_s, after = report_s(config, "365d")
    month_s, _ = report_s(config, "30d")
    with capsys.disabled():
        load = os.getloadavg()[0]
        print(f"\n{INTERVALS} intervals, {size_before >> 20} MiB: {steps} steps of rolling up, {step_s:.3f} s each")
        print(f"then: report of a year {after_s:.2f} s of CPU, of 30 days {month_s:.2f} s (load {load:.0f})")
    assert steps >= DAYS + DAYS // 4
    everything = after["everything"]
    assert isinstance(everything, dict)
    assert everything["wakes"] == pytest.approx(INTERVALS / 4, rel=0.01)
    assert everything["awake_h"] == pytest.approx(DAYS * 24 * SATELLITES * 3 / 4, rel=0.01)
