"""Nobody is let in before it is certain that the satellite's machine is where it was last seen."""

import dataclasses
from collections.abc import AsyncIterator, Callable

import pytest
import trio
from trio.testing import MockClock

from beds.machines.memory_provider import FakeMachine, MemoryProvider
from bentpipe.config.model import SatelliteSection
from bentpipe.daemon.errors import MachineUncertain, ProviderRetryable
from bentpipe.daemon.fleet import satellite as module
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.resume import BootInfo
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.fleet.whereabouts import CERTAIN_DEADLINE_S, AddressClaims, KnownAddresses
from bentpipe.daemon.model import Address, MachineState, SatelliteKey, SatelliteState
from bentpipe.daemon.providers.ec2.traits import TRAITS

ONE, TWO = SatelliteKey("acme", "one"), SatelliteKey("globex", "two")
HERE, THERE = Address("10.0.0.1", 8372), Address("10.0.0.2", 8372)


@dataclasses.dataclass
class Bed:
    fleet: Fleet
    provider: MemoryProvider
    boot_ids: dict[Address, str]
    """What answers at an address says of itself."""
    probed: list[Address]

    def machine(self, key: SatelliteKey) -> FakeMachine:
        return next(each for name, each in self.provider.machines.items() if name == f"{key.org}.{key.name}")

    def satellite(self, key: SatelliteKey) -> Satellite:
        return self.fleet.get(key)

    async def lease(self, key: SatelliteKey) -> Address:
        async with self.satellite(key).lease() as lease:
            assert self.satellite(key).is_at(lease.address)
            return lease.address

    def lease_at_once(self, key: SatelliteKey) -> Address | None:
        lease = self.satellite(key).lease_nowait()
        if lease is None:
            return None
        lease.release()
        return lease.address


@pytest.fixture
async def bed(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> AsyncIterator[Bed]:
    provider = MemoryProvider()
    for key, address in ((ONE, HERE), (TWO, THERE)):
        provider.add(f"{key.org}.{key.name}", address=address, pending_s=5.0)
    boot_ids: dict[Address, str] = {}
    probed: list[Address] = []

    async def listens(address: Address, tell: Callable[[str], None]) -> None:
        probed.append(address)
        await trio.sleep(0.1)

    async def read_boot_info(key: SatelliteKey, address: Address) -> BootInfo | None:
        await trio.lowlevel.checkpoint()
        return BootInfo(boot_ids[address]) if address in boot_ids else None

    monkeypatch.setattr(module, "wait_listening", listens)
    sections = [
        SatelliteSection.model_validate(
            {"org": key.org, "name": key.name, "min_awake": 0, "process": {"command": ["true", "{port}"]}}
        )
        for key in (ONE, TWO)
    ]
    proven = set(getattr(request, "param", ()))
    addresses = KnownAddresses(AddressClaims(), proven)
    context = FleetContext(provider, lambda _: None, read_boot_info=read_boot_info, addresses=addresses)
    fleet = Fleet(sections, context, max_held=100)
    async with trio.open_nursery() as nursery:
        await nursery.start(fleet.run)
        yield Bed(fleet, provider, boot_ids, probed)
        nursery.cancel_scope.cancel()


async def test_what_is_certain_costs_no_look(bed: Bed, autojump_clock: MockClock) -> None:
    assert await bed.lease(ONE) == HERE
    looks = bed.machine(ONE).looks
    for _ in range(10):
        assert bed.lease_at_once(ONE) == HERE
        assert await bed.lease(ONE) == HERE
    assert bed.machine(ONE).looks == looks


async def test_what_is_not_vouched_for_is_looked_at_once_for_all(bed: Bed, autojump_clock: MockClock) -> None:
    await bed.lease(ONE)
    machine = bed.machine(ONE)
    machine.vouched = False
    looks = machine.looks
    assert bed.lease_at_once(ONE) is None
    found: list[Address] = []

    async def come() -> None:
        found.append(await bed.lease(ONE))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(come)
        await trio.testing.wait_all_tasks_blocked()
        machine.vouched = True
    assert found == [HERE] * 50
    assert machine.looks <= looks + 2


async def test_a_machine_that_is_gone_is_not_used(bed: Bed, autojump_clock: MockClock) -> None:
    await bed.lease(ONE)
    machine = bed.machine(ONE)
    # Nobody is told of it: only who looks finds out.
    machine.state, machine.reason, machine.vouched = MachineState.STOPPED, "by others", False
    with trio.fail_after(60):
        machine.address = THERE
        machine.vouched = True
        assert bed.lease_at_once(ONE) is None
        assert await bed.lease(ONE) == THERE
    assert machine.starts == 2


async def test_two_at_one_address_are_looked_at_before_either_is_used(bed: Bed, autojump_clock: MockClock) -> None:
    await bed.lease(ONE)
    # The first is gone, and its address is the second's. Nobody has seen the former yet.
    gone, heir = bed.machine(ONE), bed.machine(TWO)
    heir.address = HERE
    gone.state, gone.reason = MachineState.STOPPED, "by others"
    looks = gone.looks
    assert await bed.lease(TWO) == HERE
    assert gone.looks > looks
    assert bed.satellite(ONE).state is SatelliteState.SLEEP
    assert bed.lease_at_once(ONE) is None
    gone.address = THERE
    assert (await bed.lease(ONE), await bed.lease(TWO)) == (THERE, HERE)


async def test_while_both_are_said_to_be_there_neither_is_served(bed: Bed, autojump_clock: MockClock) -> None:
    await bed.lease(ONE)
    bed.machine(TWO).address = Address("::ffff:10.0.0.1", 8372)  # the same one, in other letters
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bed.lease, TWO)
        await trio.sleep(10)
        assert bed.satellite(TWO).state is SatelliteState.STARTING
        assert bed.satellite(TWO).waiting == 1
        began = trio.current_time()
        with pytest.raises(MachineUncertain) as refused:
            await bed.lease(ONE)
        assert trio.current_time() - began == pytest.approx(CERTAIN_DEADLINE_S, abs=1)
        assert str(TWO) in str(refused.value)  # the operator hears who it is
        assert TWO.org not in refused.value.peer_hint  # clients do not
        bed.provider.others_terminate(bed.machine(ONE))
    assert bed.satellite(TWO).state is SatelliteState.OPERATIONAL
    assert bed.machine(TWO).starts == 1


async def test_the_same_host_by_another_port_is_another_place(bed: Bed, autojump_clock: MockClock) -> None:
    bed.machine(TWO).address = Address(HERE.host, HERE.port + 1)
    for key in (ONE, TWO):
        await bed.lease(key)
        assert bed.lease_at_once(key) is not None


async def test_while_the_provider_cannot_be_asked_nobody_is_let_in(bed: Bed, autojump_clock: MockClock) -> None:
    await bed.lease(ONE)
    machine = bed.machine(ONE)
    machine.vouched, machine.unlooked = False, ProviderRetryable("503", peer_hint="trouble at the cloud")
    with pytest.raises(MachineUncertain, match="503") as refused:
        await bed.lease(ONE)
    assert "trouble at the cloud" in refused.value.peer_hint
    assert bed.satellite(ONE).state is SatelliteState.OPERATIONAL
    machine.unlooked, machine.vouched = None, True
    assert await bed.lease(ONE) == HERE
    assert machine.starts == 1


async def test_meanwhile_the_boot_id_of_its_wake_will_do(bed: Bed, autojump_clock: MockClock) -> None:
    bed.boot_ids[HERE] = "a"
    await bed.lease(ONE)
    machine = bed.machine(ONE)
    machine.vouched, machine.unlooked = False, ProviderRetryable("503")
    assert await bed.lease(ONE) == HERE
    assert bed.lease_at_once(ONE) == HERE  # for a moment
    await trio.sleep(TRAITS.address_age_s + 1)
    assert bed.lease_at_once(ONE) is None
    assert await bed.lease(ONE) == HERE
    bed.boot_ids[HERE] = "b"  # another machine answers there
    await trio.sleep(TRAITS.address_age_s + 1)
    with pytest.raises(MachineUncertain):
        await bed.lease(ONE)


async def test_a_stranger_on_its_port_is_waited_out(bed: Bed, autojump_clock: MockClock) -> None:
    """The provider sees the machine and does not vouch for its port: it is probed again before anybody is let in."""
    await bed.lease(ONE)
    machine = bed.machine(ONE)
    machine.vouched = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bed.lease, ONE)
        await trio.sleep(30)
        assert bed.satellite(ONE).state is SatelliteState.STARTING
        assert bed.satellite(ONE).waiting == 1
        machine.vouched = True
    assert bed.satellite(ONE).state is SatelliteState.OPERATIONAL
    assert machine.starts == 1


@pytest.mark.parametrize("bed", [(ONE,)], indirect=True)
async def test_who_proves_itself_by_tls_needs_no_look(bed: Bed, autojump_clock: MockClock) -> None:
    await bed.lease(ONE)
    machine = bed.machine(ONE)
    machine.vouched, machine.unlooked = False, ProviderRetryable("503")
    looks = machine.looks
    assert bed.lease_at_once(ONE) == HERE
    assert await bed.lease(ONE) == HERE
    assert machine.looks == looks


async def test_a_client_that_leaves_ends_no_look(bed: Bed, autojump_clock: MockClock) -> None:
    await bed.lease(ONE)
    machine = bed.machine(ONE)
    machine.vouched, machine.unlooked = False, ProviderRetryable("503")
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(1):
            await bed.lease(ONE)
        nursery.start_soon(bed.lease, ONE)
        await trio.sleep(0)
        machine.vouched, machine.unlooked = True, None
    assert bed.satellite(ONE).leases == 0


async def test_an_answer_of_the_provider_serves_all_who_had_connected_by_then(
    bed: Bed, autojump_clock: MockClock
) -> None:
    """A herd asks once for many clients, and never takes an answer that is older than its own connection."""
    await bed.lease(ONE)
    satellite, machine = bed.satellite(ONE), bed.machine(ONE)
    connected = trio.current_time()
    await trio.sleep(1)
    assert satellite.is_at(HERE, since=connected)
    machine.vouched = False
    assert satellite.is_at(HERE, since=connected), "found out after it had connected"
    assert not satellite.is_at(HERE, since=trio.current_time() + 0.001), "this client has connected later"
    assert not satellite.is_at(HERE, since=connected), "what was found out last holds"
    assert not satellite.is_at(HERE)
