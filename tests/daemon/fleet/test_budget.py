"""The awake budget's planner: single decisions, and any history of a fleet that follows its plans."""

import dataclasses

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bentpipe.daemon.fleet.budget import AwakeLimits, Holder, Plan, Request, plan
from bentpipe.daemon.model import SatelliteKey


def key(text: str) -> SatelliteKey:
    org, _, name = text.partition("/")
    return SatelliteKey(org, name)


def idle(text: str, since: float, evictable_at: float = 0.0, *, kept: bool = False) -> Holder:
    return Holder(key(text), since, evictable_at, kept)


def in_use(text: str) -> Holder:
    return Holder(key(text))


def leaving(text: str) -> Holder:
    return Holder(key(text), leaving=True)


def wanted(*texts: str) -> list[Request]:
    return [Request(key(text)) for text in texts]


def keys(*texts: str) -> tuple[SatelliteKey, ...]:
    return tuple(key(text) for text in texts)


TWO = AwakeLimits(fleet=2)


def test_what_fits_is_granted_in_order() -> None:
    assert plan(TWO, [in_use("a/1")], wanted("a/2", "a/3"), 0) == Plan(grants=keys("a/2"))
    assert plan(AwakeLimits(), [in_use("a/1")], wanted("a/2", "b/3"), 0) == Plan(grants=keys("a/2", "b/3"))


def test_the_one_idle_for_longest_is_evicted_and_nothing_is_granted_before_it_is_gone() -> None:
    held = [idle("a/1", 20), idle("a/2", 10)]
    assert plan(TWO, held, wanted("a/3"), 100) == Plan(evictions=keys("a/2"))
    assert plan(TWO, [idle("a/1", 20), leaving("a/2")], wanted("a/3"), 100) == Plan()
    assert plan(TWO, [idle("a/1", 20)], wanted("a/3"), 100) == Plan(grants=keys("a/3"))


def test_one_eviction_for_each_who_waits() -> None:
    assert plan(TWO, [idle("a/1", 20), leaving("a/2")], wanted("a/3", "a/4"), 100) == Plan(evictions=keys("a/1"))


def test_nobody_in_use_is_evicted_and_nobody_before_its_time() -> None:
    assert plan(TWO, [in_use("a/1"), in_use("a/2")], wanted("a/3"), 100) == Plan()
    assert plan(TWO, [in_use("a/1"), idle("a/2", 0, 130)], wanted("a/3"), 100) == Plan(again_at=130)


def test_one_that_is_to_be_awake_by_the_hour_goes_last() -> None:
    assert plan(TWO, [idle("a/1", 10, kept=True), idle("a/2", 20)], wanted("a/3"), 100).evictions == keys("a/2")
    assert plan(TWO, [idle("a/1", 10, kept=True), in_use("a/2")], wanted("a/3"), 100).evictions == keys("a/1")


def test_upkeep_comes_last_and_evicts_nobody() -> None:
    upkeep = [Request(key("a/3"), upkeep=True)]
    assert plan(TWO, [in_use("a/1"), idle("a/2", 0)], upkeep, 100) == Plan()
    assert plan(TWO, [in_use("a/1")], [*upkeep, *wanted("a/4")], 100) == Plan(grants=keys("a/4"))


def test_an_org_at_its_limit_holds_up_itself_only_and_evicts_its_own() -> None:
    limits = AwakeLimits(fleet=3, per_org=1, by_org=(("b", 2),))
    held = [idle("a/1", 50), idle("b/1", 10)]
    assert plan(limits, held, wanted("a/2", "b/2"), 100) == Plan(grants=keys("b/2"), evictions=keys("a/1"))
    assert plan(limits, [in_use("a/1"), in_use("b/1")], wanted("a/2", "b/2"), 100) == Plan(grants=keys("b/2"))


def test_others_may_exceed_the_budget_and_we_give_back() -> None:
    held = [idle("a/1", 1), idle("a/2", 2), in_use("a/3")]
    assert plan(TWO, held, wanted("a/4"), 100).grants == ()
    assert plan(TWO, [], [], 0) == Plan()


NAMES = [f"{org}/{number}" for org in "ab" for number in range(4)]
MIN_AWAKE_S = 30.0


@dataclasses.dataclass
class Sim:
    """A satellite as the planner sees it."""

    state: str = "asleep"  # wanting, coming, used, idle, leaving
    since: float = 0.0
    awake_since: float = 0.0
    upkeep: bool = False


class AnyHistory(RuleBasedStateMachine):
    """Satellites that do as they are told, clients that come and go, and others who interfere."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.sims = {name: Sim() for name in NAMES}
        self.queue: list[str] = []
        self.overruled = False
        """Others have started something: the budget may be exceeded, but not by us."""

    @initialize(
        fleet=st.sampled_from([None, 1, 2, 3]),
        per_org=st.sampled_from([None, 1, 2]),
        of_b=st.sampled_from([None, 1, 3]),
    )
    def set_limits(self, fleet: int | None, per_org: int | None, of_b: int | None) -> None:
        self.limits = AwakeLimits(fleet, per_org, () if of_b is None else (("b", of_b),))

    def named(self, *states: str) -> list[str]:
        return [name for name, sim in self.sims.items() if sim.state in states]

    def holders(self) -> list[Holder]:
        held = []
        for name in self.named("coming", "used", "idle", "leaving"):
            sim = self.sims[name]
            since = sim.since if sim.state == "idle" else None
            held.append(Holder(key(name), since, sim.awake_since + MIN_AWAKE_S, False, sim.state == "leaving"))
        return held

    def exceeds(self, names: list[str]) -> bool:
        by_org = {org: sum(name.startswith(org) for name in names) for org in "ab"}
        return len(names) > self.limits.total or any(by_org[org] > self.limits.of(org) for org in by_org)

    def settle(self) -> None:
        while True:
            requests = [Request(key(name), self.sims[name].upkeep) for name in self.queue]
            planned = plan(self.limits, self.holders(), requests, self.now)
            if not planned.grants and not planned.evictions:
                break
            for each in map(str, planned.evictions):
                sim = self.sims[each]
                assert sim.state == "idle"
                assert sim.awake_since + MIN_AWAKE_S <= self.now
                assert any(not self.sims[name].upkeep for name in self.queue), "evicted for upkeep"
                sim.state = "leaving"
            for each in map(str, planned.grants):
                self.check_turn(each)
                self.queue.remove(each)
                self.sims[each].state = "coming"
                held = self.named("coming", "used", "idle", "leaving")
                assert not self.exceeds(held) or self.overruled_now(held, each)
        if planned.again_at is not None:
            assert planned.again_at > self.now

    def overruled_now(self, held: list[str], granted: str) -> bool:
        """If others exceed a limit, this grant does not: the limits of its own org and of the fleet must hold."""
        own = [name for name in held if name[0] == granted[0]]
        return len(held) <= self.limits.total and len(own) <= self.limits.of(granted[0])

    def check_turn(self, granted: str) -> None:
        """An earlier request could not have used the place: its own org is full, or it is only upkeep."""
        for earlier in self.queue[: self.queue.index(granted)]:
            if self.sims[earlier].upkeep and not self.sims[granted].upkeep:
                continue
            org = earlier[0]
            held = [name for name in self.named("coming", "used", "idle", "leaving") if name[0] == org]
            assert len(held) >= self.limits.of(org), f"{granted} before {earlier}"

    @rule(name=st.sampled_from(NAMES), upkeep=st.booleans())
    def come(self, name: str, upkeep: bool) -> None:
        sim = self.sims[name]
        if sim.state == "asleep":
            sim.state, sim.upkeep = "wanting", upkeep
            self.queue.append(name)
        elif sim.state == "wanting":
            sim.upkeep = sim.upkeep and upkeep
        elif sim.state == "idle":
            sim.state = "used"
        self.settle()

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.queue))
        self.queue.remove(name)
        self.sims[name].state = "asleep"
        self.settle()

    @precondition(lambda self: self.named("coming", "used", "leaving"))
    @rule(data=st.data(), fails=st.booleans())
    def move_on(self, data: st.DataObject, fails: bool) -> None:
        name = data.draw(st.sampled_from(self.named("coming", "used", "leaving")))
        sim = self.sims[name]
        if sim.state == "coming":
            sim.state, sim.awake_since = ("asleep" if fails else "used"), self.now
        elif sim.state == "used":
            sim.state, sim.since = "idle", self.now
        elif fails:
            sim.state, sim.since, sim.awake_since = "idle", self.now, self.now
        else:
            sim.state = "asleep"
        self.settle()

    @rule(name=st.sampled_from(NAMES))
    def others_start(self, name: str) -> None:
        sim = self.sims[name]
        if sim.state in ("asleep", "wanting"):
            if name in self.queue:
                self.queue.remove(name)
            sim.state = "coming"
            self.overruled = True
        self.settle()

    @rule(seconds=st.sampled_from([1.0, 20.0, 100.0]))
    def clock(self, seconds: float) -> None:
        self.now += seconds
        self.settle()

    @invariant()
    def within_budget(self) -> None:
        if hasattr(self, "limits") and not self.overruled:
            assert not self.exceeds(self.named("coming", "used", "idle", "leaving"))

    def teardown(self) -> None:
        """Nobody starves: if everybody in use leaves and all that goes on comes to its end, all who wait are served."""
        if not hasattr(self, "limits"):
            return
        self.overruled = False
        for _ in range(20 * len(NAMES)):
            for name in self.named("coming", "used", "leaving"):
                sim = self.sims[name]
                sim.state = {"coming": "used", "used": "idle", "leaving": "asleep"}[sim.state]
                sim.since = self.now
            self.now += 2 * MIN_AWAKE_S
            for name in self.queue:
                self.sims[name].upkeep = False
            self.settle()
        assert not self.queue


TestAnyHistory = AnyHistory.TestCase
