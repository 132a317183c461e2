"""The decisions about machines of the reserve."""

import dataclasses
import itertools

import pytest

from bentpipe.daemon.fleet import reserve_rules as rules
from bentpipe.daemon.fleet.reserve_rules import (
    Facts,
    ReserveStep,
    Verdict,
    Wanted,
    chosen,
    decide,
    failed,
    refused,
    successor,
)
from bentpipe.daemon.model import Fault, MachineState, SatelliteKey, SleepMode
from bentpipe.daemon.providers.reserve import SpareMachine
from bentpipe.daemon.registry.reserve import ReservePlace, SpareState, StoredSpare, Taker

NOW = 1_000_000.0
ID = "a" * 32
KEY = SatelliteKey("acme", "one")
WANTED = Wanted("digest", 1000.0, 150.0)
ROW = StoredSpare(
    ReservePlace("small", "linux/amd64", 0), ID, 3, SpareState.FILLING, "digest", int(NOW * 1e6), instance="i-1"
)
READY = ROW.changed(SpareState.READY)
TAKEN = dataclasses.replace(READY.changed(SpareState.TAKEN), taker=Taker(KEY, 2, int(NOW * 1e6)))
DOOMED = ROW.changed(SpareState.DOOMED, "why")
EXISTS = {KEY: 2}


def seen(state: MachineState, **more: object) -> SpareMachine:
    return dataclasses.replace(SpareMachine(ID, "i-1", state, up_since=NOW - 200), **more)  # type: ignore[arg-type]


def step(
    row: StoredSpare, look: SpareMachine | None, wanted: Wanted | None = WANTED, **facts: object
) -> tuple[ReserveStep, SpareState | None]:
    verdict = decide(row, look, wanted, Facts(NOW, **facts))  # type: ignore[arg-type]
    if verdict.row is not None:
        assert (verdict.row.version, verdict.row.spare) == (row.version + 1, row.spare)
    return verdict.step, None if verdict.row is None else verdict.row.state


def test_from_the_launch_to_the_sleep() -> None:
    new = dataclasses.replace(ROW, instance="")
    assert step(new, None) == (ReserveStep.LAUNCH, None)
    assert step(new, seen(MachineState.PENDING)) == (ReserveStep.STORE, SpareState.FILLING)
    assert step(ROW, seen(MachineState.PENDING)) == (ReserveStep.NOTHING, None)
    assert step(ROW, seen(MachineState.RUNNING)) == (ReserveStep.LAY_DOWN, None)
    assert step(ROW, seen(MachineState.RUNNING), is_warm=False) == (ReserveStep.NOTHING, None)
    assert step(ROW, seen(MachineState.RUNNING, up_since=NOW - 10)) == (ReserveStep.NOTHING, None)
    assert step(ROW, seen(MachineState.RUNNING, up_since=NOW + 1e6), up_s=151.0) == (ReserveStep.LAY_DOWN, None), (
        "a wrong clock"
    )
    assert step(ROW, seen(MachineState.STOPPING)) == (ReserveStep.NOTHING, None)
    for state in (MachineState.HIBERNATED, MachineState.STOPPED):
        assert step(ROW, seen(state)) == (ReserveStep.STORE, SpareState.READY)
        assert step(READY, seen(state)) == (ReserveStep.NOTHING, None)


@pytest.mark.parametrize(
    ("look", "facts"),
    [
        (seen(MachineState.STOPPED, fault=Fault.CAPACITY), {}),
        (seen(MachineState.TERMINATED), {}),
        (None, {"missing_s": rules.UNSEEN_S}),
        *((seen(state), {"up_s": rules.WARM_MOST_S}) for state in (MachineState.RUNNING, MachineState.STOPPING)),
    ],
)
def test_a_machine_that_comes_to_nothing_is_replaced_later(look: SpareMachine | None, facts: dict[str, object]) -> None:
    verdict = decide(ROW, look, WANTED, Facts(NOW, **facts))  # type: ignore[arg-type]
    assert verdict.row is not None
    assert (verdict.row.state, verdict.row.failures) == (SpareState.DOOMED, 1)
    assert verdict.row.again_us == int((NOW + rules.FAILURE_FIRST_S) * 1e6)
    gone = step(verdict.row, seen(MachineState.TERMINATED))
    assert gone == (ReserveStep.RENEW, None)
    after = successor(verdict.row, "b" * 32, NOW, "digest")
    assert step(after, None) == (ReserveStep.NOTHING, None), "it waits"
    assert decide(after, None, WANTED, Facts(NOW + rules.FAILURE_FIRST_S)).step is ReserveStep.LAUNCH


def test_waits_double_up_to_an_hour() -> None:
    row, waits = ROW, []
    for _ in range(40):
        row = refused(row, "no capacity", NOW)
        assert row.state is SpareState.FILLING
        waits.append(row.again_us / 1e6 - NOW)
    assert waits[:3] == [rules.FAILURE_FIRST_S * factor for factor in (1, 2, 4)]
    assert waits[-1] == rules.FAILURE_MOST_S


@pytest.mark.parametrize("row", [ROW, READY])
def test_what_is_not_wanted_is_destroyed(row: StoredSpare) -> None:
    look = seen(MachineState.HIBERNATED)
    assert step(row, look, None) == (ReserveStep.STORE, SpareState.DOOMED)
    other = Wanted("other", 1000.0, 150.0)
    assert step(READY, look, other) == (ReserveStep.STORE, SpareState.DOOMED)
    assert step(dataclasses.replace(ROW, instance=""), None, other) == (ReserveStep.STORE, SpareState.DOOMED), (
        "not launched"
    )
    assert step(ROW, look, other) == (ReserveStep.STORE, SpareState.READY), "it is replaced when its turn comes"
    old = dataclasses.replace(READY, created_us=int((NOW - 1001) * 1e6))
    assert step(old, look) == (ReserveStep.STORE, SpareState.DOOMED)
    for wanted in (WANTED, Wanted("other", 1000.0, 150.0)):
        assert step(old, look, wanted, may_replace=False) == (ReserveStep.NOTHING, None), "one after the other"


def test_others_have_acted() -> None:
    for state in (MachineState.PENDING, MachineState.RUNNING):
        assert step(READY, seen(state)) == (ReserveStep.STORE, SpareState.FILLING), "it is laid down again"
    assert step(READY, seen(MachineState.TERMINATED)) == (ReserveStep.STORE, SpareState.DOOMED)
    assert step(READY, None) == (ReserveStep.NOTHING, None), "EC2 may not show it for a moment"
    for row in (ROW, READY):
        assert step(row, seen(MachineState.STOPPED, satellite="acme/other")) == (ReserveStep.RELEASE, None)


def test_a_machine_that_was_taken() -> None:
    up = seen(MachineState.RUNNING, satellite=str(KEY))
    bare = seen(MachineState.HIBERNATED)
    assert step(TAKEN, up, generations=EXISTS) == (ReserveStep.NOTHING, None)
    assert step(TAKEN, up, generations=EXISTS, settled=frozenset({KEY})) == (ReserveStep.RELEASE, None)
    assert step(TAKEN, bare, generations=EXISTS) == (ReserveStep.NOTHING, None), "it is just being given away"
    assert step(TAKEN, bare, generations=EXISTS, settled=frozenset({KEY})) == (ReserveStep.STORE, SpareState.DOOMED)
    assert step(TAKEN, bare, generations={}) == (ReserveStep.STORE, SpareState.DOOMED), "the satellite was removed"
    assert step(TAKEN, bare, generations={KEY: 3}) == (ReserveStep.STORE, SpareState.DOOMED)
    assert step(TAKEN, up, generations={KEY: 3}) == (ReserveStep.RELEASE, None), "the satellite's own life decides"
    assert step(TAKEN, seen(MachineState.TERMINATED), generations=EXISTS) == (ReserveStep.FORGET, None)
    taken_at = TAKEN.created_us / 1e6
    for look, after_s, found in (
        (bare, rules.UNFINISHED_S, (ReserveStep.STORE, SpareState.DOOMED)),
        (up, rules.UNFINISHED_S, (ReserveStep.NOTHING, None)),
        (up, rules.SETTLED_S, (ReserveStep.RELEASE, None)),
    ):
        verdict = decide(TAKEN, look, WANTED, Facts(taken_at + after_s, generations=EXISTS))
        assert (verdict.step, verdict.row and verdict.row.state) == found


def test_a_machine_is_destroyed_only_if_it_is_nobodys() -> None:
    assert step(DOOMED, seen(MachineState.RUNNING)) == (ReserveStep.DESTROY, None)
    mine = dataclasses.replace(TAKEN.changed(SpareState.DOOMED), failures=0)
    tagged = seen(MachineState.RUNNING, satellite=str(KEY))
    assert step(mine, tagged, generations=EXISTS) == (ReserveStep.RELEASE, None)
    assert step(mine, seen(MachineState.RUNNING), generations=EXISTS) == (ReserveStep.DESTROY_TAKEN, None)
    assert step(mine, tagged, generations={}) == (ReserveStep.DESTROY_TAKEN, None)
    assert step(mine, seen(MachineState.RUNNING, satellite="acme/other"), generations={}) == (ReserveStep.RELEASE, None)
    assert step(DOOMED, None) == (ReserveStep.NOTHING, None), "its launch may not be visible yet"
    assert step(DOOMED, None, missing_s=rules.UNSEEN_S) == (ReserveStep.FORGET, None)


@pytest.mark.parametrize("state", SpareState)
def test_every_look_has_a_verdict_and_none_destroys_a_satellites_machine(state: SpareState) -> None:
    looks = [None, *(seen(each, satellite=tag) for each in MachineState for tag in ("", str(KEY)))]
    facts = itertools.product((0.0, 1e6), (0.0, 1e6), ({}, EXISTS, {KEY: 7}), (frozenset(), frozenset({KEY})))
    for taker, look, wanted, (up_s, missing_s, generations, settled) in itertools.product(
        (None, TAKEN.taker), looks, (None, WANTED, Wanted("other", 0.0, 0.0)), list(facts)
    ):
        row = dataclasses.replace(ROW, state=state, taker=taker)
        verdict = decide(
            row,
            look,
            wanted,
            Facts(NOW, up_s=up_s, missing_s=missing_s, generations=generations, settled=settled),
        )
        assert isinstance(verdict, Verdict)
        if verdict.step is ReserveStep.DESTROY:
            assert look is not None
            assert not look.satellite
            assert taker is None, "it is asked in the satellite's turn"
        if verdict.step is ReserveStep.DESTROY_TAKEN:
            assert taker is not None
            assert look is not None
            assert not look.satellite or KEY not in generations
        if verdict.step is ReserveStep.LAUNCH:
            assert state is SpareState.FILLING
            assert look is None


def test_of_two_machines_with_one_id_one_counts() -> None:
    machines = [dataclasses.replace(seen(MachineState.RUNNING), instance=each) for each in ("i-3", "i-1", "i-2")]
    found = chosen(dataclasses.replace(ROW, instance="i-2"), machines)
    assert found is not None
    assert found.instance == "i-2"
    first = chosen(dataclasses.replace(ROW, instance=""), machines)
    assert first is not None
    assert first.instance == "i-1"
    assert chosen(ROW, []) is None


def test_a_machine_that_cannot_hibernate_is_stopped() -> None:
    able, unable = seen(MachineState.RUNNING), seen(MachineState.RUNNING, can_hibernate=False)
    assert rules.sleep_mode_of(SleepMode.HIBERNATE, able, refused=False) is SleepMode.HIBERNATE
    assert rules.sleep_mode_of(SleepMode.HIBERNATE, able, refused=True) is SleepMode.STOP
    assert rules.sleep_mode_of(SleepMode.HIBERNATE, unable, refused=False) is SleepMode.STOP
    assert rules.sleep_mode_of(SleepMode.STOP, able, refused=False) is SleepMode.STOP


def test_a_failed_row_keeps_its_taker() -> None:
    assert failed(TAKEN, "why", NOW).taker == TAKEN.taker
