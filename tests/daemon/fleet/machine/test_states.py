"""The two tables of states, and the diagram beside them."""

import dataclasses
import itertools
import re

import pytest

from beds.machines.played_machine import RULES as HIBERNATING
from bentpipe.daemon.fleet.machine import states as module
from bentpipe.daemon.fleet.machine.machine import SatelliteMachine
from bentpipe.daemon.fleet.machine.messages import Arrived, Moved, Seen, WaiterId
from bentpipe.daemon.fleet.machine.rules import Rules
from bentpipe.daemon.fleet.machine.states import ASLEEP, MEANINGS, TRANSITIONS, UP, Meaning
from bentpipe.daemon.model import Address, Machine, MachineId, MachineState, SatelliteState, SleepMode

S = SatelliteState
RULES = dataclasses.replace(HIBERNATING, sleep_mode=SleepMode.STOP)


def test_the_diagram_shows_every_road_and_no_other() -> None:
    drawn: set[tuple[SatelliteState, SatelliteState]] = set()
    for line in (module.__doc__ or "").splitlines():
        road = (
            [SatelliteState[name] for name in re.findall(r"\b[A-Z]{4,}\b", line.split("   ")[1])]
            if "─▶" in line
            else []
        )
        drawn |= set(itertools.pairwise(road))
    assert drawn == {(before, after) for before, all_after in TRANSITIONS.items() for after in all_after}


@pytest.mark.parametrize("state", list(TRANSITIONS))
def test_no_state_is_a_dead_end(state: SatelliteState) -> None:
    reached = {state}
    while more := {after for before in reached for after in TRANSITIONS[before]} - reached:
        reached |= more
    assert SatelliteState.OPERATIONAL in reached


def test_every_look_means_something_in_every_state() -> None:
    assert set(MEANINGS) == set(TRANSITIONS)
    for row in MEANINGS.values():
        assert set(row) == set(MachineState)
    assert {meaning for row in MEANINGS.values() for meaning in row.values()} == set(Meaning)


def test_a_machine_is_up_asleep_or_on_its_way_out() -> None:
    assert not UP & ASLEEP
    assert set(MachineState) - UP - ASLEEP == {MachineState.STOPPING, MachineState.TERMINATED}


def look(state: MachineState, reason: str = "") -> Machine:
    address = Address("192.0.2.1", 8372) if state is MachineState.RUNNING else None
    return Machine(MachineId("m"), state, address, reason)


@pytest.mark.parametrize("launch", [False, True])
@pytest.mark.parametrize(("first", "second"), list(itertools.product(MachineState, repeat=2)))
def test_what_was_seen_last_decides_where_an_unused_satellite_stands(
    first: MachineState, second: MachineState, launch: bool
) -> None:
    """Nobody comes: it is awake, asleep, going down or gone as its machine is, whatever went before."""
    satellite = SatelliteMachine(Rules(**{**{f: getattr(RULES, f) for f in RULES.__slots__}, "launch": launch}))
    for now, state in enumerate((first, second)):
        satellite.handle(Seen(look(state)), now)
    assert (
        satellite.known.state
        in {
            MachineState.PENDING: {S.STARTING},
            MachineState.RUNNING: {S.STARTING},
            MachineState.STOPPING: {S.STOPPING},
            MachineState.STOPPED: {S.SLEEP},
            MachineState.HIBERNATED: {S.SLEEP},
            MachineState.TERMINATED: {S.SLEEP if launch else S.FAILED},
        }[second]
    ), (first, second, satellite.known.state)


def test_a_move_that_the_table_does_not_have_is_a_bug() -> None:
    satellite = SatelliteMachine(RULES)
    with pytest.raises(AssertionError, match="UNKNOWN to OPERATIONAL"):
        satellite._move(S.OPERATIONAL, "a bug")


def test_a_client_turns_sleep_into_starting() -> None:
    satellite = SatelliteMachine(RULES)
    satellite.handle(Seen(look(MachineState.STOPPED)), 0)
    moves = [action for action in satellite.handle(Arrived(WaiterId(1)), 0) if isinstance(action, Moved)]
    assert moves == [Moved(S.SLEEP, S.STARTING, "a client came")]
