"""What others may ask of a satellite's machine, and the orders that callers of the API and operators give."""

import pytest

from beds.machines.played_machine import RULES, PlayedMachine
from bentpipe.daemon.errors import Draining
from bentpipe.daemon.fleet.machine.machine import SatelliteMachine
from bentpipe.daemon.fleet.machine.messages import (
    Drain,
    Fail,
    KeepAwake,
    Ready,
    Released,
    SleepAsked,
    StartDone,
    Stop,
    StopWithdrawn,
)
from bentpipe.daemon.model import MachineState, SatelliteState, SleepMode

M = MachineState
S = SatelliteState
WALL_S = 1_800_000_000.0
"""The wall clock's time at the moment of each question."""


@pytest.fixture
def awake() -> PlayedMachine:
    """Awake, with one lease."""
    played = PlayedMachine(RULES)
    played.see(M.STOPPED)
    played.come()
    played.feed(StartDone(None))
    played.see(M.RUNNING)
    played.feed(Ready())
    assert played.state is S.OPERATIONAL
    assert played.machine.known.leases == 1
    return played


def last_used(played: PlayedMachine) -> float | None:
    return played.machine.known.last_used(played.now, WALL_S)


def test_a_leased_satellite_is_used_now_and_an_idle_one_was_used_when_its_last_lease_ended(
    awake: PlayedMachine,
) -> None:
    assert last_used(awake) == WALL_S
    awake.feed(Released())
    awake.wait(7)
    assert last_used(awake) == WALL_S - 7


def test_a_satellite_that_nobody_has_used_was_last_used_when_it_fell_asleep() -> None:
    played = PlayedMachine(RULES)
    assert last_used(played) is None
    played.see(M.STOPPED, asleep_since=123.0)
    assert last_used(played) == 123.0


def test_the_caller_that_asked_for_sleep_is_told_why_it_is_awake(awake: PlayedMachine) -> None:
    awake.come()
    assert "is used: 2 connections or reservations, 0 clients waiting" in awake.machine.known.why_awake
    awake.feed(Released())
    awake.feed(Released())
    assert "busy" in awake.machine.known.why_awake
    awake.feed(KeepAwake(True))
    assert "kept awake" in awake.machine.known.why_awake


def test_sleep_that_is_asked_for_begins_if_it_is_idle_and_may_sleep(awake: PlayedMachine) -> None:
    assert awake.feed(SleepAsked()) == [], "it is used"
    awake.feed(Released())
    awake.feed(KeepAwake(True))
    assert awake.feed(SleepAsked()) == [], "it is kept awake"
    awake.feed(KeepAwake(False))
    assert Stop(SleepMode.HIBERNATE) in awake.feed(SleepAsked())
    assert awake.state is S.STOPPING


def test_a_sleep_that_is_withdrawn_leaves_it_awake(awake: PlayedMachine) -> None:
    awake.feed(Released())
    awake.feed(SleepAsked())
    awake.feed(StopWithdrawn())
    assert awake.state is S.OPERATIONAL
    assert last_used(awake) == WALL_S


def test_all_that_wait_are_told_of_a_drain() -> None:
    played = PlayedMachine(RULES)
    played.see(M.STOPPED)
    played.come()
    played.come()
    failed = [action for action in played.feed(Drain()) if isinstance(action, Fail)]
    assert [type(action.error) for action in failed] == [Draining, Draining]


def test_what_is_certain_outlives_a_broken_machine(awake: PlayedMachine) -> None:
    awake.feed(KeepAwake(True))
    fresh = SatelliteMachine(RULES)
    refusal = Draining("drained")
    fresh.take_over(awake.machine, leases=3, metered=1, refusal=refusal)
    known = fresh.known
    assert (known.leases, known.metered, known.refusal, known.keep_awake) == (3, 1, refusal, True)
    assert known.wakes == awake.machine.known.wakes == 1
    assert known.state is S.UNKNOWN
