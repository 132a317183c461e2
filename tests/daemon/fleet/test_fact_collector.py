"""What a wake took and who waited: the collector alone, and as a satellite uses it."""

import dataclasses
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from beds.machines.played_machine import RULES as HIBERNATING
from beds.machines.shown_machine import ShownMachine
from bentpipe.daemon.errors import ProviderPermanent, ProviderRetryable, SatelliteUnusable
from bentpipe.daemon.fleet import satellite as module
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.fact_collector import FactCollector
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import (
    Address,
    MachineId,
    MachineState,
    SatelliteKey,
    SatelliteState,
    SleepMode,
    StateFacts,
    Transition,
    Waits,
    WakePhase,
)

S = SatelliteState
RULES = dataclasses.replace(HIBERNATING, sleep_mode=SleepMode.STOP, min_awake_s=0, max_waiters=10)
ID = MachineId("acme.a")


def test_phases_never_add_up_to_more_than_the_wake() -> None:
    collector = FactCollector()
    collector.began(10.0)
    collector.phase_ended(WakePhase.BOOT, 14.0)
    collector.phase_ended(WakePhase.START, 15.0)
    facts = collector.take(S.STARTING, S.OPERATIONAL, 18.0)
    assert facts.phases == ((WakePhase.START, 5.0), (WakePhase.BOOT, 0.0), (WakePhase.LISTEN, 3.0))
    assert facts.waits == Waits()
    collector.waited(2.0)
    collector.waited(1.0)
    assert collector.take(S.OPERATIONAL, S.STOPPING, 20.0) == StateFacts((), Waits(2, 3.0, 2.0))
    collector.began(30.0)
    assert collector.take(S.STARTING, S.SLEEP, 31.0) == StateFacts((), Waits())


class SlowProvider(ShownMachine):
    """Accepts a start after 2 s and runs after 7 more, unless `refuse` is set."""

    def __init__(self) -> None:
        super().__init__(ID, Address("192.0.2.1", 1))
        self.refuse = False
        self.faults = 0
        """So many starts fail in passing."""

    async def start(self, machine_id: MachineId) -> None:
        await trio.sleep(2)
        if self.refuse:
            raise ProviderPermanent("no such key")
        if self.faults:
            self.faults -= 1
            raise ProviderRetryable("busy")
        self.show(MachineState.PENDING)

    async def stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool = False) -> None:
        self.show(MachineState.STOPPED)

    async def launch(self, machine_id: MachineId, token: str) -> None:
        raise ProviderPermanent("no way to create it")

    async def terminate(self, machine_id: MachineId) -> None:
        self.show(MachineState.TERMINATED)


async def test_a_satellite_tells_who_woke_it_and_what_each_phase_took(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def listens_after_a_second(address: Address, tell: Callable[[str], None]) -> None:
        await trio.sleep(1)

    monkeypatch.setattr(module, "wait_listening", listens_after_a_second)
    told: list[Transition] = []
    provider = SlowProvider()
    satellite = Satellite(SatelliteKey("acme", "a"), RULES, FleetContext(provider, told.append))
    await nursery.start(satellite.run)

    async def come(who: str, patience_s: float = 60) -> None:
        with trio.move_on_after(patience_s):
            async with satellite.lease(who):
                pass

    async def boot() -> None:
        await trio.sleep(9)
        provider.show(MachineState.RUNNING)

    async with trio.open_nursery() as clients:
        clients.start_soon(come, "alice")
        await wait_all_tasks_blocked()
        clients.start_soon(boot)
        clients.start_soon(come, "bob", 4)
        await trio.sleep(6)
        clients.start_soon(come, "carol")
    await come("dave")
    asleep, waking, awake = told
    assert (asleep.after, asleep.who) == (S.SLEEP, "")
    assert (waking.after, waking.who, waking.facts.waits) == (S.STARTING, "alice", Waits())
    assert awake.after is S.OPERATIONAL
    assert [phase for phase, _ in awake.facts.phases] == list(WakePhase)
    assert [round(seconds, 3) for _, seconds in awake.facts.phases] == [2, 7, 1]
    assert [each.facts.start_attempts for each in told] == [0, 0, 1]
    assert (awake.facts.waits.clients, round(awake.facts.waits.total_s, 3), round(awake.facts.waits.longest_s, 3)) == (
        3,
        18,
        10,
    )


async def test_a_wake_that_failed_kept_its_clients_waiting_too(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    told: list[Transition] = []
    provider = SlowProvider()
    provider.refuse = True
    satellite = Satellite(SatelliteKey("acme", "a"), RULES, FleetContext(provider, told.append))
    await nursery.start(satellite.run)
    for _ in range(2):
        with pytest.raises(SatelliteUnusable):
            async with satellite.lease("alice"):
                raise AssertionError("unreachable")
    assert [transition.after for transition in told] == [S.SLEEP, S.STARTING, S.FAILED]
    assert told[-1].facts.phases == ()
    assert (told[-1].facts.waits.clients, round(told[-1].facts.waits.total_s, 3)) == (1, 2)


async def test_each_attempt_to_start_counts_for_its_wake(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def listens(address: Address, tell: Callable[[str], None]) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(module, "wait_listening", listens)
    told: list[Transition] = []
    provider = SlowProvider()
    provider.faults = 2
    satellite = Satellite(SatelliteKey("acme", "a"), RULES, FleetContext(provider, told.append))
    await nursery.start(satellite.run)

    async def boot() -> None:
        while provider.state is not MachineState.PENDING:
            await provider.changed.wait()
        provider.show(MachineState.RUNNING)

    nursery.start_soon(boot)
    async with satellite.lease("alice"):
        pass
    assert [(each.before, each.facts.start_attempts) for each in told[1:]] == [(S.SLEEP, 0), (S.STARTING, 3)]
    await trio.sleep(RULES.sleep_after_s + 5)
    nursery.start_soon(boot)
    async with satellite.lease("alice"):
        pass
    assert (told[-1].before, told[-1].facts.start_attempts) == (S.STARTING, 1)
