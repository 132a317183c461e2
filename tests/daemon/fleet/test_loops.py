"""The wake and sleep loops, oddity by oddity: what the machine does when EC2 behaves as EC2 does."""

import dataclasses

import pytest

from beds.machines.played_machine import ADDRESS, PlayedMachine
from beds.machines.played_machine import LONG_RULES as RULES
from bentpipe.daemon.errors import (
    BentpipeError,
    LaunchTokenSpent,
    LimitReached,
    MachineNotFound,
    ProviderCapacity,
    ProviderError,
    ProviderPermanent,
    ProviderPermission,
    ProviderRetryable,
    ProviderThrottled,
    SatelliteUnusable,
    SleepModeRefused,
    SleepTooEarly,
    WakeFailed,
)
from bentpipe.daemon.fleet.machine.messages import (
    Action,
    Describe,
    DescribeDone,
    EndQuiet,
    Evict,
    Fail,
    GrantLease,
    Input,
    KeepAwake,
    Launch,
    Metered,
    Moved,
    PlaceGranted,
    Probe,
    ProblemFound,
    Ready,
    Released,
    Renew,
    Reset,
    ResumeDetected,
    SleepProblem,
    SleepReason,
    Start,
    StartDone,
    Stop,
    StopDone,
    StopWithdrawn,
    Traffic,
    Unreachable,
)
from bentpipe.daemon.fleet.machine.rules import (
    BLOCKED_FIRST_S,
    CAPACITY_MOST_S,
    CLOSE_QUIET_S,
    FAILURE_MOST_S,
    HOLD_FACTOR,
    HOLD_FLOOR_S,
    PATIENCE_S,
    RETRY_START_S,
    SLEEP_PROBLEM_S,
    SLEEP_RETRY_FIRST_S,
    THROTTLE_FIRST_S,
    THROTTLE_MOST_S,
    UNREADY_ROUNDS,
    VAIN_HIBERNATIONS,
    Rules,
)
from bentpipe.daemon.model import Address, Fault, MachineState, Resume, SatelliteState, SleepMode
from bentpipe.daemon.providers.ec2.traits import TRAITS

S = SatelliteState
M = MachineState
BUDGETED = dataclasses.replace(RULES, budgeted=True)
ENDS_QUIET = dataclasses.replace(RULES, ends_quiet=True)


class Life(PlayedMachine):
    def __init__(self, state: MachineState = M.STOPPED, rules: Rules = RULES) -> None:
        super().__init__(rules)
        self.actions: list[Action] = []
        self.see(state)

    def feed(self, event: Input) -> list[Action]:
        self.actions = super().feed(event)
        return self.actions

    def start_fails(self, error: ProviderError) -> list[Action]:
        return self.feed(StartDone(error))

    def wake(self, took_s: float = 20.0) -> None:
        self.come()
        self.feed(StartDone(None))
        self.see(M.PENDING)
        self.now += took_s
        self.see(M.RUNNING)
        self.feed(Ready())
        assert self.state is S.OPERATIONAL

    def leave(self) -> None:
        while self.machine.known.leases:
            self.feed(Released())

    def fall_asleep(self) -> Stop:
        """Wake for a client who leaves, and idle until the sleep is decided."""
        self.wake()
        self.leave()
        (stop,) = (action for action in self.wait(RULES.sleep_after_s) if isinstance(action, Stop))
        assert self.state is S.STOPPING
        return stop

    def sleep_through(self, state: MachineState) -> None:
        self.fall_asleep()
        self.feed(StopDone(None))
        self.see(M.STOPPING)
        self.see(state)
        assert self.state is S.SLEEP


def errors(actions: list[Action]) -> list[BentpipeError]:
    return [action.error for action in actions if isinstance(action, Fail)]


def sleep_problems(actions: list[Action]) -> list[SleepProblem]:
    return [action.problem for action in actions if isinstance(action, ProblemFound)]


# -- waking ------------------------------------------------------------------------------------------------------------


def test_a_start_is_repeated_every_second_until_a_stopping_machine_takes_it() -> None:
    life = Life()
    assert Start() in life.come()
    for _ in range(50):
        assert life.start_fails(ProviderRetryable("IncorrectInstanceState")) == []
        assert life.wait(RETRY_START_S) == [Start()]
    life.feed(StartDone(None))
    assert life.wait(RETRY_START_S) == []


def test_throttled_starts_come_later_every_time_and_nobody_is_told_for_a_minute() -> None:
    life = Life()
    life.come()
    began, pauses = life.now, []
    for _ in range(5):
        assert life.start_fails(ProviderThrottled("RequestLimitExceeded")) == []
        begun = life.now
        done: list[Action] = []
        while not done:
            done = life.wait(1.0)
        pauses.append(life.now - begun)
        if Start() not in done:
            break
    assert pauses == [THROTTLE_FIRST_S, 4, 8, 16, PATIENCE_S - 30]
    assert THROTTLE_MOST_S >= PATIENCE_S - 30
    (told,) = errors(done)
    assert life.now == began + PATIENCE_S
    assert "for 60 s every attempt has failed; the last reason: RequestLimitExceeded; the next attempt" in str(told)
    assert life.state is S.SLEEP


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_lack_of_capacity_is_remembered_longer_every_time(asynchronous: bool) -> None:
    life = Life()
    expected_s = RULES.capacity_retry_s
    for _ in range(6):
        assert Start() in life.come()
        if asynchronous:
            life.feed(StartDone(None))
            life.see(M.PENDING)
            failed = life.see(M.STOPPED, fault=Fault.CAPACITY, reason="Server.InsufficientInstanceCapacity")
        else:
            failed = life.start_fails(ProviderCapacity("InsufficientInstanceCapacity"))
        assert life.state is S.SLEEP
        assert f"; the next attempt is possible in {expected_s:g} s" in str(errors(failed)[0])
        life.wait(expected_s - 1)
        (late,) = errors(life.come())
        assert "InsufficientInstanceCapacity; the next attempt is possible in 1 s" in str(late)
        life.wait(1)
        expected_s = min(2 * expected_s, CAPACITY_MOST_S)
    life.wake()
    life.see(M.STOPPED)
    life.come()
    assert "in 180 s" in str(errors(life.start_fails(ProviderCapacity("none")))[0]), "a success is a new beginning"


@pytest.mark.parametrize("error", [ProviderPermission("kms:CreateGrant"), ProviderPermanent("Unsupported"), None])
def test_what_people_must_mend_is_failed_for_minutes_at_most(error: ProviderError | None) -> None:
    life = Life()
    life.come()
    if error is None:
        # A KMS grant that is missing: StartInstances succeeds, and the machine goes from pending back to stopped.
        life.feed(StartDone(None))
        life.see(M.PENDING)
        failed = life.see(M.STOPPED, fault=Fault.PERMISSION, reason="Client.InternalError: kms:CreateGrant")
    else:
        failed = life.start_fails(error)
    assert [type(told) for told in errors(failed)] == [SatelliteUnusable]
    assert life.state is S.FAILED
    life.wait(BLOCKED_FIRST_S - 1)
    (told,) = errors(life.come())
    assert isinstance(told, SatelliteUnusable)
    assert "the next attempt is possible in 1 s" in str(told)
    life.see(M.STOPPED, reason="seen again, and still asleep")
    assert life.state is S.FAILED
    life.feed(Reset())
    assert life.state is S.SLEEP
    assert Start() in life.come()


def test_what_people_have_mended_is_had_again_without_a_word_to_the_daemon() -> None:
    life = Life()
    pauses = []
    for _ in range(7):
        assert Start() in life.come()
        life.start_fails(ProviderPermission("not allowed"))
        begun = life.now
        while life.state is S.FAILED:
            assert life.wait(1.0) in ([], [Moved(S.FAILED, S.SLEEP, "it may be tried again")])
        pauses.append(life.now - begun)
    assert pauses == [BLOCKED_FIRST_S, 30, 60, 120, 240, FAILURE_MOST_S, FAILURE_MOST_S]
    life.wake()


def test_if_others_start_what_had_failed_it_is_used_again() -> None:
    life = Life()
    life.come()
    life.start_fails(ProviderPermission("not allowed"))
    life.see(M.PENDING)
    assert life.come() == []
    life.see(M.RUNNING)
    assert [type(action) for action in life.feed(Ready())] == [Moved, GrantLease]


def test_down_again_by_a_fault_is_tried_again_after_seconds_and_then_minutes() -> None:
    life = Life()
    pauses = []
    for _ in range(9):
        assert Start() in life.come()
        life.feed(StartDone(None))
        life.see(M.PENDING)
        (failed,) = errors(life.see(M.STOPPED, fault=Fault.OTHER, reason="i-1 broke", hint="it broke"))
        assert isinstance(failed, WakeFailed)
        assert "i-1 broke" in str(failed)
        assert failed.peer_hint.startswith("the satellite stopped while starting: it broke; the next attempt")
        pauses.append(float(str(failed).rpartition(" in ")[2].removesuffix(" s")))
        life.wait(pauses[-1])
    assert pauses == [5, 10, 20, 40, 80, 160, FAILURE_MOST_S, FAILURE_MOST_S, FAILURE_MOST_S]


def test_a_start_of_a_machine_that_is_gone_is_looked_at_before_anybody_is_told() -> None:
    life = Life()
    life.come()
    assert life.start_fails(MachineNotFound("InvalidInstanceID.NotFound")) == [Describe()]
    assert [type(told) for told in errors(life.see(M.TERMINATED))] == [SatelliteUnusable]
    assert life.state is S.FAILED


def test_what_may_yet_come_up_is_not_called_asleep() -> None:
    life = Life()
    life.come()
    life.wait(RULES.wake_deadline_s - 1)
    life.feed(StartDone(None))
    assert [type(told) for told in errors(life.wait(1))] == [WakeFailed]
    assert life.state is S.STARTING, "the start was accepted a second ago"
    life.wait(TRAITS.start_grace_s)
    assert life.state is S.SLEEP


def test_a_machine_that_runs_and_never_listens_is_stopped_to_be_started_anew() -> None:
    life = Life()
    life.come()
    life.feed(StartDone(None))
    life.see(M.RUNNING)
    done = life.wait(RULES.wake_deadline_s)
    assert len(errors(done)) == 1
    assert life.state is S.STARTING
    assert life.come() == [], "it is up: it may be worth waiting for"
    done = life.wait(RULES.wake_deadline_s * (UNREADY_ROUNDS - 1))
    assert Stop(SleepMode.STOP) in done
    assert life.state is S.STOPPING


@pytest.mark.parametrize(
    "states", [(M.RUNNING,), (M.PENDING, M.RUNNING), (M.STOPPING, M.STOPPED, M.PENDING, M.RUNNING)]
)
def test_a_changed_address_is_probed_before_anybody_is_sent_there(states: tuple[MachineState, ...]) -> None:
    life = Life()
    life.wake()
    new = Address("10.0.0.2", 8372)
    for state in states:
        life.see(state, address=new)
        assert not any(isinstance(action, GrantLease) for action in life.come())
    granted = [action.address for action in life.feed(Ready()) if isinstance(action, GrantLease)]
    assert granted == [new] * len(states)


def test_an_address_that_does_not_answer_is_probed_before_the_next_grant() -> None:
    life = Life()
    life.wake()
    assert life.feed(Unreachable())[-2:] == [Probe(ADDRESS), Describe()]
    assert life.come() == []
    assert [type(action) for action in life.feed(Ready())] == [Moved, GrantLease]
    life.see(M.STOPPED)
    assert life.feed(Unreachable()) == [], "that is known already"


def test_a_start_that_comes_back_when_others_were_quicker_changes_nothing() -> None:
    life = Life()
    life.come()
    life.see(M.PENDING)
    assert life.start_fails(ProviderPermission("too late to matter")) == []
    life.see(M.STOPPING)
    life.see(M.STOPPED)
    life.come()
    life.see(M.TERMINATED)
    assert life.feed(StartDone(None)) == []
    assert life.state is S.FAILED


# -- creating ----------------------------------------------------------------------------------------------------------

LAUNCHING = dataclasses.replace(RULES, launch=True)


def test_a_machine_that_does_not_exist_is_launched_for_a_client() -> None:
    life = Life(M.TERMINATED, LAUNCHING)
    assert life.state is S.SLEEP
    assert Launch(0) in life.come()
    assert life.state is S.CREATING
    life.feed(StartDone(None))
    life.see(M.PENDING)
    life.see(M.TERMINATED)
    life.see(M.PENDING)
    life.see(M.RUNNING)
    assert [type(action) for action in life.feed(Ready())] == [Moved, GrantLease]


def test_not_found_is_tolerated_for_a_while_after_a_launch() -> None:
    life = Life(M.TERMINATED, LAUNCHING)
    life.come()
    life.feed(StartDone(None))
    life.see(M.TERMINATED, reason="InvalidInstanceID.NotFound")
    assert errors(life.wait(TRAITS.appear_grace_s - 1)) == []
    (failed,) = errors(life.wait(1))
    assert "never appeared" in str(failed)
    life.wait(RULES.retry_after_s)
    assert Launch(1) in life.come(), "what was launched is lost: the next one is another"


def test_a_launch_that_is_overdue_has_its_time_to_appear_first() -> None:
    life = Life(M.TERMINATED, dataclasses.replace(LAUNCHING, wake_deadline_s=60))
    life.come()
    life.wait(59)
    life.feed(StartDone(None))
    assert len(errors(life.wait(1))) == 1
    assert life.state is S.CREATING
    life.wait(TRAITS.appear_grace_s)
    assert life.state is S.SLEEP
    life.wait(2 * RULES.retry_after_s)
    assert Launch(1) in life.come()


def test_a_launch_that_was_throttled_is_the_same_launch_when_it_is_repeated() -> None:
    life = Life(M.TERMINATED, LAUNCHING)
    life.come()
    life.start_fails(ProviderThrottled("RequestLimitExceeded"))
    assert life.wait(THROTTLE_FIRST_S) == [Launch(0)]


def test_a_token_whose_machine_is_gone_gives_way_to_another() -> None:
    """As when the daemon was restarted, and does not know how many machines it has launched."""
    life = Life(M.TERMINATED, LAUNCHING)
    assert Launch(0) in life.come()
    for generation in (1, 2):
        assert life.start_fails(LaunchTokenSpent("i-1 is terminated")) == []
        assert life.wait(RETRY_START_S) == [Launch(generation)]


def test_a_launched_machine_that_dies_says_why_at_once() -> None:
    life = Life(M.TERMINATED, LAUNCHING)
    life.come()
    life.feed(StartDone(None))
    life.see(M.PENDING)
    (failed,) = errors(life.see(M.TERMINATED, fault=Fault.PERMISSION, reason="Client.InternalError"))
    assert "Client.InternalError" in str(failed)
    assert life.state is S.FAILED
    life.feed(Reset())
    assert Launch(1) in life.come()


def test_a_machine_that_was_there_after_all_is_started() -> None:
    life = Life(M.TERMINATED, LAUNCHING)
    life.come()
    life.feed(StartDone(None))
    assert Start() in life.see(M.STOPPED)
    assert life.state is S.STARTING


@pytest.mark.parametrize("launch", [False, True])
def test_terminated_by_others(launch: bool) -> None:
    life = Life(rules=dataclasses.replace(RULES, launch=launch))
    life.wake()
    life.see(M.TERMINATED)
    if launch:
        assert life.state is S.SLEEP
        assert Launch(1) in life.come()
    else:
        assert life.state is S.FAILED
        assert life.come() == [Describe()], "there may be another one since"
        assert [type(told) for told in errors(life.feed(DescribeDone(None)))] == [SatelliteUnusable]
        for pause_s in (1, 2):
            assert life.come() == [], "the next look is soon"
            assert life.wait(pause_s) == [Describe()]
            assert [type(told) for told in errors(life.feed(DescribeDone(None)))] == [SatelliteUnusable]
        assert [type(told) for told in errors(life.come())] == [SatelliteUnusable], "looks become rare"


# -- going to sleep ----------------------------------------------------------------------------------------------------


def test_too_early_is_tried_again_and_meanwhile_it_serves() -> None:
    life = Life()
    assert life.fall_asleep().mode is SleepMode.HIBERNATE
    life.feed(StopDone(SleepTooEarly("wait two minutes after launch")))
    assert life.state is S.OPERATIONAL
    assert any(isinstance(action, GrantLease) for action in life.come())
    life.leave()
    life.machine.known.sleep.idle_since = 0.0
    assert Stop(SleepMode.HIBERNATE) not in life.wait(TRAITS.too_early_retry_s - 1)
    assert Stop(SleepMode.HIBERNATE) in life.wait(1)


def test_a_stop_that_fails_is_tried_again_later() -> None:
    life = Life()
    life.fall_asleep()
    for pause_s in (SLEEP_RETRY_FIRST_S, 2 * SLEEP_RETRY_FIRST_S):
        life.feed(StopDone(ProviderThrottled("RequestLimitExceeded")))
        assert life.state is S.OPERATIONAL
        assert Stop(SleepMode.HIBERNATE) not in life.wait(pause_s - 1)
        assert Stop(SleepMode.HIBERNATE) in life.wait(1)


def test_a_refused_hibernation_is_a_stop_and_is_said_once() -> None:
    life = Life()
    life.fall_asleep()
    done = life.feed(StopDone(SleepModeRefused("UnsupportedHibernationConfiguration")))
    assert sleep_problems(done) == [SleepProblem.HIBERNATE_REFUSED]
    assert Stop(SleepMode.STOP) in done
    life.feed(StopDone(None))
    life.see(M.STOPPED)
    assert life.fall_asleep().mode is SleepMode.STOP
    assert sleep_problems(life.actions) == []
    life.feed(StopDone(None))
    life.see(M.STOPPED)
    life.wait(SLEEP_PROBLEM_S)
    assert life.fall_asleep().mode is SleepMode.HIBERNATE, "it may have been mended since"


def test_what_was_learned_of_a_machine_goes_with_it() -> None:
    life = Life(rules=LAUNCHING)
    life.fall_asleep()
    life.feed(StopDone(SleepModeRefused("UnsupportedHibernationConfiguration")))
    life.feed(StopDone(None))
    life.see(M.STOPPED)
    life.see(M.TERMINATED)
    assert life.fall_asleep().mode is SleepMode.HIBERNATE


def test_a_machine_that_cannot_hibernate_is_not_asked_to() -> None:
    life = Life()
    life.see(M.STOPPED, can_hibernate=False)
    life.come()
    life.feed(StartDone(None))
    life.see(M.RUNNING, can_hibernate=False)
    life.feed(Ready())
    life.leave()
    done = life.wait(RULES.sleep_after_s)
    assert Stop(SleepMode.STOP) in done
    assert sleep_problems(done) == [SleepProblem.CANNOT_HIBERNATE]


@pytest.mark.parametrize("cold", [False, True], ids=["fell back", "booted cold"])
@pytest.mark.parametrize("reset", [False, True], ids=["after a day", "after a reset"])
def test_hibernations_that_kept_nothing_are_counted_and_then_given_up_for_a_day(cold: bool, reset: bool) -> None:
    life = Life()
    for _ in range(VAIN_HIBERNATIONS):
        assert life.fall_asleep().mode is SleepMode.HIBERNATE
        life.feed(StopDone(None))
        done = life.see(M.HIBERNATED if cold else M.STOPPED)
        if cold:
            life.wake()
            done = life.feed(ResumeDetected(Resume.COLD))
            life.leave()
            life.see(M.STOPPED)
        assert sleep_problems(done) == [SleepProblem.COLD_RESUME if cold else SleepProblem.FELL_BACK]
    assert life.fall_asleep().mode is SleepMode.STOP
    life.feed(StopDone(None))
    life.see(M.STOPPED)
    if reset:
        life.feed(Reset())
    else:
        life.wait(SLEEP_PROBLEM_S)
    assert life.fall_asleep().mode is SleepMode.HIBERNATE


def test_a_true_resume_makes_up_for_one_that_was_not() -> None:
    life = Life()
    for found in (Resume.COLD, Resume.RESUMED) * VAIN_HIBERNATIONS:
        life.sleep_through(M.HIBERNATED)
        life.wake()
        life.feed(ResumeDetected(found))
        life.leave()
        life.see(M.HIBERNATED)
    assert life.fall_asleep().mode is SleepMode.HIBERNATE


@pytest.mark.parametrize("somebody_waits", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_stuck_in_stopping_it_is_cut_off_if_we_stopped_it_or_somebody_waits(ours: bool, somebody_waits: bool) -> None:
    life = Life()
    if ours:
        life.fall_asleep()
        life.feed(StopDone(None))
        life.see(M.STOPPING)
    else:
        life.wake()
        life.leave()
        life.see(M.STOPPING)
    force = Stop(SleepMode.STOP, force=True)
    done = life.wait(TRAITS.stuck_stopping_s - 1)
    if somebody_waits:
        life.come()
    done += life.wait(1)
    assert (force in done) is (ours or somebody_waits)
    if force in done:
        assert sleep_problems(done) == [SleepProblem.FORCED]
        life.feed(StopDone(None))
        assert force not in life.wait(TRAITS.stuck_stopping_s - 1)
        assert force in life.wait(1)


def test_a_stop_that_fails_while_the_machine_still_goes_down() -> None:
    life = Life()
    life.fall_asleep()
    life.see(M.STOPPING)
    life.feed(StopDone(ProviderRetryable("no answer")))
    assert life.state is S.STOPPING
    assert life.come() == []
    assert Start() in life.see(M.HIBERNATED)


def test_a_freeze_that_is_undone_leads_back_by_a_probe() -> None:
    life = Life()
    life.fall_asleep()
    life.see(M.STOPPING)
    life.see(M.RUNNING)
    assert life.state is S.STOPPING, "our call has not come back"
    assert Probe(ADDRESS) in life.feed(StopDone(ProviderRetryable("it would not freeze")))
    assert life.state is S.STARTING


def test_a_stop_that_is_accepted_and_not_heeded() -> None:
    life = Life()
    life.fall_asleep()
    life.feed(StopDone(None))
    assert life.come() == []
    life.wait(TRAITS.stop_grace_s)
    assert life.state is S.STARTING
    assert [type(action) for action in life.feed(Ready())] == [Moved, GrantLease]


def test_who_comes_before_the_call_is_made_calls_it_off() -> None:
    life = Life()
    life.fall_asleep()
    assert life.come() == []
    done = life.feed(StopWithdrawn())
    assert [type(action) for action in done] == [Moved, GrantLease]
    assert life.state is S.OPERATIONAL


def test_hibernated_for_too_long_it_is_woken_and_stopped_plainly() -> None:
    life = Life()
    life.sleep_through(M.HIBERNATED)
    assert Start() in life.feed(Renew())
    life.feed(StartDone(None))
    life.see(M.RUNNING)
    life.feed(Ready())
    done = life.wait(RULES.min_awake_s)
    assert Stop(SleepMode.STOP) in done
    assert any(isinstance(action, Moved) and action.cause == SleepReason.RENEWED.value for action in done)
    life.feed(StopDone(None))
    life.see(M.STOPPED)
    assert Start() not in life.feed(Renew()), "stopped it may stay for ever"


def test_who_uses_a_machine_that_is_being_renewed_makes_that_needless() -> None:
    life = Life()
    life.sleep_through(M.HIBERNATED)
    life.feed(Renew())
    life.come()
    life.feed(StartDone(None))
    life.see(M.RUNNING)
    life.feed(Ready())
    life.leave()
    assert Stop(SleepMode.HIBERNATE) in life.wait(RULES.sleep_after_s)


# -- idleness ----------------------------------------------------------------------------------------------------------


def test_a_connection_keeps_it_awake_whatever_it_moves() -> None:
    life = Life()
    life.wake()
    life.feed(Metered())
    assert life.wait(100 * RULES.sleep_after_s) == []
    life.feed(Evict())
    assert life.state is S.OPERATIONAL
    life.feed(Released(metered=True))
    assert Stop(SleepMode.HIBERNATE) in life.wait(RULES.sleep_after_s)


def test_quiet_connections_keep_nobody_awake_if_asked_for_and_are_ended_before_the_stop() -> None:
    life = Life(rules=ENDS_QUIET)
    life.wake()
    life.feed(Metered())
    life.wait(RULES.sleep_after_s - 1)
    life.feed(Traffic())
    assert EndQuiet() not in life.wait(RULES.sleep_after_s - 1)
    done = life.wait(1)
    assert EndQuiet() in done
    assert Stop(SleepMode.HIBERNATE) not in done
    assert life.wait(CLOSE_QUIET_S) == [EndQuiet(cut=True)]
    assert life.feed(Released(metered=True)) == [Stop(SleepMode.HIBERNATE)]


def test_a_short_sleep_after_calls_no_connection_quiet_before_a_window_is_over() -> None:
    life = Life(rules=dataclasses.replace(ENDS_QUIET, sleep_after_s=5, min_awake_s=0))
    life.wake()
    life.feed(Metered())
    assert EndQuiet() not in life.wait(RULES.quiet_window_s - 1)
    assert EndQuiet() in life.wait(1)


def test_who_comes_while_quiet_connections_end_is_let_in_at_once() -> None:
    life = Life(rules=ENDS_QUIET)
    life.wake()
    life.feed(Metered())
    assert EndQuiet() in life.wait(RULES.sleep_after_s)
    assert [type(action) for action in life.come()] == [Moved, GrantLease]
    assert Stop(SleepMode.HIBERNATE) not in life.feed(Released(metered=True))


def test_a_lease_that_is_not_spliced_yet_is_in_use() -> None:
    life = Life(rules=ENDS_QUIET)
    life.wake()
    life.come()
    life.feed(Metered())
    assert life.machine.known.next_deadline() is None
    life.feed(Released())
    assert EndQuiet() in life.wait(RULES.sleep_after_s)


def test_the_hours_to_be_awake_wake_it_and_keep_it_awake() -> None:
    life = Life()
    assert Start() in life.feed(KeepAwake(True))
    life.start_fails(ProviderCapacity("none"))
    assert life.state is S.SLEEP
    assert Start() in life.wait(RULES.capacity_retry_s), "nobody has to come for another attempt"
    life.feed(StartDone(None))
    life.see(M.RUNNING)
    life.feed(Ready())
    assert life.wait(10 * RULES.sleep_after_s) == []
    assert Stop(SleepMode.HIBERNATE) in life.feed(KeepAwake(False))


# -- holding -----------------------------------------------------------------------------------------------------------


def test_clients_are_held_by_what_wakes_usually_take() -> None:
    life = Life()

    def held_s() -> float:
        life.come()
        deadline = life.machine.known.queue.first_until
        assert deadline is not None
        return deadline - life.now

    assert held_s() == RULES.hold_limit_s
    life.feed(StartDone(None))
    life.see(M.PENDING)
    life.now += 20
    life.see(M.RUNNING)
    life.feed(Ready())
    life.see(M.STOPPED)
    assert held_s() == HOLD_FLOOR_S
    life.feed(StartDone(None))
    life.see(M.PENDING)
    life.now += 100
    life.see(M.RUNNING)
    life.feed(Ready())
    life.see(M.STOPPED)
    assert held_s() == pytest.approx(HOLD_FACTOR * 44)


def test_each_is_held_from_its_own_coming() -> None:
    life = Life(rules=BUDGETED)  # so that no wake begins, whose deadline would be the first
    life.come()
    life.wait(7)
    life.come()
    life.wait(RULES.hold_limit_s - 7.1)
    assert life.machine.known.waiting == 2
    life.wait(0.2)
    assert life.machine.known.waiting == 1


# -- the awake budget --------------------------------------------------------------------------------------------------


def test_with_a_budget_it_wakes_only_when_it_has_a_place() -> None:
    life = Life(rules=BUDGETED)
    assert life.come() == []
    assert (life.machine.known.wants_place(life.now), life.machine.known.holds_place) == (True, False)
    assert Start() in life.feed(PlaceGranted())
    assert (life.machine.known.wants_place(life.now), life.machine.known.holds_place) == (False, True)


def test_a_place_that_nobody_wants_any_more_is_not_taken() -> None:
    life = Life(rules=BUDGETED)
    life.come()
    (told,) = errors(life.wait(RULES.hold_limit_s))
    assert isinstance(told, LimitReached)
    assert "no place" in str(told)
    assert life.feed(PlaceGranted()) == []


def test_it_is_evicted_only_when_idle_and_old_enough() -> None:
    life = Life(rules=BUDGETED)
    life.come()
    life.feed(PlaceGranted())
    life.feed(StartDone(None))
    life.see(M.RUNNING)
    life.feed(Ready())
    assert life.machine.known.idle_since is None
    assert life.feed(Evict()) == []
    life.leave()
    assert life.feed(Evict()) == [], "younger than its minimum"
    life.wait(RULES.min_awake_s)
    assert life.machine.known.idle_since is not None
    assert Stop(SleepMode.HIBERNATE) in life.feed(Evict())
    assert life.machine.known.holds_place, "until it is seen asleep"
    life.feed(StopDone(None))
    life.see(M.HIBERNATED)
    assert not life.machine.known.holds_place
