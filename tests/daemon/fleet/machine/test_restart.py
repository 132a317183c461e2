"""A machine that runs after a resume and cannot be reached: it is stopped and started, once."""

import dataclasses

import pytest

from beds.machines.played_machine import LONG_RULES as RULES
from beds.machines.played_machine import PlayedMachine
from bentpipe.daemon.errors import ProviderRetryable, SleepVetoed
from bentpipe.daemon.fleet.machine.messages import (
    Action,
    Arrived,
    Departed,
    Describe,
    Fail,
    GrantLease,
    Moved,
    ProbeFailed,
    ProblemFound,
    Ready,
    SleepProblem,
    SleepReason,
    Start,
    StartDone,
    Stop,
    StopDone,
    WaiterId,
)
from bentpipe.daemon.fleet.machine.rules import RESTART_AT, SILENT_LEAST_S
from bentpipe.daemon.model import Address, MachineState, SatelliteState, SleepMode

M, S = MachineState, SatelliteState
RESTART = Stop(SleepMode.STOP, restart=True)
SILENT = ProbeFailed("port 8372 does not answer", silent=True)
REFUSED = ProbeFailed("nothing listens on port 8372")
RESTART_S = RESTART_AT * RULES.wake_deadline_s


def resumed(slept: MachineState = M.HIBERNATED) -> PlayedMachine:
    """A client waits, and the machine runs again."""
    played = PlayedMachine(RULES)
    played.see(slept)
    assert Start() in played.come()
    played.feed(StartDone(None))
    played.see(M.PENDING)
    played.see(M.RUNNING)
    return played


def test_it_is_stopped_and_started_for_the_client_that_waits() -> None:
    played = resumed()
    played.feed(SILENT)
    assert set(map(type, played.wait(RESTART_S - 1))) == {Describe}
    done = played.wait(1)
    assert RESTART in done
    assert [each.cause for each in done if isinstance(each, Moved)] == [SleepReason.UNREACHABLE.value]
    assert [each.problem for each in done if isinstance(each, ProblemFound)] == [SleepProblem.UNREACHABLE_RESUME]
    assert played.machine.known.is_restarting
    played.feed(StopDone(None))
    played.see(M.STOPPING)
    assert Start() in played.see(M.STOPPED)
    played.feed(StartDone(None))
    played.see(M.RUNNING)
    assert GrantLease(WaiterId(1), Address("10.0.0.1", 8372)) in played.feed(Ready())


def test_it_happens_once_in_a_wake_and_the_next_wake_may_do_it_again() -> None:
    played = resumed()
    played.feed(SILENT)
    played.wait(RESTART_S)
    played.feed(StopDone(None))
    played.see(M.HIBERNATED)  # whatever it says of its memory
    played.feed(StartDone(None))
    played.see(M.RUNNING)
    played.feed(SILENT)
    assert RESTART not in played.wait(2 * RULES.wake_deadline_s)
    again = resumed()
    again.feed(Ready())
    assert again.machine.known.restarted is False


@pytest.mark.parametrize("slept", [M.STOPPED, M.TERMINATED])
def test_a_boot_is_not_a_resume(slept: MachineState) -> None:
    played = PlayedMachine(RULES)
    played.see(slept)
    played.come()
    played.see(M.RUNNING)
    played.feed(SILENT)
    assert RESTART not in played.wait(RULES.wake_deadline_s)


def test_a_machine_that_is_launched_after_a_hibernated_one_is_lost_boots() -> None:
    played = PlayedMachine(dataclasses.replace(RULES, launch=True))
    played.see(M.HIBERNATED)
    played.see(M.TERMINATED)
    played.come()
    played.feed(StartDone(None))
    played.see(M.RUNNING)
    played.feed(SILENT)
    assert RESTART not in played.wait(RULES.wake_deadline_s)


def test_a_machine_that_refuses_can_be_reached_and_is_given_its_time() -> None:
    played = resumed()
    played.feed(REFUSED)
    assert RESTART not in played.wait(RESTART_S)
    played.feed(SILENT)
    assert RESTART not in played.wait(SILENT_LEAST_S - 1)
    played.feed(REFUSED)
    assert RESTART not in played.wait(SILENT_LEAST_S)


def test_a_machine_under_connections_is_not_restarted() -> None:
    """It could not be dialled, but other clients are spliced to it."""
    played = resumed()
    played.feed(Ready())
    played.see(M.RUNNING, address=Address("10.0.0.2", 8372))
    played.feed(SILENT)
    assert RESTART not in played.wait(RULES.wake_deadline_s)


@pytest.mark.parametrize("error", [SleepVetoed("in use at edge-2"), ProviderRetryable("no answer")])
def test_a_stop_that_is_refused_leaves_it_waking_and_lets_nobody_in(error: Exception) -> None:
    played = resumed()
    played.feed(SILENT)
    played.wait(RESTART_S)
    assert isinstance(error, SleepVetoed | ProviderRetryable)
    done = played.feed(StopDone(error))
    assert not [each for each in done if isinstance(each, GrantLease | Fail)]
    assert played.state is S.STARTING
    assert any(isinstance(each, GrantLease) for each in played.feed(Ready()))


def test_without_a_client_nothing_is_restarted() -> None:
    played = resumed()
    played.feed(SILENT)
    played.feed(Departed(WaiterId(1)))
    assert RESTART not in played.wait(RULES.wake_deadline_s)


def test_clients_that_come_meanwhile_wait_too() -> None:
    played = resumed()
    played.feed(SILENT)
    played.wait(RESTART_S)
    assert played.feed(Arrived(WaiterId(7))) == []
    played.feed(StopDone(None))
    played.see(M.STOPPED)
    played.feed(StartDone(None))
    played.see(M.RUNNING)
    granted = [each.waiter for each in played.feed(Ready()) if isinstance(each, GrantLease)]
    assert granted == [1, 7]


def test_a_machine_that_was_stopped_as_unready_answers_before_it_serves_again() -> None:
    """The stop was decided, and then a client came: nobody is sent to a port that has never answered."""
    played = resumed(M.STOPPED)
    done: list[Action] = played.wait(2 * RULES.wake_deadline_s)
    assert Stop(SleepMode.STOP) in done
    played.come()
    assert not [each for each in played.feed(StopDone(SleepVetoed("somebody came"))) if isinstance(each, GrantLease)]
    assert played.state is S.STARTING
