"""Many satellites as one fleet: the awake budget as clients feel it, and limits that count for all."""

import dataclasses
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from beds.machines.memory_provider import MemoryProvider
from beds.machines.played_machine import RULES
from bentpipe.config.model import BudgetSection, ProcessSection, SatelliteSection
from bentpipe.daemon.errors import (
    LimitReached,
    ProviderPermission,
    ProviderRetryable,
    SatelliteUnusable,
)
from bentpipe.daemon.fleet import satellite as module
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.crowd import Crowd
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.model import (
    Address,
    Machine,
    MachineId,
    MachineState,
    SatelliteKey,
    SatelliteState,
    SleepMode,
    Transition,
)

NAMES = ("a", "b", "c", "d")
MIN_AWAKE_S = 30


def section(name: str, **more: object) -> SatelliteSection:
    process = ProcessSection.model_validate({"command": ["sleep", "{port}"]})
    times = {"sleep_after": 3600, "min_awake": MIN_AWAKE_S, "hold_limit": 500}
    return SatelliteSection.model_validate({"org": "acme", "name": name, "process": process, **times, **more})


class Bed:
    def __init__(
        self, nursery: trio.Nursery, *, budget: BudgetSection | None = None, max_held_in_all: int | None = None
    ) -> None:
        self.nursery = nursery
        self.provider = MemoryProvider()
        for name in NAMES:
            self.provider.add(f"acme.{name}", pending_s=5.0, stopping_s=5.0)
        self.told: list[Transition] = []
        sections = [section(name) for name in NAMES]
        context = FleetContext(self.provider, self.told.append, crowd=Crowd(max_held_in_all))
        self.fleet = Fleet(sections, context, max_held=100, budget=budget)
        self.served: list[str] = []
        self.refused: list[str] = []

    def satellite(self, name: str) -> module.Satellite:
        return self.fleet.get(SatelliteKey("acme", name))

    def come(self, name: str, stay_s: float = 0.0) -> None:
        self.nursery.start_soon(self._client, name, stay_s)

    async def _client(self, name: str, stay_s: float) -> None:
        try:
            async with self.satellite(name).lease():
                self.served.append(name)
                await trio.sleep(stay_s)
        except LimitReached as exc:
            self.refused.append(f"{name}: {exc}")

    def awake(self) -> set[str]:
        return {name for name in NAMES if self.satellite(name).state is not SatelliteState.SLEEP}


@pytest.fixture(autouse=True)
def listening(monkeypatch: pytest.MonkeyPatch) -> None:
    async def listens(address: Address, tell: Callable[[str], None]) -> None:
        await trio.sleep(1)

    monkeypatch.setattr(module, "wait_listening", listens)


async def test_with_two_places_four_satellites_take_turns(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    bed = Bed(nursery, budget=BudgetSection(max_awake=2))
    await nursery.start(bed.fleet.run)
    for name in NAMES:
        bed.come(name, 10)
        await trio.sleep(1)
    assert bed.awake() == {"a", "b"}
    for _ in range(200):
        await trio.sleep(1)
        assert len(bed.awake()) <= 2
    assert bed.served == list(NAMES)
    evicted = [told.key.name for told in bed.told if "needs its place" in told.cause]
    assert evicted == ["a", "b"], "the one idle for longest goes first, and nobody without need"


async def test_no_satellite_is_evicted_for_another_while_in_use(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    bed = Bed(nursery, budget=BudgetSection(max_awake=1))
    await nursery.start(bed.fleet.run)
    bed.come("a", 1000)
    await wait_all_tasks_blocked()
    bed.come("b")
    await trio.sleep(501)
    assert bed.awake() == {"a"}
    assert "no place became free" in bed.refused[0]
    assert bed.fleet.budget is not None
    assert bed.fleet.budget.queue == ()


async def test_machines_that_others_start_count_too(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    bed = Bed(nursery, budget=BudgetSection(max_awake=1))
    await nursery.start(bed.fleet.run)
    for name in ("a", "b"):
        bed.provider.others_start(bed.provider.machines[bed.satellite(name)._machine_id])
    await trio.sleep(10)
    assert bed.awake() == {"a", "b"}
    bed.come("c")
    await trio.sleep(MIN_AWAKE_S + 30)
    assert bed.served == ["c"]
    assert bed.awake() == {"c"}


async def test_an_orgs_own_limit(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    bed = Bed(nursery, budget=BudgetSection(max_awake=3, org={"acme": 1}))
    await nursery.start(bed.fleet.run)
    for name in NAMES:
        bed.come(name)
    for _ in range(300):
        await trio.sleep(1)
        assert len(bed.awake()) <= 1
    assert sorted(bed.served) == sorted(NAMES)


async def test_too_many_held_in_all(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    bed = Bed(nursery, max_held_in_all=3)
    await nursery.start(bed.fleet.run)
    for name in ("a", "a", "b", "c", "d"):
        bed.come(name)
        await wait_all_tasks_blocked()
    assert len(bed.refused) == 2
    await trio.sleep(20)
    assert sorted(bed.served) == ["a", "a", "b"]
    bed.come("d")
    await trio.sleep(20)
    assert bed.served[3:] == ["d"]


async def test_who_needs_not_wait_is_let_in_however_many_wait(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    bed = Bed(nursery, max_held_in_all=1)
    await nursery.start(bed.fleet.run)
    bed.come("a")
    await trio.sleep(20)
    bed.come("b")
    await wait_all_tasks_blocked()
    bed.come("a")
    await wait_all_tasks_blocked()
    assert bed.served == ["a", "a"]
    assert bed.refused == []
    found = bed.fleet.statistics()
    assert (found.wakes, found.waiting, found.leases, found.queued) == (2, 1, 0, 0)
    assert found.states == {"operational": 1, "starting": 1, "sleep": 2}
    assert found.resumes == {"unknown": 1}


async def test_a_fleet_starts_though_its_provider_does_not_answer(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed = Bed(nursery)
    answers = 3
    describe = bed.provider.describe

    async def silent(machine_id: MachineId) -> Machine:
        nonlocal answers
        answers -= 1
        if answers >= 0:
            raise ProviderRetryable("no answer")
        return await describe(machine_id)

    monkeypatch.setattr(bed.provider, "describe", silent)
    await nursery.start(bed.fleet.run)
    assert sorted(told.key.name for told in bed.told) != sorted(NAMES)
    bed.come("a")
    await trio.sleep(30)
    assert bed.served == ["a"]
    assert sorted({told.key.name for told in bed.told}) == sorted(NAMES)


async def test_a_reset_is_for_all(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    bed = Bed(nursery)
    await nursery.start(bed.fleet.run)
    for name in NAMES:
        bed.provider.machines[bed.satellite(name)._machine_id].errors.append(ProviderPermission("denied"))
        with pytest.raises(SatelliteUnusable):
            async with bed.satellite(name).lease():
                raise AssertionError("unreachable")
    assert {each.state for each in bed.fleet.satellites} == {SatelliteState.FAILED}
    bed.fleet.reset()
    assert {each.state for each in bed.fleet.satellites} == {SatelliteState.SLEEP}


async def test_the_hours_to_be_awake_by_the_wall_clock(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    provider = MemoryProvider()
    provider.add("acme.a", pending_s=5.0)
    hours = section("a", keep_awake=[{"days": "mon-sun", "hours": "08:00-18:00", "zone": "Europe/Vienna"}])
    told: list[Transition] = []
    seven = 1780290000.0  # 2026-06-01 07:00 in Vienna
    begun = trio.current_time()
    satellite = module.Satellite(
        SatelliteKey("acme", "a"),
        dataclasses.replace(RULES, sleep_after_s=1800.0, sleep_mode=SleepMode.STOP, max_waiters=10),
        FleetContext(provider, told.append, wall=lambda: seven + trio.current_time() - begun),
        keep_awake=hours.keep_awake,
    )
    await nursery.start(satellite.run)
    await trio.sleep(24 * 3600)
    assert [(round((each.at - seven) / 3600, 1), each.after) for each in told[1:]] == [
        (1.0, SatelliteState.STARTING),
        (1.0, SatelliteState.OPERATIONAL),
        (11.0, SatelliteState.STOPPING),
        (11.0, SatelliteState.SLEEP),
    ]


async def test_a_machine_hibernated_for_fifty_days_is_renewed(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    class Dated(MemoryProvider):
        """Says since when a machine sleeps."""

        async def describe(self, machine_id: MachineId) -> Machine:
            return dated(await super().describe(machine_id))

        async def wait_changed(self, seen: Machine) -> Machine:
            return dated(await super().wait_changed(dataclasses.replace(seen, asleep_since=None)))

    def dated(machine: Machine) -> Machine:
        return dataclasses.replace(machine, asleep_since=0.0 if machine.state is MachineState.HIBERNATED else None)

    provider = Dated()
    machine = provider.add("acme.a", pending_s=5.0, state=MachineState.HIBERNATED, memory="old")
    told: list[Transition] = []
    begun = trio.current_time()
    satellite = module.Satellite(
        SatelliteKey("acme", "a"),
        dataclasses.replace(RULES, sleep_after_s=1800.0, max_waiters=10),
        FleetContext(provider, told.append, wall=lambda: 49.9 * 86400 + trio.current_time() - begun),
    )
    await nursery.start(satellite.run)
    await trio.sleep(86400)
    assert machine.calls == ["start", "stop"]
    assert satellite.state is SatelliteState.SLEEP
    assert [each.cause for each in told[1:4]] == [
        "hibernated for too long",
        "ready",
        "woken only to be stopped plainly",
    ]
