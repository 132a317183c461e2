"""The satellite's task: leases for many clients at once, over a provider whose every answer the test gives.

Time stands still (`trio.testing.MockClock`) but where a test moves it. The port that is probed is a real one.
"""

import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from beds.machines.played_machine import RULES as FEW_WAITERS
from beds.machines.shown_machine import ShownMachine
from bentpipe.daemon.errors import (
    BentpipeError,
    Draining,
    LimitReached,
    ProviderCapacity,
    ProviderPermission,
    ProviderRetryable,
    SatelliteUnusable,
    SleepModeRefused,
    WakeFailed,
)
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.machine.rules import BLOCKED_FIRST_S, RETRY_START_S
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import (
    Address,
    Fault,
    Machine,
    MachineId,
    MachineState,
    SatelliteKey,
    SatelliteState,
    SleepMode,
    Transition,
)

RULES = dataclasses.replace(FEW_WAITERS, max_waiters=300)
MACHINE_ID = MachineId("acme.m")


class ScriptedProvider(ShownMachine):
    """One machine; `start` and `stop` wait until the test answers them, and move nothing by themselves."""

    def __init__(self, address: Address) -> None:
        super().__init__(MACHINE_ID, address)
        self.answers, self._asked = trio.open_memory_channel[BentpipeError | None](0)

    async def answer(self, error: BentpipeError | None = None) -> None:
        """Let the call under way return; the next checkpoint of the test sees it done."""
        await self.answers.send(error)
        await trio.testing.wait_all_tasks_blocked()

    async def describe(self, machine_id: MachineId) -> Machine:
        return dataclasses.replace(await super().describe(machine_id), machine_id=machine_id)

    async def start(self, machine_id: MachineId) -> None:
        await self._call(f"start {machine_id}")

    async def stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool = False) -> None:
        await self._call(f"{'force' if force else mode.value} {machine_id}")

    async def launch(self, machine_id: MachineId, token: str) -> None:
        await self._call(f"launch {machine_id}")

    async def terminate(self, machine_id: MachineId) -> None:
        await self._call(f"terminate {machine_id}")

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        error = await self._asked.receive()
        if error is not None:
            raise error


class Bed:
    """A running satellite and clients of it."""

    def __init__(self, satellite: Satellite, provider: ScriptedProvider, nursery: trio.Nursery) -> None:
        self.satellite = satellite
        self.provider = provider
        self.nursery = nursery
        self.transitions: list[Transition] = []
        self.leases: list[Lease] = []
        self.errors: list[BentpipeError] = []

    def come(self, count: int = 1) -> list[trio.CancelScope]:
        """Start clients that keep their lease until they are cancelled."""
        scopes = [trio.CancelScope() for _ in range(count)]
        for scope in scopes:
            self.nursery.start_soon(self._client, scope)
        return scopes

    async def _client(self, scope: trio.CancelScope) -> None:
        with scope:
            try:
                async with self.satellite.lease() as lease:
                    self.leases.append(lease)
                    await trio.sleep_forever()
            except BentpipeError as exc:
                self.errors.append(exc)

    async def settle(self) -> None:
        await trio.testing.wait_all_tasks_blocked()

    async def wait_state(self, state: SatelliteState) -> None:
        """Follow real I/O (the probe), which the mocked clock does not bound."""
        while self.satellite.state is not state:
            await trio.testing.wait_all_tasks_blocked(0.001)

    async def wake(self) -> None:
        """Answer the start that is under way, all the way to OPERATIONAL."""
        self.provider.show(MachineState.PENDING)
        await self.provider.answer()
        self.provider.show(MachineState.RUNNING)
        await self.wait_state(SatelliteState.OPERATIONAL)
        await self.settle()


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock()


@pytest.fixture
async def bed(clock: trio.testing.MockClock) -> AsyncIterator[Bed]:
    async with open_bed() as opened:
        yield opened


@contextlib.asynccontextmanager
async def open_bed(early_clients: int = 0) -> AsyncIterator[Bed]:
    """`early_clients` come before the satellite's task has begun."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as port:
        provider = ScriptedProvider(Address("127.0.0.1", port.getsockname()[1]))
        transitions: list[Transition] = []
        satellite = Satellite(SatelliteKey("acme", "m"), RULES, FleetContext(provider, transitions.append))
        async with trio.open_nursery() as nursery:
            bed = Bed(satellite, provider, nursery)
            bed.transitions = transitions
            bed.come(early_clients)
            await bed.settle()
            await nursery.start(satellite.run)
            yield bed
            nursery.cancel_scope.cancel()


async def test_two_hundred_clients_wake_it_once_and_all_get_a_lease(bed: Bed) -> None:
    bed.come(200)
    await bed.settle()
    assert bed.provider.calls == ["start acme.m"]
    assert bed.satellite.waiting == 200
    await bed.wake()
    assert len(bed.leases) == bed.satellite.leases == 200
    assert {lease.address for lease in bed.leases} == {bed.provider.address}
    assert bed.provider.calls == ["start acme.m"]


async def test_clients_that_come_before_its_task_has_begun_are_held_as_others(clock: trio.testing.MockClock) -> None:
    """A satellite that takes another one's place is found by clients at once, and its task begins a moment later."""
    async with open_bed(early_clients=3) as bed:
        await bed.settle()
        assert bed.provider.calls == ["start acme.m"]
        await bed.wake()
        assert (len(bed.leases), bed.errors) == (3, [])


async def test_a_cancelled_client_frees_its_place_and_the_wake_goes_on(bed: Bed) -> None:
    (scope,) = bed.come()
    await bed.settle()
    scope.cancel()
    await bed.settle()
    assert bed.satellite.waiting == 0
    await bed.wake()
    assert bed.satellite.leases == 0
    assert bed.satellite.state is SatelliteState.OPERATIONAL


async def test_a_client_cancelled_in_the_moment_of_its_grant_leaves_no_lease(bed: Bed) -> None:
    (scope,) = bed.come()
    await bed.settle()
    bed.provider.show(MachineState.PENDING)
    await bed.provider.answer()
    # Granted and cancelled within one step of the scheduler: trio delivers the cancellation.
    before = bed.satellite._observer
    bed.satellite._observer = lambda transition: (before(transition), scope.cancel())[0]
    bed.provider.show(MachineState.RUNNING)
    await bed.wait_state(SatelliteState.OPERATIONAL)
    await bed.settle()
    assert bed.satellite.leases == 0


async def test_a_failure_goes_to_all_and_is_remembered_for_a_while(bed: Bed, clock: trio.testing.MockClock) -> None:
    bed.come(3)
    await bed.settle()
    await bed.provider.answer(ProviderCapacity("no m7g.large is free"))
    words = "no m7g.large is free; the next attempt is possible in "
    assert [str(error) for error in bed.errors] == [words + "180 s"] * 3
    assert len({id(error) for error in bed.errors}) == 3, "one exception object in several tasks"
    clock.jump(100)
    bed.come()
    await bed.settle()
    assert (str(bed.errors[-1]), bed.errors[-1].peer_hint) == (words + "80 s",) * 2
    assert bed.provider.calls == ["start acme.m"]
    clock.jump(RULES.capacity_retry_s - 100)
    bed.come()
    await bed.settle()
    assert len(bed.errors) == 4
    assert bed.provider.calls == ["start acme.m"] * 2


@pytest.mark.parametrize("mended", ["told", "not told"])
async def test_what_people_must_mend_is_tried_again_when_they_say_so_and_by_itself(
    bed: Bed, clock: trio.testing.MockClock, mended: str
) -> None:
    bed.come()
    await bed.settle()
    await bed.provider.answer(ProviderPermission("no permission to start"))
    clock.jump(BLOCKED_FIRST_S - 1)
    bed.come()
    await bed.settle()
    assert [(type(error), str(error)) for error in bed.errors] == [
        (SatelliteUnusable, f"no permission to start; the next attempt is possible in {left_s:g} s")
        for left_s in (BLOCKED_FIRST_S, 1)
    ]
    assert bed.satellite.state is SatelliteState.FAILED
    if mended == "told":
        bed.satellite.reset()
    else:
        clock.jump(1)
        await bed.settle()
    assert bed.satellite.state is SatelliteState.SLEEP
    bed.come()
    await bed.settle()
    assert bed.provider.calls == ["start acme.m"] * 2


async def test_a_passing_fault_is_tried_again_without_telling_anyone(bed: Bed, clock: trio.testing.MockClock) -> None:
    bed.come()
    await bed.settle()
    await bed.provider.answer(ProviderRetryable("stopping still"))
    assert bed.errors == []
    clock.jump(RETRY_START_S)
    await bed.settle()
    assert bed.provider.calls == ["start acme.m"] * 2
    await bed.wake()
    assert len(bed.leases) == 1


async def test_a_machine_that_stops_while_starting_fails_the_wake_with_its_reason(bed: Bed) -> None:
    bed.come(2)
    await bed.settle()
    bed.provider.show(MachineState.PENDING)
    await bed.provider.answer()
    bed.provider.show(MachineState.STOPPED, "Client.InternalError: key unusable", Fault.OTHER)
    await bed.settle()
    assert all("key unusable" in str(error) and isinstance(error, WakeFailed) for error in bed.errors)
    assert len(bed.errors) == 2


async def test_the_wake_has_a_deadline(bed: Bed, clock: trio.testing.MockClock) -> None:
    bed.come()
    await bed.settle()
    bed.provider.show(MachineState.PENDING)
    await bed.provider.answer()
    clock.jump(RULES.wake_deadline_s)
    await bed.settle()
    assert [type(error) for error in bed.errors] == [WakeFailed]


async def test_one_more_waiter_than_the_limit_is_refused(bed: Bed) -> None:
    bed.come(RULES.max_waiters + 1)
    await bed.settle()
    assert [type(error) for error in bed.errors] == [LimitReached]
    assert bed.satellite.waiting == RULES.max_waiters


async def test_it_sleeps_when_idle_and_not_under_a_lease(bed: Bed, clock: trio.testing.MockClock) -> None:
    (scope,) = bed.come()
    await bed.settle()
    await bed.wake()
    clock.jump(RULES.sleep_after_s * 10)
    await bed.settle()
    assert bed.provider.calls == ["start acme.m"]
    scope.cancel()
    await bed.settle()
    clock.jump(RULES.sleep_after_s - 1)
    await bed.settle()
    assert bed.provider.calls == ["start acme.m"]
    clock.jump(1)
    await bed.settle()
    assert bed.provider.calls == ["start acme.m", "hibernate acme.m"]
    bed.provider.show(MachineState.HIBERNATED)
    await bed.provider.answer()
    assert bed.satellite.state is SatelliteState.SLEEP


async def to_sleep(bed: Bed, clock: trio.testing.MockClock) -> None:
    """Wake it for a client that leaves, and let it become idle."""
    (scope,) = bed.come()
    await bed.settle()
    await bed.wake()
    scope.cancel()
    await bed.settle()
    clock.jump(RULES.sleep_after_s)
    await bed.settle()
    assert bed.satellite.state is SatelliteState.STOPPING


async def test_who_comes_while_it_falls_asleep_waits_and_wakes_it(bed: Bed, clock: trio.testing.MockClock) -> None:
    await to_sleep(bed, clock)
    bed.come()
    bed.provider.show(MachineState.STOPPING)
    await bed.settle()
    assert bed.provider.calls[-1] == "hibernate acme.m", "no second call while one is under way"
    await bed.provider.answer()
    assert bed.provider.calls[-1] == "hibernate acme.m", "a machine that stops cannot be started"
    bed.provider.show(MachineState.HIBERNATED)
    await bed.settle()
    assert bed.provider.calls[-1] == "start acme.m"
    await bed.wake()
    assert bed.satellite.leases == 1


async def test_who_comes_in_the_moment_of_the_decision_calls_it_off(clock: trio.testing.MockClock) -> None:
    """Client and stop call become runnable in one step of the scheduler, which takes them in any order."""
    outcomes = set()
    for _ in range(30):
        async with open_bed() as bed:
            (scope,) = bed.come()
            await bed.settle()
            await bed.wake()
            scope.cancel()
            await bed.settle()

            def observe(transition: Transition, bed: Bed = bed) -> None:
                if transition.after is SatelliteState.STOPPING:
                    bed.come()

            bed.satellite._observer = observe
            clock.jump(RULES.sleep_after_s)
            await bed.settle()
            stopped = bed.provider.calls[-1] == "hibernate acme.m"
            assert (bed.satellite.waiting, bed.satellite.leases) == ((1, 0) if stopped else (0, 1))
            outcomes.add(stopped)
    assert outcomes == {True, False}


async def test_a_refused_hibernation_becomes_a_stop(bed: Bed, clock: trio.testing.MockClock) -> None:
    await to_sleep(bed, clock)
    await bed.provider.answer(SleepModeRefused("this type cannot hibernate"))
    assert bed.provider.calls[-1] == "stop acme.m"
    bed.provider.show(MachineState.STOPPED)
    await bed.provider.answer()
    assert bed.satellite.state is SatelliteState.SLEEP


async def test_death_is_noticed_and_the_next_client_wakes_it_again(bed: Bed) -> None:
    (scope,) = bed.come()
    await bed.settle()
    await bed.wake()
    bed.provider.show(MachineState.STOPPED, "killed by SIGKILL")
    await bed.settle()
    assert bed.satellite.state is SatelliteState.SLEEP
    assert bed.transitions[-1].cause == "killed by SIGKILL"
    bed.come()
    await bed.settle()
    assert bed.provider.calls == ["start acme.m"] * 2
    scope.cancel()
    await bed.settle()
    await bed.wake()
    assert bed.satellite.leases == 1


async def test_a_machine_that_is_gone_refuses_everybody(bed: Bed) -> None:
    bed.come()
    await bed.settle()
    bed.provider.show(MachineState.TERMINATED, "terminated by somebody")
    await bed.settle()
    bed.come()
    await bed.settle()
    assert [type(error) for error in bed.errors] == [SatelliteUnusable] * 2


async def test_the_drain_refuses_who_waits_and_who_comes(bed: Bed) -> None:
    bed.come()
    await bed.settle()
    bed.satellite.drain()
    bed.come()
    await bed.settle()
    assert [type(error) for error in bed.errors] == [Draining] * 2


async def test_a_kept_lease_outlives_its_client_and_is_given_back_once(bed: Bed) -> None:
    bed.come()
    await bed.settle()
    await bed.wake()
    (lease,) = bed.leases
    lease.keep()
    async with bed.satellite.lease() as second:
        second.keep()
    assert bed.satellite.leases == 2
    second.release()
    second.release()
    assert bed.satellite.leases == 1


async def test_a_lease_without_a_wait_is_had_from_an_operational_satellite_only(bed: Bed) -> None:
    assert bed.satellite.lease_nowait() is None
    assert bed.provider.calls == []
    bed.come()
    await bed.settle()
    assert bed.satellite.lease_nowait() is None
    assert bed.satellite.waiting == 1
    await bed.wake()
    lease = bed.satellite.lease_nowait()
    assert lease is not None
    assert lease.address == bed.provider.address
    assert bed.satellite.leases == 2
    lease.release()
    assert bed.satellite.leases == 1
    bed.satellite.drain()
    with pytest.raises(Draining):
        bed.satellite.lease_nowait()
    assert bed.satellite.leases == 1
