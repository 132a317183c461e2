"""The satellite's machine under any interleaving of arrivals, departures, provider results, sightings and clock steps."""

import re

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bentpipe.daemon.errors import ProviderCapacity, ProviderPermanent, ProviderRetryable, SleepModeRefused
from bentpipe.daemon.fleet import machine as module
from bentpipe.daemon.fleet.machine import (
    TRANSITIONS,
    Arrived,
    Departed,
    Drain,
    Fail,
    Grant,
    Input,
    Probe,
    Ready,
    Released,
    Rules,
    SatelliteMachine,
    Seen,
    Start,
    StartDone,
    Stop,
    StopDone,
    Tick,
    Unreachable,
    WaiterId,
)
from bentpipe.daemon.model import Address, Machine, MachineId, MachineState, SatelliteState, SleepMode

RULES = Rules(
    sleep_mode=SleepMode.HIBERNATE,
    sleep_after_s=100,
    min_awake_s=30,
    wake_deadline_s=60,
    hold_limit_s=90,
    retry_after_s=5,
    max_waiters=4,
)
ADDRESS = Address("127.0.0.1", 8372)


def look(state: MachineState) -> Machine:
    return Machine(MachineId("m"), state, ADDRESS if state is MachineState.RUNNING else None, reason=state.value)


class AnyInterleaving(RuleBasedStateMachine):
    """Plays the world; checks every action as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.satellite = SatelliteMachine(RULES)
        self.now = 0.0
        self.calls: list[Start | Stop] = []
        self.waiting: set[WaiterId] = set()
        self.ended: set[WaiterId] = set()
        self.leases = 0
        self.next_waiter = 0

    def feed(self, event: Input) -> None:
        if isinstance(event, Arrived):
            self.waiting.add(event.waiter)
        for action in self.satellite.handle(event, self.now):
            match action:
                case Start() | Stop():
                    assert not self.calls, "two provider calls at once"
                    self.calls.append(action)
                    if isinstance(action, Stop):
                        assert not self.leases, "sleep under a lease"
                        assert not self.waiting, "sleep under a waiter"
                case Grant(waiter, _):
                    assert self.satellite.state is SatelliteState.OPERATIONAL
                    self.end(waiter)
                    self.leases += 1
                case Fail(waiter, _):
                    self.end(waiter)
                case _:
                    pass

    def end(self, waiter: WaiterId) -> None:
        assert waiter not in self.ended, "a waiter ended twice"
        self.waiting.remove(waiter)
        self.ended.add(waiter)

    @initialize(state=st.sampled_from(MachineState))
    def first_look(self, state: MachineState) -> None:
        self.feed(Seen(look(state)))

    @rule()
    def arrive(self) -> None:
        self.next_waiter += 1
        self.feed(Arrived(WaiterId(self.next_waiter)))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def depart(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting.remove(waiter)
        self.ended.add(waiter)
        self.feed(Departed(waiter))

    @precondition(lambda self: self.leases)
    @rule()
    def release(self) -> None:
        self.leases -= 1
        self.feed(Released())

    @rule(state=st.sampled_from(MachineState))
    def see(self, state: MachineState) -> None:
        self.feed(Seen(look(state)))

    @precondition(lambda self: self.calls)
    @rule(error=st.sampled_from([None, ProviderRetryable, ProviderCapacity, ProviderPermanent, SleepModeRefused]))
    def call_returns(self, error: type[ProviderRetryable] | None) -> None:
        call = self.calls.pop()
        made = None if error is None else error("the provider's words")
        self.feed(StartDone(made) if isinstance(call, Start) else StopDone(made))

    @rule()
    def port_listens(self) -> None:
        self.feed(Ready())

    @rule()
    def unreachable(self) -> None:
        self.feed(Unreachable())

    @rule(seconds=st.floats(0, 200))
    def clock(self, seconds: float) -> None:
        """The clock never passes a deadline without a Tick there, as the owner task sees to it."""
        until = self.now + seconds
        for _ in range(50):
            deadline = self.satellite.next_deadline()
            if deadline is None or deadline > until:
                break
            self.now = max(self.now, deadline)
            self.feed(Tick())
            after = self.satellite.next_deadline()
            assert after is None or after > self.now, "a Tick at a deadline must lead on"
        self.now = until

    @rule()
    def drain(self) -> None:
        self.feed(Drain())
        assert not self.waiting

    @invariant()
    def books_agree(self) -> None:
        assert set(self.satellite.waiters) == self.waiting
        assert self.satellite.leases == self.leases
        assert self.satellite.busy is bool(self.calls)

    def teardown(self) -> None:
        """Every waiter ends, whatever the provider does not do."""
        self.clock(10 * RULES.hold_limit_s)
        assert not self.waiting


TestAnyInterleaving = AnyInterleaving.TestCase


def woken() -> SatelliteMachine:
    satellite = SatelliteMachine(RULES)
    satellite.handle(Seen(look(MachineState.STOPPED)), 0)
    assert Start() in satellite.handle(Arrived(WaiterId(1)), 0)
    satellite.handle(Seen(look(MachineState.PENDING)), 1)
    satellite.handle(StartDone(None), 1)
    assert Probe(ADDRESS) in satellite.handle(Seen(look(MachineState.RUNNING)), 2)
    return satellite


def test_a_wake_is_one_start_and_grants_everybody() -> None:
    satellite = woken()
    assert satellite.handle(Arrived(WaiterId(2)), 3) == []
    granted = [action for action in satellite.handle(Ready(), 4) if isinstance(action, Grant)]
    assert [grant.waiter for grant in granted] == [1, 2]


def test_idle_sleeps_and_a_refused_hibernate_falls_back_to_stop() -> None:
    satellite = woken()
    satellite.handle(Ready(), 4)
    satellite.handle(Released(), 10)
    assert satellite.next_deadline() == 110
    assert Stop(SleepMode.HIBERNATE) in satellite.handle(Tick(), 110)
    assert Stop(SleepMode.STOP) in satellite.handle(StopDone(SleepModeRefused("not configured")), 111)


def test_start_waits_for_a_machine_that_is_stopping() -> None:
    satellite = SatelliteMachine(RULES)
    satellite.handle(Seen(look(MachineState.STOPPING)), 0)
    assert Start() not in satellite.handle(Arrived(WaiterId(1)), 0)
    assert Start() in satellite.handle(Seen(look(MachineState.STOPPED)), 5)


def test_stopped_again_while_starting_fails_everybody_and_is_remembered() -> None:
    satellite = woken()
    failed = [a for a in satellite.handle(Seen(look(MachineState.STOPPED)), 3) if isinstance(a, Fail)]
    assert [fail.waiter for fail in failed] == [1]
    [again] = satellite.handle(Arrived(WaiterId(2)), 4)
    assert isinstance(again, Fail)
    assert Start() in satellite.handle(Arrived(WaiterId(3)), 3 + RULES.retry_after_s)


def test_a_new_wake_waits_for_the_start_call_of_the_last_one() -> None:
    satellite = SatelliteMachine(RULES)
    satellite.handle(Seen(look(MachineState.STOPPED)), 0)
    assert Start() in satellite.handle(Arrived(WaiterId(1)), 0)
    satellite.handle(Tick(), RULES.wake_deadline_s)
    later = RULES.wake_deadline_s + RULES.retry_after_s
    assert Start() not in satellite.handle(Arrived(WaiterId(2)), later)
    assert Start() in satellite.handle(StartDone(None), later + 1)


@pytest.mark.parametrize(
    "seen", [look(MachineState.PENDING), Machine(MachineId("m"), MachineState.RUNNING, Address("127.0.0.1", 9))]
)
def test_restarted_by_others_it_is_probed_again_before_anybody_is_let_in(seen: Machine) -> None:
    satellite = woken()
    satellite.handle(Seen(look(MachineState.RUNNING)), 3)
    satellite.handle(Ready(), 4)
    assert satellite.state is SatelliteState.OPERATIONAL
    satellite.handle(Seen(seen), 5)
    assert satellite.handle(Arrived(WaiterId(9)), 6) == []
    moved = Machine(MachineId("m"), MachineState.RUNNING, Address("127.0.0.1", 9))
    satellite.handle(Seen(moved), 7)
    assert Grant(WaiterId(9), Address("127.0.0.1", 9)) in satellite.handle(Ready(), 8)


def test_the_diagram_names_what_the_table_allows() -> None:
    arrows = re.findall(r"([A-Z]+) ─▶ ([A-Z]+)(?= ─▶|\n)", module.__doc__ or "")
    arrows += re.findall(r"(?<=─▶ )([A-Z]+) ─▶ ([A-Z]+)", module.__doc__ or "")
    assert len(set(arrows)) >= 5
    for before, after in arrows:
        assert SatelliteState[after] in TRANSITIONS[SatelliteState[before]], (before, after)


@pytest.mark.parametrize("state", [s for s in TRANSITIONS])
def test_no_state_is_a_dead_end(state: SatelliteState) -> None:
    assert TRANSITIONS[state]
