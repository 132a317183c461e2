"""What those who wait are told, and when; and when a machine is looked at beside the provider's own rounds."""

import dataclasses

import pytest

from beds.machines.played_machine import ADDRESS, LONG_RULES, PlayedMachine
from bentpipe.daemon.errors import (
    BentpipeError,
    ProviderPermission,
    ProviderRetryable,
    ProviderUnreachable,
    SatelliteUnusable,
    WakeFailed,
)
from bentpipe.daemon.fleet.machine.machine import SatelliteMachine
from bentpipe.daemon.fleet.machine.messages import (
    Action,
    Describe,
    DescribeDone,
    Fail,
    GrantLease,
    Input,
    Launch,
    Probe,
    ProbeFailed,
    Ready,
    Reset,
    Start,
    StartDone,
    Suspected,
    Unreachable,
    Unseen,
)
from bentpipe.daemon.fleet.machine.rules import (
    LOOK_MOST_S,
    PATIENCE_S,
    RETRY_START_S,
    STOPS_FORGIVEN,
    UNREACHABLE_PATIENCE_S,
)
from bentpipe.daemon.model import Fault, MachineState, SatelliteState, SleepMode

S = SatelliteState
M = MachineState
RULES = dataclasses.replace(LONG_RULES, sleep_mode=SleepMode.STOP, min_awake_s=0)
NO_ANSWER = ProviderRetryable("500 for account 123456789012", peer_hint="passing trouble at the cloud (InternalError)")


class Story(PlayedMachine):
    """With looks that end as soon as they are asked for, if `sees` says with what."""

    def __init__(self, state: MachineState | None = M.STOPPED) -> None:
        super().__init__(RULES)
        self.looks: list[float] = []
        if state is not None:
            self.see(state)

    def feed(self, event: Input) -> list[Action]:
        actions = super().feed(event)
        if Describe() in actions:
            self.looks.append(self.now)
        return actions

    def wake(self) -> None:
        self.come()
        self.feed(StartDone(None))
        self.see(M.RUNNING)
        self.feed(Ready())
        assert self.state is S.OPERATIONAL


def told(actions: list[Action]) -> list[BentpipeError]:
    return [action.error for action in actions if isinstance(action, Fail)]


# -- looks -------------------------------------------------------------------------------------------------------------


def test_a_suspicion_is_looked_at_at_once_and_a_broken_port_ever_more_rarely() -> None:
    story = Story()
    story.wake()
    began = story.now
    for _ in range(200):
        story.feed(Suspected())
        if story.looks and story.machine.known.looks.under_way:
            story.see(M.RUNNING)
            story.feed(DescribeDone(None))
        story.wait(0.5)
    pauses = [later - before for before, later in zip(story.looks, story.looks[1:], strict=False)]
    assert story.looks[0] == began
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert set(pauses[4:]) == {LOOK_MOST_S}


@pytest.mark.parametrize("asleep", [M.STOPPED, M.HIBERNATED])
@pytest.mark.parametrize("unreachable", [False, True], ids=["suspected", "unreachable"])
def test_found_stopped_by_others_it_is_started_for_the_client_that_waits(
    asleep: MachineState, unreachable: bool
) -> None:
    story = Story()
    story.wake()
    assert Describe() in story.feed(Unreachable() if unreachable else Suspected())
    if unreachable:
        assert story.come() == []
    actions = story.see(asleep)
    if not unreachable:
        actions += story.come()
    assert actions.count(Start()) == 1
    assert not told(actions)
    assert story.feed(DescribeDone(None)) == []
    assert not any(isinstance(action, Start) for action in story.come())
    story.feed(StartDone(None))
    story.see(M.RUNNING)
    assert len([action for action in story.feed(Ready()) if isinstance(action, GrantLease)]) == 2


def test_started_by_others_and_stopped_again_it_is_merely_asleep() -> None:
    story = Story()
    story.see(M.RUNNING)
    assert story.state is S.STARTING
    story.come()
    actions = story.see(M.STOPPED)
    assert Start() in actions
    assert not told(actions)


def test_what_is_stopped_time_and_again_fails_in_the_end() -> None:
    story = Story()
    story.come()
    for _ in range(STOPS_FORGIVEN):
        story.feed(StartDone(None))
        story.see(M.RUNNING)
        actions = story.see(M.STOPPED, reason="User initiated (i-1)", hint="stopped")
        assert Start() in actions
        assert not told(actions)
    story.feed(StartDone(None))
    story.see(M.PENDING)
    (error,) = told(story.see(M.STOPPED, reason="User initiated (i-1)", hint="stopped"))
    assert "User initiated" in str(error)
    assert error.peer_hint.startswith("the satellite stopped while starting: stopped; the next attempt")


def test_what_others_stop_visibly_time_and_again_fails_too() -> None:
    story = Story()
    story.come()
    for _ in range(STOPS_FORGIVEN + 1):
        story.feed(StartDone(None))
        story.see(M.PENDING)
        story.see(M.STOPPING)
        actions = story.see(M.STOPPED)
    assert [type(error) for error in told(actions)] == [WakeFailed]
    assert story.state is S.SLEEP


def test_a_fault_is_a_failure_however_it_was_started() -> None:
    story = Story()
    story.see(M.PENDING)
    story.come()
    (error,) = told(story.see(M.STOPPED, fault=Fault.CAPACITY))
    assert "the next attempt is possible in 180 s" in str(error)


def test_a_wake_that_is_not_ready_is_looked_at_for_what_others_do() -> None:
    story = Story()
    story.come()
    story.feed(StartDone(None))
    assert Probe(ADDRESS) in story.see(M.RUNNING)
    for _ in range(10):
        story.wait(LOOK_MOST_S)
        story.see(M.RUNNING)
        story.feed(DescribeDone(None))
    assert len(story.looks) == 10
    assert Start() in story.see(M.STOPPED)


# -- words -------------------------------------------------------------------------------------------------------------


def test_a_known_reason_is_told_before_the_clients_own_deadline() -> None:
    story = Story()
    story.come(tell_s=10.0)
    story.come(tell_s=20.0)
    story.come()
    story.feed(StartDone(NO_ANSWER))
    done = story.wait(9.0)
    assert not told(done)
    (error,) = told(story.wait(1.0))
    assert isinstance(error, WakeFailed)
    assert (
        error.peer_hint == "the satellite is not ready; the last reason: passing trouble at the cloud (InternalError)"
    )
    assert "123456789012" in str(error)
    assert story.machine.known.waiting == 2


def test_a_reason_that_comes_after_that_moment_is_told_at_once() -> None:
    story = Story()
    story.come(tell_s=10.0)
    assert not told(story.wait(11.0))
    assert len(told(story.feed(StartDone(NO_ANSWER)))) == 1


def test_without_a_reason_a_deadline_ends_nothing() -> None:
    story = Story()
    story.come(tell_s=10.0)
    story.feed(StartDone(NO_ANSWER))
    story.wait(RETRY_START_S)
    story.feed(StartDone(None))
    assert not told(story.wait(20.0))
    story.see(M.RUNNING)
    assert any(isinstance(action, GrantLease) for action in story.feed(Ready()))


def test_a_client_is_held_from_its_coming_however_often_it_leased() -> None:
    story = Story()
    story.come(since=story.now - RULES.hold_limit_s + 10)
    story.feed(StartDone(None))
    assert len(told(story.wait(10.0))) == 1


@pytest.mark.parametrize(
    ("error", "at_once"), [(ProviderPermission("no credentials"), True), (ProviderRetryable("no answer"), False)]
)
def test_why_nobody_can_say_how_the_machine_is(error: ProviderRetryable, at_once: bool) -> None:
    story = Story(None)
    story.feed(Unseen(error))
    assert story.come() == [Describe()], "it is looked at before anybody is told"
    first = told(story.feed(DescribeDone(error)))
    if at_once:
        assert len(first) == 1
    else:
        assert not first
        while not first and story.now < 1000 + 2 * PATIENCE_S:
            first = told(story.wait(1.0))
            if story.machine.known.looks.under_way:
                first += told(story.feed(DescribeDone(error)))
        assert PATIENCE_S <= story.now - 1000 <= PATIENCE_S + LOOK_MOST_S + 1
    assert first[0].peer_hint == f"the state of the satellite's machine is unknown; the last reason: {error}"
    story.wait(LOOK_MOST_S)
    story.come()
    story.see(M.STOPPED)
    assert story.state is S.STARTING, "the waiting client is served as soon as it can be seen"


NO_CLOUD = ProviderUnreachable("no such host", peer_hint="the cloud cannot be reached: there is no host x")


def test_a_cloud_that_is_not_there_is_told_within_seconds_before_the_first_look() -> None:
    story = Story(None)
    story.feed(Unseen(NO_CLOUD))
    story.come()
    began = story.now
    assert not told(story.feed(DescribeDone(NO_CLOUD)))
    first: list[BentpipeError] = []
    while not first and story.now < began + PATIENCE_S:
        first = told(story.wait(0.5))
    assert story.now <= began + UNREACHABLE_PATIENCE_S + 1
    assert first[0].peer_hint.endswith(NO_CLOUD.peer_hint)
    story.wait(LOOK_MOST_S)
    story.come()
    story.see(M.STOPPED)
    assert story.state is S.STARTING, "the next client is served as soon as the cloud is there"


def test_a_cloud_that_is_not_there_ends_a_wake_within_seconds_and_the_next_one_is_tried() -> None:
    story = Story()
    began = story.now
    story.come()
    first: list[BentpipeError] = []
    actions = story.feed(StartDone(NO_CLOUD))
    while not first and story.now < began + PATIENCE_S:
        actions = story.wait(0.5)
        first = told(actions)
        if Start() in actions:
            first += told(story.feed(StartDone(NO_CLOUD)))
    assert UNREACHABLE_PATIENCE_S <= story.now - began <= UNREACHABLE_PATIENCE_S + 2
    assert "every attempt has failed; the last reason: the cloud cannot be reached" in first[0].peer_hint
    story.wait(RULES.retry_after_s)
    assert Start() in story.come()


def test_a_moment_without_a_cloud_costs_no_client_anything() -> None:
    story = Story()
    story.come()
    story.feed(StartDone(NO_CLOUD))
    assert Start() in story.wait(RETRY_START_S)
    assert told(story.feed(StartDone(None))) == []


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (M.RUNNING, "its machine runs, but nothing listens on port 8372"),
        (M.PENDING, "its machine is still starting: nothing listens on port 1; the satellite printed: no disk"),
    ],
)
def test_what_never_got_ready_says_how_far_it_got(state: MachineState, words: str) -> None:
    story = Story()
    story.come()
    story.feed(StartDone(None))
    if state is M.RUNNING:
        story.see(M.RUNNING)
        story.feed(ProbeFailed("nothing listens on port 8372"))
    else:
        story.see(M.PENDING, reason="x", hint="nothing listens on port 1; the satellite printed: no disk")
    (error,) = told(story.wait(RULES.wake_deadline_s))
    assert error.peer_hint.startswith(f"the satellite was not ready after 300 s: {words}")


def test_a_machine_that_is_marked_as_anothers_is_replaced_when_people_say_so() -> None:
    story = Story(None)
    story.machine = SatelliteMachine(dataclasses.replace(RULES, launch=True))
    story.see(M.TERMINATED, fault=Fault.FOREIGN)
    assert story.state is S.FAILED
    assert not story.wait(10_000.0)
    story.feed(Reset())
    assert story.state is S.SLEEP
    assert Launch(0) in story.come()


def test_gone_for_good_is_told_in_words_for_clients() -> None:
    story = Story(M.TERMINATED)
    story.come()
    (error,) = told(story.feed(DescribeDone(None)))
    assert isinstance(error, SatelliteUnusable)
    assert error.peer_hint == "the satellite's machine is gone"
