"""A second cloud beside EC2: each satellite obeys the traits that its own provider states, and fleet/ knows no cloud."""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from beds.machines.memory_provider import FakeMachine, MemoryProvider, OnHibernate
from bentpipe.config.model import SatelliteSection
from bentpipe.daemon.errors import WakeFailed
from bentpipe.daemon.fleet import satellite as module
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.ids import machine_id_of
from bentpipe.daemon.model import Address, Machine, MachineId, MachineState, MachineTraits, SatelliteKey
from bentpipe.daemon.providers.ec2.traits import TRAITS as EC2
from bentpipe.daemon.providers.router import Providers

OTHER = MachineTraits(
    look_deadline_s=40.0,
    address_age_s=1.0,
    appear_grace_s=9.0,
    start_grace_s=200.0,
    stop_grace_s=4.0,
    stuck_stopping_s=20.0,
    too_early_retry_s=7.0,
    hibernation_limit_s=6 * 3600.0,
)
SLEEP_AFTER_S = 100.0
MARGIN_S = 5.0
"""Of what the times below may be late: calls and the fake machines' own pauses."""
FLEET = Path(module.__file__).parent


class Cloud(MemoryProvider):
    """A provider that can be run. Its machines note when they were called; a launched one may never be seen."""

    def __init__(self, traits: MachineTraits) -> None:
        super().__init__(traits)
        self.called: list[tuple[str, float]] = []
        self.loses_launched = False
        self.slept_at: float | None = None
        """Since when machines say that they are hibernated (wall clock); None: they do not say."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    @property
    def call_counts(self) -> Mapping[tuple[str, str], int]:
        return {}

    async def _call(self, name: str, machine_id: MachineId) -> FakeMachine:
        self.called.append((name, trio.current_time()))
        return await super()._call(name, machine_id)

    async def launch(self, machine_id: MachineId, token: str) -> None:
        if self.loses_launched:
            await self._call("launch", machine_id)
        else:
            await super().launch(machine_id, token)

    def dated(self, look: Machine) -> Machine:
        asleep = look.state is MachineState.HIBERNATED
        return dataclasses.replace(look, asleep_since=self.slept_at if asleep else None)

    async def describe(self, machine_id: MachineId) -> Machine:
        return self.dated(await super().describe(machine_id))

    async def wait_changed(self, seen: Machine) -> Machine:
        return self.dated(await super().wait_changed(dataclasses.replace(seen, asleep_since=None)))

    def times(self, name: str) -> list[float]:
        return [at for called, at in self.called if called == name]


def section(name: str, **more: object) -> SatelliteSection:
    """Its provider's own part of the section is of no importance here, but that only this kind may launch."""
    own = {"org": "acme", "name": name, "provider": "ec2", "ec2": {"launch_template": "t"}, "sleep_mode": "hibernate"}
    times = {"sleep_after": SLEEP_AFTER_S, "min_awake": 0, "hold_limit": 3000, "wake_deadline": 1000}
    return SatelliteSection.model_validate({**own, **times, **more})


class Bed:
    """A satellite `ec2` and a satellite `other`, each on its own cloud, in one fleet."""

    def __init__(self, *, wall: Callable[[], float] = time.time, **habits: object) -> None:
        self.clouds = {"ec2": Cloud(EC2), "other": Cloud(OTHER)}
        self.machines = {
            name: cloud.add(machine_id_of(SatelliteKey("acme", name)), **habits) for name, cloud in self.clouds.items()
        }
        self.machines["other"].address = Address("198.51.100.1", 8372)
        provider = Providers({self.machines[name].machine_id: cloud for name, cloud in self.clouds.items()})
        context = FleetContext(provider, lambda _: None, wall=wall)
        self.fleet = Fleet([section(name) for name in self.clouds], context, max_held=10)

    def satellite(self, name: str) -> module.Satellite:
        return self.fleet.get(SatelliteKey("acme", name))

    async def use(self) -> None:
        for name in self.clouds:
            async with self.satellite(name).lease():
                pass


@pytest.fixture(autouse=True)
def listening(monkeypatch: pytest.MonkeyPatch) -> None:
    async def listens(address: Address, tell: Callable[[str], None]) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(module, "wait_listening", listens)


def test_the_router_answers_for_each_machine() -> None:
    bed = Bed()
    assert bed.satellite("ec2").rules.traits is EC2
    assert bed.satellite("other").rules.traits is OTHER


async def test_a_machine_stuck_in_stopping_is_cut_off_when_its_cloud_says(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    bed = Bed(stop_hangs=True)
    await nursery.start(bed.fleet.run)
    await bed.use()
    await trio.sleep(SLEEP_AFTER_S + EC2.stuck_stopping_s + MARGIN_S)
    for name, cloud in bed.clouds.items():
        (asked,), (forced,) = cloud.times("hibernate"), cloud.times("force")[:1]
        stuck_s = bed.satellite(name).rules.traits.stuck_stopping_s
        assert forced - asked == pytest.approx(stuck_s, abs=MARGIN_S)


async def test_a_launched_machine_is_lost_when_its_cloud_says(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    bed = Bed(state=MachineState.TERMINATED)
    for cloud in bed.clouds.values():
        cloud.loses_launched = True
    await nursery.start(bed.fleet.run)
    for name, cloud in bed.clouds.items():
        with pytest.raises(WakeFailed, match="it never appeared"):
            async with bed.satellite(name).lease():
                raise AssertionError("unreachable")
        (launched,) = cloud.times("launch")
        grace_s = bed.satellite(name).rules.traits.appear_grace_s
        assert trio.current_time() - launched == pytest.approx(grace_s, abs=MARGIN_S)


async def test_a_sleep_that_is_too_early_is_tried_again_when_its_cloud_says(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    bed = Bed(on_hibernate=OnHibernate.TOO_EARLY)
    await nursery.start(bed.fleet.run)
    await bed.use()
    await trio.sleep(SLEEP_AFTER_S + EC2.too_early_retry_s + MARGIN_S)
    for name, cloud in bed.clouds.items():
        first, second = cloud.times("hibernate")[:2]
        assert second - first == pytest.approx(bed.satellite(name).rules.traits.too_early_retry_s, abs=MARGIN_S)


async def test_a_machine_that_may_not_stay_hibernated_is_renewed_before_its_cloud_loses_it(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    begun = trio.current_time()
    bed = Bed(wall=lambda: trio.current_time() - begun, state=MachineState.HIBERNATED, memory="old")
    for cloud in bed.clouds.values():
        cloud.slept_at = 0.0
    await nursery.start(bed.fleet.run)
    await trio.sleep(OTHER.hibernation_limit_s)
    assert len(bed.clouds["other"].times("stop")) == 1
    assert bed.clouds["ec2"].called == []
    await trio.sleep(EC2.hibernation_limit_s - OTHER.hibernation_limit_s)
    assert len(bed.clouds["ec2"].times("stop")) == 1


async def test_a_look_that_hangs_is_given_up_when_its_cloud_says(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    looks: dict[str, list[float]] = {"ec2": [], "other": []}
    bed = Bed()
    for name, cloud in bed.clouds.items():

        async def hang(machine_id: MachineId, name: str = name) -> Machine:
            looks[name].append(trio.current_time())
            return await trio.sleep_forever()

        cloud.describe = hang  # type: ignore[method-assign]
    nursery.start_soon(bed.fleet.run)
    await trio.sleep(OTHER.look_deadline_s + MARGIN_S)
    for name, times in looks.items():
        assert times[1] - times[0] == pytest.approx(bed.satellite(name).rules.traits.look_deadline_s, abs=MARGIN_S)


def test_no_cloud_is_named_in_the_fleet() -> None:
    named = re.compile(r"\b(ec2|aws|amazon|boto3?|botocore|providers\.process)\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(FLEET)}: {line.strip()}"
        for path in sorted(FLEET.rglob("*.py"))
        for line in path.read_text().splitlines()
        if named.search(line)
    ]
    assert found == []
