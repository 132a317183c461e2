"""Clients that were spliced before this daemon started: their satellites count as used before anything else happens."""

import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from beds.machines.memory_provider import FakeMachine, MemoryProvider
from bentpipe.config.model import ProcessSection, SatelliteSection
from bentpipe.daemon.coordination.contract import LocalCoordination
from bentpipe.daemon.errors import SleepVetoed
from bentpipe.daemon.fleet import satellite as module
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.coordinated import SETTLE_S, CoordinatedProvider
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.launches import LaunchTokens
from bentpipe.daemon.model import (
    Address,
    MachineId,
    MachineState,
    SatelliteKey,
    SatelliteState,
    SleepMode,
    Transition,
)

KEY, LATER = SatelliteKey("acme", "a"), SatelliteKey("acme", "later")
AT = Address("192.0.2.1", 8372)
SLEEP_AFTER_S = 60.0
S = SatelliteState


def section(key: SatelliteKey) -> SatelliteSection:
    process = ProcessSection.model_validate({"command": ["sleep", "{port}"]})
    times = {"sleep_after": SLEEP_AFTER_S, "min_awake": 0, "hold_limit": 500}
    return SatelliteSection.model_validate({"org": key.org, "name": key.name, "process": process, **times})


class Bed:
    def __init__(self) -> None:
        self.provider = MemoryProvider()
        for key in (KEY, LATER):
            self.provider.add(f"{key.org}.{key.name}", pending_s=5.0, stopping_s=5.0).state = MachineState.RUNNING
        self.told: list[Transition] = []
        self.notes: list[str] = []
        context = FleetContext(self.provider, self.told.append, noting_stop=self.noting_stop)
        self.fleet = Fleet([section(KEY)], context, max_held=100)

    @contextlib.asynccontextmanager
    async def noting_stop(self, key: SatelliteKey) -> AsyncIterator[None]:
        self.notes.append(f"{key} may be stopped: {self.calls(key)}")
        await trio.sleep(0.5)
        yield
        self.notes.append(f"{key} was: {self.calls(key)}")

    def machine(self, key: SatelliteKey) -> FakeMachine:
        return self.provider.machines[MachineId(f"{key.org}.{key.name}")]

    def calls(self, key: SatelliteKey) -> list[str]:
        return self.machine(key).calls


@pytest.fixture
def bed() -> Bed:
    return Bed()


@pytest.fixture(autouse=True)
def listening(monkeypatch: pytest.MonkeyPatch) -> None:
    async def listens(address: Address, tell: Callable[[str], None]) -> None:
        await trio.sleep(1)

    monkeypatch.setattr(module, "wait_listening", listens)


async def test_an_adopted_satellite_is_awake_and_does_not_sleep_before_its_client_ends(
    bed: Bed, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    lease = bed.fleet.adopt(KEY, AT)
    satellite = bed.fleet.get(KEY)
    assert (satellite.leases, satellite.state) == (1, S.UNKNOWN)
    await nursery.start(bed.fleet.run)
    await trio.sleep(10 * SLEEP_AFTER_S)
    assert satellite.state is S.OPERATIONAL
    assert "stop" not in bed.calls(KEY)
    lease.release()
    await trio.sleep(2 * SLEEP_AFTER_S)
    assert satellite.state is S.SLEEP
    assert [change.after for change in bed.told] == [S.STARTING, S.OPERATIONAL, S.STOPPING, S.SLEEP]


async def test_a_satellite_that_is_known_later_is_used_from_its_first_step_on(
    bed: Bed, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    kept, ended = bed.fleet.adopt(LATER, AT), bed.fleet.adopt(LATER, AT)
    ended.release()
    await nursery.start(bed.fleet.run)
    satellite = await bed.fleet.add(section(LATER))
    assert satellite.leases == 1
    await trio.sleep(10 * SLEEP_AFTER_S)
    assert satellite.state is S.OPERATIONAL
    kept.release()
    assert satellite.leases == 0
    await trio.sleep(2 * SLEEP_AFTER_S)
    assert satellite.state is S.SLEEP


async def test_the_stop_is_noted_before_it_is_called(
    bed: Bed, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    await nursery.start(bed.fleet.run)
    await trio.sleep(3 * SLEEP_AFTER_S)
    assert bed.fleet.get(KEY).state is S.SLEEP
    before, after = bed.notes
    assert before.startswith("acme/a may be stopped")
    assert "stop" not in before.rpartition(":")[2]
    assert "stop" in after.rpartition(":")[2] or "hibernate" in after.rpartition(":")[2]


async def test_a_client_that_comes_while_the_note_is_written_forbids_the_stop() -> None:
    provider, used = MemoryProvider(), False
    provider.add("acme.a").state = MachineState.RUNNING

    @contextlib.asynccontextmanager
    async def noting(key: SatelliteKey) -> AsyncIterator[None]:
        nonlocal used
        used = True
        yield

    tokens = LaunchTokens(KEY, None, lambda: 0.0)
    guarded = CoordinatedProvider(provider, LocalCoordination(), KEY, lambda: used, tokens, noting_stop=noting)
    with pytest.raises(SleepVetoed):
        await guarded.stop(MachineId("acme.a"), SleepMode.STOP)
    assert "stop" not in provider.machines[MachineId("acme.a")].calls


@pytest.mark.parametrize("was_sent", [True, False])
async def test_a_stop_that_an_earlier_process_may_have_sent_is_settled_before_a_client_comes(
    bed: Bed, autojump_clock: MockClock, nursery: trio.Nursery, was_sent: bool
) -> None:
    satellite = bed.fleet.get(KEY)
    satellite.expect_stop()
    machine = bed.machine(KEY)
    nursery.start_soon(bed.fleet.run)
    granted: list[float] = []

    async def come() -> None:
        async with satellite.lease():
            granted.append(trio.current_time())
            await trio.sleep_forever()

    await wait_all_tasks_blocked()
    nursery.start_soon(come)
    if was_sent:
        await trio.sleep(SETTLE_S / 4)
        machine.state = MachineState.STOPPED
    await trio.sleep(SETTLE_S / 2)
    assert granted == []
    await trio.sleep(60)
    assert len(granted) == 1
    assert machine.starts == int(was_sent)
    nursery.cancel_scope.cancel()
