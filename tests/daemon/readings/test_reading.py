"""Answers of responders: what is made of an honest one, of one that lacks sections, and of hostile ones."""

import dataclasses
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from beds.peers.responder_status import BOOT_ID, YOUNG, status
from bentpipe.daemon.readings.changes import NO_KILLS, killed_between, was_booted
from bentpipe.daemon.readings.condition import Condition, after_failures, condition_of, peaks_of
from bentpipe.daemon.readings.reading import (
    MAX_COUNT,
    MAX_KILLS,
    MAX_REFS,
    MAX_STEP_CHARS,
    MAX_WORDS,
    STALE_S,
    KillCause,
    MalformedReading,
    Reading,
    read_status,
)
from bentpipe.proto import responder_pb2 as pb


def read(found: pb.Status) -> Reading:
    return read_status(found.SerializeToString())


def kill(number: int, cause: pb.Kill.Cause = pb.Kill.OOM) -> pb.Kill:
    return pb.Kill(number=number, cause=cause, step=f"buildkit/{number}", memory_bytes=1 << 30, build_refs=["a"])


def killed(oom: int, pressure: int = 0, *recent: pb.Kill, started_ms: int = 0, boot_id: str = BOOT_ID) -> Reading:
    kills = pb.Kills(look=YOUNG, machine_oom_kills=oom, pressure_kills=pressure, recent=recent)
    found = status(kills=kills, boot_id=boot_id)
    found.started_at_uptime_ms = started_ms
    return read(found)


def test_an_honest_answer() -> None:
    reading = read(status(running=2, steps=3, cpu_s=7.5, memory_percent=12, old_connections=4, oldest_build_s=90))
    assert (reading.boot_id, reading.uptime_s, reading.cpus) == (BOOT_ID, 60.0, 2)
    assert reading.running_builds == 2
    assert reading.oldest_build_s == 90
    assert reading.builds is not None
    assert (reading.builds.cpu_s, reading.builds.cpu_limit, reading.builds.steps) == (7.5, 1.9, 3)
    assert reading.disk is not None
    assert reading.disk.used == 0.5
    assert reading.disk.inodes_used == pytest.approx(0.1)
    assert reading.network is not None
    assert (reading.network.young, reading.network.old) == (0, 4)
    assert peaks_of(reading).memory_percent == 12


def test_a_responder_that_has_seen_nothing_yet() -> None:
    reading = read(pb.Status(boot_id=BOOT_ID))
    assert {reading.machine, reading.builds, reading.running, reading.disk, reading.kills, reading.network} == {None}
    assert reading.running_builds is None
    assert condition_of(reading) is Condition.DEAF


def test_a_look_that_is_too_old_is_none() -> None:
    found = status(running=3)
    found.buildkit.look.age_ms = int(STALE_S * 1e3) + 1
    assert read(found).running is None


def test_steps_show_a_build_that_buildkit_does_not_tell() -> None:
    assert read(status(running=None, steps=4)).running_builds == 1
    assert read(status(running=0, steps=1)).running_builds == 1
    assert read(status(running=None, steps=0)).running_builds is None
    assert read(status(running=0, steps=0)).running_builds == 0


# -- hostile answers ---------------------------------------------------------------------------------------------------


def spoiled(**fields: object) -> pb.Status:
    found = status()
    for path, value in fields.items():
        *sections, name = path.split("__")
        section: object = found
        for each in sections:
            section = getattr(section, each)
        setattr(section, name, value)
    return found


@pytest.mark.parametrize(
    "found",
    [
        spoiled(boot_id=""),
        spoiled(boot_id="x" * 65),
        spoiled(boot_id="a\nb"),
        spoiled(boot_id="\u00fc"),
        spoiled(cpus=1 << 31),
        spoiled(uptime_ms=(1 << 64) - 1),
        spoiled(buildkit__running_count=1 << 31),
        spoiled(builds__steps=1 << 31),
        spoiled(builds__cpu_usage_us=MAX_COUNT + 1),
        spoiled(machine__pressure__cpu__some__avg10_percent=math.nan),
        spoiled(machine__pressure__io__some__avg10_percent=math.inf),
        spoiled(machine__pressure__memory__some__avg10_percent=-1.0),
        spoiled(machine__pressure__memory__some__avg10_percent=100.5),
        spoiled(kills__machine_oom_kills=1 << 60),
    ],
)
def test_numbers_that_nobody_measures_are_refused(found: pb.Status) -> None:
    with pytest.raises(MalformedReading):
        read(found)


def test_texts_and_lists_are_cut_and_made_printable() -> None:
    found = status()
    found.buildkit.look.error = "\x1b[31m\n" + "e" * 10_000
    evil = pb.Kill(number=1, step="s\r\n" * 5_000, build_refs=["r\0" * 500] * 500)
    found.kills.recent.extend([evil] * 500)
    reading = read(found)
    assert len(reading.buildkit_error) == MAX_WORDS
    assert reading.kills is not None
    assert len(reading.kills.recent) == MAX_KILLS
    (first, *_) = reading.kills.recent
    assert first.cause is KillCause.UNKNOWN
    assert len(first.step) <= MAX_STEP_CHARS
    assert len(first.build_refs) == MAX_REFS
    for text in (reading.buildkit_error, first.step, *first.build_refs):
        assert text.isprintable()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_reading_or_malformed(message: bytes) -> None:
    try:
        reading = read_status(message)
    except MalformedReading:
        return
    assert dataclasses.asdict(reading)


@given(st.binary(max_size=40), st.integers(0, 400))
def test_a_spoiled_honest_answer_is_a_reading_or_malformed(junk: bytes, at: int) -> None:
    whole = status(running=1).SerializeToString()
    try:
        reading = read_status(whole[:at] + junk + whole[at + len(junk) :])
    except MalformedReading:
        return
    condition_of(reading)
    assert 0 <= peaks_of(reading).cpu_percent <= 100


# -- what differs between two ------------------------------------------------------------------------------------------


def test_kills_are_told_once() -> None:
    first, second = killed(2, 0, kill(1), kill(2)), killed(3, 1, kill(2), kill(3), kill(4, pb.Kill.PRESSURE))
    assert killed_between(None, first) == NO_KILLS, "they were before the first reading"
    found = killed_between(first, second)
    assert (found.oom, found.pressure) == (1, 1)
    assert [(each.number, each.cause) for each in found.steps] == [(3, KillCause.OOM), (4, KillCause.PRESSURE)]
    assert not killed_between(second, second)


def test_a_responder_that_starts_anew_numbers_from_one() -> None:
    first, second = killed(5, 3, kill(9)), killed(6, 1, kill(1), started_ms=50_000)
    found = killed_between(first, second)
    assert (found.oom, found.pressure) == (1, 1)
    assert [each.number for each in found.steps] == [1]


def test_after_a_boot_all_counters_begin_at_zero() -> None:
    first, second = killed(5, 3, kill(9)), killed(1, 0, kill(1), boot_id="another")
    assert was_booted(first, second)
    assert killed_between(first, second).oom == 1


def test_a_counter_that_goes_back_by_itself_hides_nothing_later() -> None:
    assert killed_between(killed(5), killed(2)).oom == 2
    assert killed_between(killed(2), killed(3)).oom == 1


# -- conditions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "condition"),
    [
        (status(), Condition.WELL),
        (status(running=3, cpu_percent=59), Condition.WELL),
        (status(running=3, cpu_percent=99), Condition.BUSY),
        (status(memory_percent=20), Condition.BUSY),
        (status(running=None, cpu_percent=99), Condition.DEAF),
        (status(free=0.01), Condition.FULL),
        (status(free=0.01, running=None), Condition.DEAF),
        (spoiled(disk__available_inodes=0), Condition.FULL),
        (spoiled(disk__total_inodes=0), Condition.WELL),
    ],
)
def test_conditions(found: pb.Status, condition: Condition) -> None:
    assert condition_of(read(found)) is condition


def test_a_busy_satellite_is_not_called_silent_for_one_answer_that_is_missing() -> None:
    assert after_failures(Condition.BUSY, 1) is Condition.BUSY
    assert after_failures(Condition.BUSY, 2) is Condition.SILENT
