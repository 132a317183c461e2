"""A machine that lacks capacity while an alternative is left: it is called again at once, and no client is told."""

import dataclasses

from beds.machines.played_machine import LONG_RULES, PlayedMachine
from bentpipe.daemon.fleet.machine.messages import Action, Fail, Launch, Start, StartDone
from bentpipe.daemon.model import Fault, MachineState, SatelliteState

S, M = SatelliteState, MachineState
LAUNCHED = dataclasses.replace(LONG_RULES, launch=True)


def calls(actions: list[Action]) -> list[Action]:
    return [each for each in actions if isinstance(each, Start | Launch | Fail)]


def lacking(played: PlayedMachine, state: MachineState, *, other_left: bool) -> list[Action]:
    """The call is accepted, the machine comes up, and goes down for lack of capacity."""
    done = [*played.feed(StartDone(None)), *played.see(M.PENDING)]
    return calls([*done, *played.see(state, fault=Fault.CAPACITY, other_left=other_left)])


def test_a_machine_is_launched_again_by_another_alternative() -> None:
    played = PlayedMachine(LAUNCHED)
    played.see(M.TERMINATED)
    assert calls(played.come()) == [Launch(0)]
    assert lacking(played, M.TERMINATED, other_left=True) == [Launch(1)], "with another token"
    assert calls(played.see(M.TERMINATED, fault=Fault.CAPACITY, other_left=True)) == [], (
        "the same look says nothing new"
    )
    assert lacking(played, M.TERMINATED, other_left=True) == [Launch(2)]
    (failed,) = lacking(played, M.TERMINATED, other_left=False)
    assert isinstance(failed, Fail)
    assert played.state is S.SLEEP
    assert calls(played.come())[0] != Launch(3), "a client hears the same until it is time for another attempt"


def test_a_machine_is_started_again_with_another_type() -> None:
    played = PlayedMachine(LONG_RULES)
    played.see(M.STOPPED)
    assert calls(played.come()) == [Start()]
    for _ in range(3):
        assert lacking(played, M.STOPPED, other_left=True) == [Start()]
    (failed,) = lacking(played, M.STOPPED, other_left=False)
    assert isinstance(failed, Fail)


def test_a_machine_for_which_nobody_waits_is_launched_again_too() -> None:
    """LaunchSatellite has answered already."""
    played = PlayedMachine(LAUNCHED)
    played.see(M.TERMINATED)
    played.see(M.PENDING)
    assert calls(played.see(M.TERMINATED, fault=Fault.CAPACITY, other_left=True)) == [Launch(1)]
    assert lacking(played, M.TERMINATED, other_left=False) == []
    assert played.state is S.SLEEP
    assert calls(played.wait(7200)) == [], "the next client tries again"
    assert calls(played.come()) == [Launch(2)]
