"""The satellite's machine under any interleaving of arrivals, departures, provider results, sightings and clock steps."""

import dataclasses
import math

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from beds.machines.played_machine import ADDRESS, RULES
from bentpipe.daemon.errors import (
    ProviderCapacity,
    ProviderError,
    ProviderPermanent,
    ProviderRetryable,
    ProviderThrottled,
    SleepModeRefused,
    SleepTooEarly,
)
from bentpipe.daemon.fleet.machine.machine import SatelliteMachine
from bentpipe.daemon.fleet.machine.messages import (
    Action,
    Adopted,
    Arrived,
    BuildsRead,
    CountBuilds,
    Departed,
    Describe,
    DescribeDone,
    Drain,
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
    ProbeFailed,
    Ready,
    Released,
    Renew,
    Reset,
    ResumeDetected,
    Seen,
    SleepAsked,
    Start,
    StartDone,
    StillUsed,
    Stop,
    StopDone,
    StopWithdrawn,
    Suspected,
    Tick,
    Traffic,
    Unreachable,
    Unseen,
    WaiterId,
)
from bentpipe.daemon.fleet.machine.rules import FRESH_S
from bentpipe.daemon.model import Address, Fault, Machine, MachineId, MachineState, Resume, SatelliteState, SleepMode

S = SatelliteState
M = MachineState
ERRORS: list[type[ProviderError]] = [
    ProviderRetryable,
    ProviderThrottled,
    ProviderCapacity,
    ProviderPermanent,
    SleepModeRefused,
    SleepTooEarly,
]


def look(state: MachineState, fault: Fault | None = None, reason: str | None = None) -> Machine:
    address = ADDRESS if state is M.RUNNING else None
    return Machine(MachineId("m"), state, address, state.value if reason is None else reason, fault)


class AnyInterleaving(RuleBasedStateMachine):
    """Plays the world; checks every action as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.calls: list[Start | Launch | Stop] = []
        self.waiting: set[WaiterId] = set()
        self.ended: set[WaiterId] = set()
        self.leases = 0
        self.looking = False
        self.looked_for: DescribeDone | None = None
        self.metered = 0
        self.next_waiter = 0
        self.counting = False
        self.count: tuple[int | None, float] = (None, -math.inf)
        self.restarts = 0

    def feed(self, event: Input) -> None:
        if isinstance(event, Arrived):
            self.waiting.add(event.waiter)
        had_place = self.satellite.known.holds_place
        asked = self.satellite.known.wants_place(self.now)
        for action in self.satellite.handle(event, self.now):
            self.check(action, event)
        if self.under.budgeted and not had_place and self.satellite.known.holds_place and not isinstance(event, Seen):
            assert asked, "woken without a place"
            assert isinstance(event, PlaceGranted)

    def check(self, action: Action, event: Input) -> None:
        match action:
            case Start() | Launch() | Stop():
                assert not self.calls, "two provider calls at once"
                self.calls.append(action)
                if isinstance(action, Stop) and not action.force:
                    assert not self.leases, "sleep under a lease"
                    assert action.restart or not self.waiting, "sleep under a waiter"
                if isinstance(action, Stop) and action.restart:
                    self.restarts += 1
                    assert self.restarts == 1, "restarted twice before it was ready"
                if isinstance(action, Launch):
                    assert self.under.launch
            case Describe():
                assert not self.looking, "two looks at once"
                assert event is not self.looked_for, "a look that leads to another at once"
                self.looking = True
            case CountBuilds():
                assert self.under.counts_builds
                assert not self.counting, "builds are counted twice at once"
                self.counting = True
            case EndQuiet():
                assert self.leases == self.metered > 0, "a lease is ended that is not quiet"
                assert not self.waiting
            case GrantLease(waiter, _):
                assert self.satellite.known.state is S.OPERATIONAL
                self.end(waiter)
                self.leases += 1
            case Fail(waiter, error):
                assert str(error)
                self.end(waiter)
            case Moved(before, after, cause):
                assert cause
                if (before, after) == (S.OPERATIONAL, S.STOPPING) and not isinstance(event, Seen):
                    assert self.leases == (self.metered if self.under.ends_quiet else 0)
                    assert not isinstance(event, Evict) or not self.leases
                    self.check_builds(event)
                if after is S.OPERATIONAL:
                    self.restarts = 0
                if before is S.OPERATIONAL:
                    self.count, self.counting = (None, -math.inf), False
            case _:
                pass

    def check_builds(self, event: Input) -> None:
        """It is put to sleep in this step."""
        if not self.under.counts_builds:
            return
        running, read_at = self.count
        assert not running or self.now >= read_at + self.under.builds_stale_s, "sleep under a build"
        if not isinstance(event, Evict | SleepAsked):
            assert self.now - read_at <= FRESH_S, "builds are counted once more before a sleep"
            assert running == 0 or not self.leases, "a connection on which a build may run is ended"

    def end(self, waiter: WaiterId) -> None:
        assert waiter not in self.ended, "a waiter ended twice"
        self.waiting.remove(waiter)
        self.ended.add(waiter)

    @initialize(
        state=st.none() | st.sampled_from(M),
        launch=st.booleans(),
        budgeted=st.booleans(),
        ends_quiet=st.booleans(),
        counts_builds=st.booleans(),
    )
    def first_look(
        self, state: MachineState | None, launch: bool, budgeted: bool, ends_quiet: bool, counts_builds: bool
    ) -> None:
        self.under = dataclasses.replace(
            RULES,
            launch=launch,
            budgeted=budgeted,
            ends_quiet=ends_quiet,
            counts_builds=counts_builds,
            trust_builds_s=math.inf,
        )
        self.satellite = SatelliteMachine(self.under)
        self.feed(Seen(look(state)) if state is not None else Unseen(ProviderRetryable("no answer")))

    @rule(crowded=st.booleans(), waited_s=st.sampled_from([0.0, 50.0]), tell_s=st.sampled_from([1.0, 20.0, math.inf]))
    def arrive(self, crowded: bool, waited_s: float, tell_s: float) -> None:
        self.next_waiter += 1
        self.feed(Arrived(WaiterId(self.next_waiter), crowded, self.now - waited_s, self.now + tell_s))

    @precondition(lambda self: self.looking)
    @rule(error=st.none() | st.sampled_from(ERRORS), state=st.none() | st.sampled_from(M))
    def look_ends(self, error: type[ProviderError] | None, state: MachineState | None) -> None:
        if error is None and state is not None:
            self.feed(Seen(look(state)))
        self.looking = False
        self.looked_for = DescribeDone(None if error is None else error("the provider's words"))
        self.feed(self.looked_for)

    @rule(
        event=st.sampled_from(
            [Suspected(), Unseen(ProviderRetryable("no answer")), Unseen(ProviderPermanent("no region"))]
        )
    )
    def be_told(self, event: Input) -> None:
        self.feed(event)

    @rule(silent=st.booleans())
    def fail_probe(self, silent: bool) -> None:
        self.feed(ProbeFailed("nothing listens on port 8372", silent=silent))

    @precondition(lambda self: self.under.counts_builds)
    @rule(running=st.none() | st.sampled_from([0, 0, 1, 7]), asked=st.booleans())
    def count_builds(self, running: int | None, asked: bool) -> None:
        if asked:
            self.counting = False
        elif self.counting:
            return
        if self.satellite.known.state is S.OPERATIONAL:
            self.count = (running, self.now)
        self.feed(BuildsRead(running))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def depart(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting.remove(waiter)
        self.ended.add(waiter)
        self.feed(Departed(waiter))

    @precondition(lambda self: self.leases > self.metered)
    @rule()
    def release(self) -> None:
        self.leases -= 1
        self.feed(Released())

    @precondition(lambda self: self.satellite.known.state is S.UNKNOWN)
    @rule()
    def adopt(self) -> None:
        """A client that was spliced before: it is told before anything is known of the machine."""
        self.leases += 1
        self.feed(Adopted())
        assert self.satellite.known.leases == self.leases

    @precondition(lambda self: self.metered)
    @rule()
    def go_on(self) -> None:
        """A connection that was to be ended as quiet is not quiet: if the machine was not asked to stop yet, it is not."""
        known = self.satellite.known
        pending = known.state is S.STOPPING and known.descent.pending and known.machine_is(M.RUNNING)
        dropped = known.descent.dropped
        self.feed(StillUsed())
        assert not pending or dropped or known.state is not S.STOPPING

    @precondition(lambda self: self.leases > self.metered)
    @rule()
    def splice(self) -> None:
        self.metered += 1
        self.feed(Metered())

    @precondition(lambda self: self.metered)
    @rule(ends=st.booleans())
    def use_splice(self, ends: bool) -> None:
        if ends:
            self.leases -= 1
            self.metered -= 1
            self.feed(Released(metered=True))
        else:
            self.feed(Traffic())

    @rule(state=st.sampled_from(M), fault=st.sampled_from([None, *Fault]), other_left=st.booleans())
    def see(self, state: MachineState, fault: Fault | None, other_left: bool) -> None:
        seen = look(state, fault if state in (M.STOPPED, M.TERMINATED) else None)
        self.feed(Seen(dataclasses.replace(seen, other_left=other_left and seen.fault is Fault.CAPACITY)))

    @precondition(lambda self: self.calls)
    @rule(error=st.sampled_from([None, None, *ERRORS]), withdrawn=st.booleans())
    def call_returns(self, error: type[ProviderError] | None, withdrawn: bool) -> None:
        call = self.calls.pop()
        made = None if error is None else error("the provider's words")
        if isinstance(call, Stop) and withdrawn and self.waiting:
            self.feed(StopWithdrawn())
        else:
            self.feed(StopDone(made) if isinstance(call, Stop) else StartDone(made))

    @rule(clients=st.integers(0, 2), ages=st.booleans())
    def bring_up(self, clients: int, ages: bool) -> None:
        """The straight way to OPERATIONAL, which blind steps seldom find."""
        for _ in range(clients):
            self.arrive(crowded=False, waited_s=0.0, tell_s=math.inf)
        self.feed(PlaceGranted())
        while self.calls:
            self.call_returns(None, withdrawn=False)
        self.feed(Seen(look(M.RUNNING)))
        self.feed(Ready())
        if ages:
            self.clock(RULES.min_awake_s)

    @precondition(lambda self: self.under.counts_builds)
    @rule(
        counts=st.lists(st.none() | st.sampled_from([0, 0, 1]), min_size=1, max_size=3),
        quiet=st.booleans(),
        event=st.sampled_from([None, Evict(), SleepAsked()]),
    )
    def grow_idle(self, counts: list[int | None], quiet: bool, event: Input | None) -> None:
        """The straight way to the last look before a sleep."""
        self.bring_up(1, ages=True)
        while self.leases > self.metered:
            if quiet:
                self.splice()
            else:
                self.release()
        for running in counts:
            self.count_builds(running, asked=self.counting)
            self.clock(RULES.sleep_after_s)
            if event is not None:
                self.feed(event)

    @rule(event=st.sampled_from([Evict(), SleepAsked()]))
    def ask_for_sleep(self, event: Input) -> None:
        self.feed(event)

    @rule()
    def port_listens(self) -> None:
        self.feed(Ready())

    @rule(
        event=st.sampled_from(
            [
                Unreachable(),
                KeepAwake(True),
                KeepAwake(False),
                Renew(),
                PlaceGranted(),
                Reset(),
                *map(ResumeDetected, Resume),
            ]
        )
    )
    def something_else(self, event: Input) -> None:
        self.feed(event)

    @rule(seconds=st.sampled_from([0.5, 5.0, 61.0, 200.0, 700.0]))
    def clock(self, seconds: float) -> None:
        """The clock never passes a deadline without a Tick there, as the owner task sees to it."""
        until = self.now + seconds
        while (deadline := self.satellite.known.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.feed(Tick())
            after = self.satellite.known.next_deadline()
            assert after is None or after > self.now, "a Tick at a deadline must lead on"
        self.now = until

    @rule()
    def drain(self) -> None:
        self.feed(Drain())
        assert not self.waiting

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "satellite"):
            return
        assert set(self.satellite.known.queue.waiters) == self.waiting
        assert self.satellite.known.leases == self.leases
        assert self.satellite.known.busy is bool(self.calls)
        if self.satellite.known.state in (S.SLEEP, S.FAILED) and self.satellite.known.machine is not None:
            assert self.satellite.known.machine.state in (M.STOPPED, M.HIBERNATED, M.TERMINATED)

    def teardown(self) -> None:
        """Every waiter ends, whatever the provider does not do."""
        if hasattr(self, "satellite"):
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
    granted = [action for action in satellite.handle(Ready(), 4) if isinstance(action, GrantLease)]
    assert [grant.waiter for grant in granted] == [1, 2]


def test_idle_sleeps_and_a_refused_hibernate_falls_back_to_stop() -> None:
    satellite = woken()
    satellite.handle(Ready(), 4)
    satellite.handle(Released(), 10)
    assert satellite.known.next_deadline() == 110
    assert Stop(SleepMode.HIBERNATE) in satellite.handle(Tick(), 110)
    assert Stop(SleepMode.STOP) in satellite.handle(StopDone(SleepModeRefused("not configured")), 111)


def test_start_waits_for_a_machine_that_is_stopping() -> None:
    satellite = SatelliteMachine(RULES)
    satellite.handle(Seen(look(MachineState.STOPPING)), 0)
    assert Start() not in satellite.handle(Arrived(WaiterId(1)), 0)
    assert Start() in satellite.handle(Seen(look(MachineState.STOPPED)), 5)


def test_stopped_again_while_starting_fails_everybody_and_is_remembered() -> None:
    satellite = woken()
    failed = [a for a in satellite.handle(Seen(look(MachineState.STOPPED, Fault.OTHER)), 3) if isinstance(a, Fail)]
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
    assert Start() not in satellite.handle(StartDone(None), later + 1), "that is the start that was wanted"
    assert Probe(ADDRESS) in satellite.handle(Seen(look(MachineState.RUNNING)), later + 2)
    assert GrantLease(WaiterId(2), ADDRESS) in satellite.handle(Ready(), later + 3)


@pytest.mark.parametrize(
    "seen", [look(MachineState.PENDING), Machine(MachineId("m"), MachineState.RUNNING, Address("127.0.0.1", 9))]
)
def test_restarted_by_others_it_is_probed_again_before_anybody_is_let_in(seen: Machine) -> None:
    satellite = woken()
    satellite.handle(Seen(look(MachineState.RUNNING)), 3)
    satellite.handle(Ready(), 4)
    assert satellite.known.state is SatelliteState.OPERATIONAL
    satellite.handle(Seen(seen), 5)
    assert satellite.handle(Arrived(WaiterId(9)), 6) == []
    moved = Machine(MachineId("m"), MachineState.RUNNING, Address("127.0.0.1", 9))
    satellite.handle(Seen(moved), 7)
    assert GrantLease(WaiterId(9), Address("127.0.0.1", 9)) in satellite.handle(Ready(), 8)
