"""The provider of registered machines: alive by heartbeats, and its address trusted for no longer than they say."""

import pytest
import trio
import trio.testing

from bentpipe.daemon.errors import MachineNotFound, ProviderPermanent
from bentpipe.daemon.fleet.whereabouts import AddressClaims
from bentpipe.daemon.model import Address, Machine, MachineId, MachineState, SatelliteKey, SleepMode
from bentpipe.daemon.providers.registered import PLAINTEXT_AGE_S, RegisteredProvider

ID = MachineId("acme.own")
HERE, THERE = Address("10.0.0.1", 8372), Address("10.0.0.2", 8372)
OFFLINE_S = 45.0


async def test_it_runs_while_heartbeats_come(autojump_clock: trio.testing.MockClock) -> None:
    provider = RegisteredProvider(OFFLINE_S)
    with pytest.raises(MachineNotFound):
        await provider.describe(ID)
    provider.heard(ID, HERE, 1, proven=False)
    seen = await provider.describe(ID)
    assert (seen.state, seen.address) == (MachineState.RUNNING, HERE)
    for beat in range(2, 6):
        await trio.sleep(OFFLINE_S - 1)
        provider.heard(ID, HERE, beat, proven=False)
    began = trio.current_time()
    gone = await provider.wait_changed(seen)
    assert (gone.state, gone.address, trio.current_time() - began) == (MachineState.TERMINATED, None, OFFLINE_S)
    assert "no heartbeat for 45 s" in gone.hint
    provider.heard(ID, HERE, 5, proven=False)
    assert await provider.describe(ID) == gone, "the same heartbeat again, as another read of the store has it"
    provider.heard(ID, HERE, 6, proven=False)
    assert await provider.wait_changed(gone) == seen
    provider.forget(ID)
    assert (await provider.wait_changed(seen)).state is MachineState.TERMINATED


async def test_an_old_heartbeat_of_the_store_does_not_count_as_new(autojump_clock: trio.testing.MockClock) -> None:
    provider = RegisteredProvider(OFFLINE_S)
    provider.heard(ID, HERE, 1, proven=False, age_s=OFFLINE_S - 5)
    seen = await provider.describe(ID)
    began = trio.current_time()
    assert seen.state is MachineState.RUNNING
    assert (await provider.wait_changed(seen)).state is MachineState.TERMINATED
    assert trio.current_time() - began == pytest.approx(5)


async def test_how_long_its_address_is_certain(autojump_clock: trio.testing.MockClock) -> None:
    provider = RegisteredProvider(OFFLINE_S)
    provider.heard(ID, HERE, 1, proven=False)
    seen = await provider.describe(ID)
    assert provider.vouches_nowait(seen)
    await trio.sleep(PLAINTEXT_AGE_S)
    assert not provider.vouches_nowait(seen), "the address may be another's by now"
    provider.heard(ID, HERE, 2, proven=True)
    await trio.sleep(OFFLINE_S - 1)
    assert provider.vouches_nowait(seen), "its certificate proves it"
    provider.heard(ID, THERE, 3, proven=True)
    assert not provider.vouches_nowait(seen), "it is registered elsewhere"
    assert provider.vouches_nowait(await provider.describe(ID))
    await trio.sleep(OFFLINE_S)
    assert not provider.vouches_nowait(await provider.describe(ID))
    assert not provider.vouches_nowait(Machine(MachineId("acme.other"), MachineState.RUNNING, HERE))


async def test_it_is_neither_started_nor_stopped() -> None:
    provider = RegisteredProvider(OFFLINE_S)
    provider.heard(ID, HERE, 1, proven=False)
    with pytest.raises(ProviderPermanent):
        await provider.start(ID)
    with pytest.raises(ProviderPermanent):
        await provider.stop(ID, SleepMode.STOP)
    with pytest.raises(ProviderPermanent):
        await provider.launch(ID, "token")
    with pytest.raises(ProviderPermanent):
        await provider.terminate(ID)


async def test_it_gives_way_to_a_machine_that_a_provider_knows() -> None:
    claims = AddressClaims()
    cloud, own, other = SatelliteKey("acme", "cloud"), SatelliteKey("beta", "own"), SatelliteKey("beta", "other")

    async def look() -> None:
        await trio.lowlevel.checkpoint()

    claims.enter(cloud, look)
    for key in (own, other):
        claims.enter(key, look, yields=True)
    claims.note(own, HERE)
    assert claims.provided_at(HERE) == frozenset()
    claims.note(cloud, HERE)
    assert claims.rivals(cloud) == frozenset(), "its clients are not kept from it"
    assert claims.rivals(own) == {cloud}
    assert claims.provided_at(HERE) == {cloud}
    claims.leave(cloud)
    assert claims.rivals(own) == frozenset()
    claims.note(other, HERE)
    assert claims.rivals(own) == {other}
    claims.leave(other)
    assert claims.rivals(own) == frozenset()
