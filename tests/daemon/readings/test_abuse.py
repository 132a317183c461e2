"""Signs of abuse on shapes of CPU use: honest builds of several kinds, and miners of several kinds.

COMPILE, SUITE and SHELL were recorded: CPU time of a process tree in each quarter of a second, as a share of one CPU (gcc
with -fanalyzer over the engine; this project's tests; a shell that lists a folder every second). One recorded share stands
for five minutes here. A burner could not be recorded, since the recording machine shares its CPUs with others: `burner`
makes it of what is known of miners.
"""

import math
import random
from collections.abc import Iterable

import pytest

from bentpipe.daemon.model import Suspicion
from bentpipe.daemon.readings.abuse import (
    BURN_POINTS,
    CONNECTION_POINTS,
    FEW_CONNECTIONS,
    QUIET_BYTES_PER_MINUTE,
    AbuseWatch,
    Sample,
)

COMPILE = (
    0.88,
    1.03,
    0.94,
    0.94,
    0.74,
    0.47,
    0.9,
    0.83,
    0.85,
    0.75,
    0.72,
    0.23,
    0.27,
    0.31,
    0.48,
    0.38,
    0.42,
    0.43,
    0.51,
    0.46,
    0.5,
    0.39,
    0.41,
    0.51,
    0.49,
    0.39,
    0.42,
    0.46,
    0.51,
    0.43,
    0.46,
    0.47,
    0.47,
    0.46,
    0.51,
    0.43,
    0.47,
    0.49,
    0.47,
    0.26,
    0.41,
    0.47,
    0.49,
    0.43,
    0.51,
    0.49,
    0.47,
)
SUITE = (
    0.48,
    0.47,
    0.43,
    0.27,
    0.55,
    0.98,
    0.43,
    0.7,
    0.32,
    0.04,
    0.04,
    0.04,
    0.12,
    0.04,
    0.04,
    0.07,
    0.03,
    0.12,
    0.16,
    0.47,
    0.74,
    0.47,
    0.34,
    0.51,
    0.47,
    0.44,
    0.24,
    0.42,
    0.51,
    0.51,
    0.39,
    0.24,
    0.08,
    0.08,
    0.08,
    0.0,
    0.04,
    0.2,
    0.5,
    0.55,
    0.51,
    0.35,
    0.32,
    0.27,
    0.31,
    0.34,
    0.31,
    0.27,
    0.31,
    0.32,
    0.34,
    0.24,
    0.28,
    0.35,
    0.31,
    0.04,
    0.12,
    0.04,
    0.04,
)
SHELL = (
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.02,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.02,
)

NOTIFY = 75
"""The default of `[satellite.responder.abuse] score`."""
STEP_S = 60.0
HOUR_S = 3600.0
STEPS_A_SHARE = 5
CPUS = 4.0
LIMIT = 0.95 * CPUS


def burner(share: float, jitter: float, hours: float) -> list[float]:
    """What a miner does: a share of its CPUs, and some jitter."""
    chance = random.Random(1)
    return [min(1.0, chance.gauss(share, jitter * share)) for _ in range(int(hours * 12))]


def repeated(shape: tuple[float, ...], hours: float) -> list[float]:
    return [shape[number % len(shape)] for number in range(int(hours * 12))]


def play(
    shares: Iterable[float],
    *,
    bytes_a_minute: int = 5000,
    old: int = 0,
    young: int = 0,
    build_from_s: float = 0.0,
    watch: AbuseWatch | None = None,
) -> Suspicion:
    """Sample every minute; returns the last judgement."""
    watch = watch or AbuseWatch()
    now = cpu_s = 0.0
    found = Suspicion()
    for share in shares:
        for _ in range(STEPS_A_SHARE):
            now += STEP_S
            cpu_s += share * LIMIT * STEP_S
            sample = Sample(now, cpu_s, LIMIT, bytes_a_minute, 1, now + build_from_s, old, young)
            found = watch.note(sample)
    return found


# -- honest work -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [1, 6, 30])
def test_an_idle_shell_scores_nothing(hours: float) -> None:
    assert play(repeated(SHELL, hours), old=1) == Suspicion()


@pytest.mark.parametrize("old", [0, 2])
def test_a_silent_test_suite_of_a_night_is_below_the_threshold(old: int) -> None:
    assert play(repeated(SUITE, 8), old=old, young=3).score < NOTIFY


def test_a_silent_compile_of_six_hours_is_below_the_threshold() -> None:
    assert play(repeated(COMPILE, 6)).score < NOTIFY


def test_a_compile_with_a_remote_cache_is_below_the_threshold() -> None:
    """Its connection is old, and it burns; but it links and waits now and then, so it is not flat."""
    found = play(repeated(COMPILE, 6), old=1)
    assert CONNECTION_POINTS <= found.score < NOTIFY


def test_a_compile_that_pins_every_core_for_six_hours_is_below_the_threshold() -> None:
    """The hardest honest case: -j without a pause or a word. Flatness and duration alone do not pass it."""
    found = play(burner(0.99, 0.005, 6))
    assert BURN_POINTS < found.score < NOTIFY


def test_a_build_whose_client_reads_its_log_scores_nothing() -> None:
    assert play(burner(0.99, 0.001, 24), bytes_a_minute=2 * QUIET_BYTES_PER_MINUTE, old=1) == Suspicion()


def test_a_farm_of_connections_is_a_crawler_or_a_test_and_no_miner() -> None:
    assert play(burner(0.9, 0.1, 6), old=FEW_CONNECTIONS + 1).score < NOTIFY


def test_an_hour_of_anything_is_below_the_threshold() -> None:
    assert play(burner(0.99, 0.001, 1.5), old=1).score < NOTIFY


# -- what looks like a miner -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "hours"), [(0.98, 6), (0.5, 6), (0.2, 6), (0.98, 24)])
def test_a_miner_passes_the_threshold_capped_or_not(share: float, hours: float) -> None:
    found = play(burner(share, 0.01, hours), old=1)
    assert found.score >= NOTIFY
    words = "; ".join(found.reasons)
    assert f"have used {share:.0%}" in words or f"have used {share - 0.01:.0%}" in words
    assert "hardly changes" in words
    assert "few outgoing connections are old: 1 at most" in words


def test_a_miner_with_jitter_passes_it_when_its_build_does_not_end() -> None:
    found = play(burner(0.95, 0.15, 24), old=2)
    assert found.score >= NOTIFY
    assert "a build has run for 24.0 h" in found.reasons


def test_a_build_that_computes_for_a_day_alone_is_below_it() -> None:
    """Fuzzing, or training: it burns flat and does not end, and talks to nobody."""
    assert play(burner(0.98, 0.001, 24)).score < NOTIFY


# -- what the watch makes of broken input ------------------------------------------------------------------------------


def test_a_word_from_a_client_begins_the_burn_anew() -> None:
    watch = AbuseWatch()
    assert play(burner(0.98, 0.01, 6), old=1, watch=watch).score >= NOTIFY
    talk = Sample(6 * HOUR_S + STEP_S, 1e9, LIMIT, 1 << 20, 1, 0, 1)
    assert watch.note(talk) == Suspicion()


@pytest.mark.parametrize(
    "strange",
    [
        Sample(0.0, 1e9, LIMIT, 0, 1),  # the clock went back
        Sample(6 * HOUR_S + STEP_S, 0.0, LIMIT, 0, 1),  # the machine was booted
        Sample(8 * HOUR_S, 1e9, LIMIT, 0, 1),  # nobody knows what was in between
    ],
)
def test_a_gap_begins_it_anew(strange: Sample) -> None:
    watch = AbuseWatch()
    play(burner(0.98, 0.01, 6), old=1, watch=watch)
    assert watch.note(strange) == Suspicion()


@pytest.mark.parametrize("cpus", [0.0, 1e-9, 1e9])
@pytest.mark.parametrize("cpu_s", [0.0, 1e15])
def test_absurd_numbers_give_a_score_in_its_range(cpus: float, cpu_s: float) -> None:
    watch = AbuseWatch()
    for number in range(1, 2000):
        found = watch.note(Sample(number * STEP_S, number * cpu_s, cpus, 0, 0, math.inf, 1 << 20, 1 << 20))
        assert 0 <= found.score <= 100
        assert all(len(reason) < 200 for reason in found.reasons)
