"""Idle that knows builds: what the satellite's own count of running builds keeps awake, and what it does not."""

import dataclasses

import pytest

from beds.machines.played_machine import LONG_RULES, PlayedMachine
from bentpipe.daemon.fleet.machine.messages import (
    Action,
    BuildsRead,
    CountBuilds,
    EndQuiet,
    Evict,
    Metered,
    Ready,
    Released,
    SleepAsked,
    StartDone,
    Stop,
    Traffic,
)
from bentpipe.daemon.fleet.machine.rules import Rules
from bentpipe.daemon.model import MachineState, SatelliteState, SleepMode

M, S = MachineState, SatelliteState
HIBERNATE = Stop(SleepMode.HIBERNATE)
HOUR_S = 3600.0
READ_S = 15.0
RULES = dataclasses.replace(LONG_RULES, counts_builds=True, builds_stale_s=60.0, trust_builds_s=24 * HOUR_S)
ENDS_QUIET = dataclasses.replace(RULES, ends_quiet=True)


def awake(rules: Rules = RULES, *, spliced: bool = False) -> PlayedMachine:
    """Awake, with no lease, or with one that is spliced."""
    played = PlayedMachine(rules)
    played.see(M.STOPPED)
    played.come()
    played.feed(StartDone(None))
    played.see(M.RUNNING)
    played.feed(Ready())
    played.feed(Metered() if spliced else Released())
    assert played.state is S.OPERATIONAL
    return played


def read_for(played: PlayedMachine, seconds: float, running: int | None) -> list[Action]:
    """Read the count at its interval, and whenever the machine asks."""
    done: list[Action] = []
    for _ in range(int(seconds / READ_S)):
        done += played.wait(READ_S)
        done += played.feed(BuildsRead(running))
    return done


@pytest.mark.parametrize("spliced", [False, True])
def test_a_silent_build_of_hours_keeps_it_awake_and_its_end_lets_it_sleep(spliced: bool) -> None:
    played = awake(ENDS_QUIET, spliced=spliced)
    assert read_for(played, 6 * HOUR_S, running=1) == []
    done = read_for(played, RULES.sleep_after_s - READ_S, running=0)
    assert done == [], "it is idle from the last moment at which a build was seen"
    done = read_for(played, 2 * READ_S, running=0)
    assert CountBuilds() in done
    assert (EndQuiet() if spliced else HIBERNATE) in done


def test_keepalives_do_not_keep_it_awake_once_it_says_that_nothing_runs() -> None:
    played = awake(ENDS_QUIET, spliced=True)
    assert EndQuiet() in read_for(played, RULES.sleep_after_s, running=0)


def test_the_last_look_finds_a_build_that_has_just_begun() -> None:
    played = awake()
    played.wait(RULES.sleep_after_s - 5)
    played.feed(BuildsRead(0))
    assert played.wait(10) == [CountBuilds()], "a count that is some seconds old is not enough"
    assert played.wait(HOUR_S) == [], "and nothing happens until it comes"
    assert played.feed(BuildsRead(2)) == []
    assert played.wait(10) == []
    assert HIBERNATE not in read_for(played, RULES.sleep_after_s - 2 * READ_S, running=0)
    assert HIBERNATE in read_for(played, 3 * READ_S, running=0)


def test_a_client_that_comes_during_the_last_look_is_served() -> None:
    played = awake()
    assert CountBuilds() in played.wait(RULES.sleep_after_s)
    played.come()
    assert played.feed(BuildsRead(0)) == []
    assert played.state is S.OPERATIONAL


def test_a_responder_that_is_dead_keeps_no_satellite_without_connections_awake() -> None:
    played = awake()
    done = read_for(played, RULES.sleep_after_s + READ_S, running=None)
    assert HIBERNATE in done


def test_while_nobody_knows_an_open_connection_counts_as_a_build() -> None:
    played = awake(ENDS_QUIET, spliced=True)
    assert EndQuiet() not in read_for(played, 6 * HOUR_S, running=None)
    assert EndQuiet() in read_for(played, RULES.sleep_after_s, running=0)


def test_a_count_that_nobody_renews_grows_stale() -> None:
    played = awake()
    played.feed(BuildsRead(3))
    done = played.wait(RULES.sleep_after_s + RULES.builds_stale_s)
    assert done == [CountBuilds()]
    assert HIBERNATE in played.feed(BuildsRead(None))


@pytest.mark.parametrize("spliced", [False, True])
@pytest.mark.parametrize("running", [1, 10_000_000])
def test_a_satellite_that_always_says_that_builds_run_is_believed_for_a_day(spliced: bool, running: int) -> None:
    played = awake(ENDS_QUIET, spliced=spliced)
    assert read_for(played, RULES.trust_builds_s - HOUR_S, running=running) == []
    done = read_for(played, HOUR_S + RULES.sleep_after_s + READ_S, running=running)
    assert (EndQuiet() if spliced else HIBERNATE) in done


def test_a_client_renews_the_trust() -> None:
    played = awake(ENDS_QUIET, spliced=True)
    for _ in range(4):
        assert read_for(played, RULES.trust_builds_s - HOUR_S, running=1) == []
        played.feed(Traffic())


def test_nobody_may_put_it_to_sleep_while_builds_run_and_is_told_why() -> None:
    played = awake()
    played.wait(RULES.min_awake_s)
    played.feed(BuildsRead(2))
    for order in (Evict(), SleepAsked()):
        assert played.feed(order) == []
    assert played.machine.known.why_awake == "the satellite says that builds run on it: 2"
    assert played.machine.known.idle_since is None, "the awake budget must not count on its place"
    played.feed(BuildsRead(0))
    assert HIBERNATE in played.feed(SleepAsked())


def test_counts_of_another_stay_awake_do_not_count() -> None:
    played = awake()
    played.feed(BuildsRead(1))
    played.see(M.STOPPED)
    played.feed(BuildsRead(1))
    assert played.machine.known.builds.running is None


def test_without_a_responder_all_is_as_it_was() -> None:
    played = awake(LONG_RULES)
    assert HIBERNATE in played.wait(LONG_RULES.sleep_after_s)
