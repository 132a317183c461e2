"""Satellites of two hosts on one machine, agreeing by rows in memory: who acts, who may sleep, who waits for whom."""

import contextlib
import dataclasses
import itertools
import socket
from collections.abc import AsyncIterator, Callable

import pytest
import trio

from beds.contracts.coordination import EXPIRY_S, LEASE_S, CutRows
from beds.machines.played_machine import RULES as SHORT
from beds.machines.shown_machine import ShownMachine
from beds.stores.memory_rows import MemoryRows
from bentpipe.daemon.coordination.contract import InUse
from bentpipe.daemon.coordination.shared import SharedCoordination
from bentpipe.daemon.coordination.turn import SharedTurn
from bentpipe.daemon.errors import STORE_HINT, ProviderRetryable, SleepVetoed, StoreError
from bentpipe.daemon.fleet import satellite as satellite_module
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.coordinated import CoordinatedProvider
from bentpipe.daemon.fleet.launches import LaunchTokens
from bentpipe.daemon.fleet.machine import known
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import (
    Address,
    Machine,
    MachineId,
    MachineState,
    SatelliteKey,
    SatelliteState,
    SleepMode,
)

S, M = SatelliteState, MachineState
KEY = SatelliteKey("acme", "m")
MACHINE_ID = MachineId("acme.m")
PATIENCE_S = 30


class SharedMachine(ShownMachine):
    """A machine that is up and down at once, and keeps its log of calls."""

    def __init__(self, address: Address) -> None:
        super().__init__(MACHINE_ID, address)
        self.held: trio.Event | None = None

    async def describe(self, machine_id: MachineId) -> Machine:
        """As EC2's poller: what is found out for one is told to all."""
        await trio.lowlevel.checkpoint()
        self.show(self.state)
        return self.look()

    async def start(self, machine_id: MachineId) -> None:
        self.calls.append("start")
        if self.held is not None:
            await self.held.wait()
        self.show(M.RUNNING)

    async def stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool = False) -> None:
        self.calls.append("force" if force else "stop")
        self.show(M.STOPPED)

    async def launch(self, machine_id: MachineId, token: str) -> None:
        self.calls.append("launch")

    async def terminate(self, machine_id: MachineId) -> None:
        self.calls.append("terminate")


@dataclasses.dataclass
class Edge:
    wire: CutRows
    coordination: SharedCoordination
    satellite: Satellite
    time: float = 1000.0

    async def wait(self, condition: Callable[[], object]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():
                await trio.sleep(0.005)


@pytest.fixture
async def machine() -> AsyncIterator[SharedMachine]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as port:
        yield SharedMachine(Address("127.0.0.1", port.getsockname()[1]))


@contextlib.asynccontextmanager
async def edges(machine: SharedMachine, *sleep_after_s: float) -> AsyncIterator[list[Edge]]:
    rows = MemoryRows()
    found: list[Edge] = []
    async with trio.open_nursery() as nursery:
        for number, after_s in enumerate(sleep_after_s):
            wire = CutRows(rows)
            clock = lambda number=number: found[number].time if number < len(found) else 1000.0  # noqa: E731
            coordination = SharedCoordination(
                wire, f"edge-{number}", lease_s=LEASE_S, host_expiry_s=EXPIRY_S, clock=clock
            )
            rules = dataclasses.replace(RULES, sleep_after_s=after_s)
            context = FleetContext(machine, lambda transition: None, coordination=coordination)
            satellite = Satellite(KEY, rules, context)
            found.append(Edge(wire, coordination, satellite))
            await nursery.start(coordination.run)
            await nursery.start(satellite.run)
        with trio.fail_after(PATIENCE_S):
            yield found
        nursery.cancel_scope.cancel()


RULES = dataclasses.replace(
    SHORT,
    sleep_mode=SleepMode.STOP,
    sleep_after_s=600,
    min_awake_s=0,
    hold_limit_s=60,
    retry_after_s=1,
    max_waiters=300,
)


async def test_clients_of_two_hosts_wake_it_once(machine: SharedMachine) -> None:
    async with edges(machine, 600, 600) as found, trio.open_nursery() as nursery:
        served = 0

        async def come(edge: Edge) -> None:
            nonlocal served
            async with edge.satellite.lease():
                assert edge.coordination.is_registered(KEY)
                served += 1
                await trio.sleep_forever()

        for edge in itertools.islice(itertools.cycle(found), 60):
            nursery.start_soon(come, edge)
        await found[0].wait(lambda: served == 60)
        assert machine.calls == ["start"]
        assert all(edge.coordination.is_registered(KEY) for edge in found)
        nursery.cancel_scope.cancel()


async def test_it_sleeps_when_the_last_host_is_done(machine: SharedMachine) -> None:
    async with edges(machine, 0.05, 0.2) as (eager, other):
        async with other.satellite.lease():
            await eager.wait(lambda: eager.satellite.state is S.OPERATIONAL)
            await eager.wait(lambda: eager.satellite.state is S.STOPPING)
            await eager.wait(lambda: eager.satellite.state is S.OPERATIONAL)
            assert machine.calls == ["start"]
            assert other.satellite.state is S.OPERATIONAL
        await other.wait(lambda: other.satellite.state is S.SLEEP)
        await eager.wait(lambda: eager.satellite.state is S.SLEEP)
        assert machine.calls == ["start", "stop"]
        await other.wait(lambda: not other.coordination.is_entered(KEY))


async def test_who_comes_during_another_hosts_stop_has_it_woken_again(machine: SharedMachine) -> None:
    async with edges(machine, 600, 600) as (one, two):
        machine.show(M.RUNNING)
        await two.wait(lambda: two.satellite.state is S.OPERATIONAL)
        async with one.coordination.acting(KEY) as turn, trio.open_nursery() as nursery:
            assert isinstance(turn, SharedTurn)
            await turn.close(lambda: False)
            served = trio.Event()

            async def come() -> None:
                async with two.satellite.lease():
                    served.set()

            nursery.start_soon(come)
            await trio.sleep(0.05)
            assert not served.is_set()
            machine.state = M.STOPPED  # and nobody has been told yet
            await turn.release()
            await served.wait()
        assert machine.calls == ["start"]


async def test_without_the_store_starts_are_allowed_and_sleeps_are_not(machine: SharedMachine) -> None:
    async with edges(machine, 0.05) as (edge,):
        edge.wire.cut = True
        async with edge.satellite.lease():
            assert machine.calls == ["start"]
            assert not edge.coordination.is_registered(KEY)
        await edge.wait(lambda: edge.satellite.state is S.STOPPING)
        await edge.wait(lambda: edge.satellite.state is S.OPERATIONAL)
        assert machine.calls == ["start"]
        edge.wire.cut = False
        await edge.wait(lambda: edge.satellite.state is S.SLEEP)
        assert machine.calls == ["start", "stop"]


async def test_a_client_that_leaves_while_entering_leaves_nothing(machine: SharedMachine) -> None:
    async with edges(machine, 600, 600) as (one, two):
        async with one.coordination.acting(KEY) as turn:
            assert isinstance(turn, SharedTurn)
            await turn.close(lambda: False)
            with trio.move_on_after(0.05):
                async with two.satellite.lease():
                    pytest.fail("let in while it is put to sleep")
        async with one.coordination.acting(KEY) as turn:
            await two.wait(lambda: not two.coordination.is_entered(KEY))
            assert isinstance(turn, SharedTurn)
            await turn.close(lambda: False)


class UnreachableMachine(SharedMachine):
    """It cannot be reached after a resume until it has been stopped."""

    reachable = False

    async def stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool = False) -> None:
        await super().stop(machine_id, mode, force=force)
        self.reachable = True


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> UnreachableMachine:
    machine = UnreachableMachine(Address("192.0.2.1", 1))
    machine.show(M.HIBERNATED)

    async def listens(address: Address, tell: Callable[[str, bool], None]) -> None:
        while not machine.reachable:
            tell("port 1 does not answer", True)
            await trio.sleep(0.05)

    monkeypatch.setattr(satellite_module, "wait_listening", listens)
    monkeypatch.setattr(known, "SILENT_LEAST_S", 0.0)
    monkeypatch.setattr(known, "RESTART_AT", 0.3 / RULES.wake_deadline_s)
    return machine


async def test_a_restart_for_clients_that_wait_leaves_their_host_entered(unreachable: UnreachableMachine) -> None:
    async with edges(unreachable, 600, 600) as (first, second), first.satellite.lease():
        assert unreachable.calls == ["start", "stop", "start"]
        assert first.coordination.is_registered(KEY)
        with pytest.raises(InUse, match="in use at edge-0"):
            async with second.coordination.acting(KEY) as turn:
                await turn.close(lambda: False)


async def test_a_machine_that_another_host_uses_is_not_restarted(unreachable: UnreachableMachine) -> None:
    """Perhaps it is this host's own way to the machine that is broken."""
    async with edges(unreachable, 600, 600) as (first, second):
        await second.coordination.enter(KEY, trio.lowlevel.checkpoint)
        with trio.move_on_after(1.5):
            async with first.satellite.lease():
                raise AssertionError("nobody can reach it")
        assert unreachable.calls == ["start"]
        assert first.satellite.state is S.STARTING
        unreachable.reachable = True
        async with first.satellite.lease():
            assert first.coordination.is_registered(KEY)
        assert unreachable.calls == ["start"]


async def test_what_the_provider_is_asked_in_whose_turn(machine: SharedMachine) -> None:
    async with edges(machine, 600) as (edge,):
        used = False
        provider = CoordinatedProvider(machine, edge.coordination, KEY, lambda: used, LaunchTokens(KEY))
        await provider.start(MACHINE_ID)
        await provider.start(MACHINE_ID)
        assert machine.calls == ["start"]
        await provider.stop(MACHINE_ID, SleepMode.STOP, force=True)
        assert machine.calls == ["start"]
        machine.show(M.STOPPING)
        await provider.stop(MACHINE_ID, SleepMode.STOP, force=True)
        await provider.launch(MACHINE_ID, "token")
        used = True
        with pytest.raises(SleepVetoed, match="somebody came"):
            await provider.stop(MACHINE_ID, SleepMode.STOP)
        with pytest.raises(ProviderRetryable, match="somebody came"):
            await provider.terminate(MACHINE_ID)
        used = False
        await provider.terminate(MACHINE_ID)
        assert machine.calls == ["start", "force", "launch", "terminate"]
        edge.wire.cut = True
        for call in (provider.launch(MACHINE_ID, "token"), provider.terminate(MACHINE_ID)):
            with pytest.raises(ProviderRetryable, match="cut") as error:
                await call
            assert isinstance(error.value.__cause__, StoreError)
            assert error.value.peer_hint == STORE_HINT, "clients must not read of tables, roles and other hosts"
        assert machine.calls == ["start", "force", "launch", "terminate"]
