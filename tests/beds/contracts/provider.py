"""The text of `bentpipe.daemon.providers.base` as tests, for every provider.

A test module subclasses `ProviderContract` and gives a fixture `harness`, whose provider is running and knows the
machines named in `Harness`. Waits are bounded by `DEADLINE_S`; nothing is judged by how long it took.
"""

import dataclasses
from typing import Protocol

import pytest
import trio

from bentpipe.daemon.errors import MachineNotFound, ProviderPermanent, ProviderRetryable
from bentpipe.daemon.model import Address, Machine, MachineId, MachineState, SleepMode
from bentpipe.daemon.providers.base import Provider

DEADLINE_S = 30.0


class Harness(Protocol):
    """What the suite needs of a provider's test bed."""

    provider: Provider
    good: MachineId
    """Starts, stops and hibernates."""
    slow_to_stop: MachineId
    """Like `good`, but STOPPING until the test bed lets it go."""
    unstartable: MachineId
    """Starting it is refused for good."""
    short_lived: MachineId
    """Is accepted by start, and stops again before it runs."""
    unknown: MachineId

    async def memory(self, address: Address) -> str:
        """Ask the machine for something that it keeps in memory only."""
        ...

    async def kill(self, machine_id: MachineId) -> None:
        """End a machine behind the provider's back."""
        ...


async def wait_state(provider: Provider, machine_id: MachineId, *states: MachineState) -> Machine:
    """Follow a machine by `wait_changed` until it is in one of `states`."""
    with trio.fail_after(DEADLINE_S):
        look = await provider.describe(machine_id)
        while look.state not in states:
            look = await provider.wait_changed(look)
    return look


async def start(provider: Provider, machine_id: MachineId) -> Machine:
    """Start a machine and follow it until it runs (or ends)."""
    await provider.start(machine_id)
    look = await wait_state(provider, machine_id, MachineState.RUNNING, MachineState.STOPPED)
    assert look.state is MachineState.RUNNING, look
    return look


def address_of(look: Machine) -> Address:
    assert look.address is not None
    return look.address


class ProviderContract:
    async def test_an_unknown_machine_is_not_found(self, harness: Harness) -> None:
        with pytest.raises(MachineNotFound):
            await harness.provider.describe(harness.unknown)
        with pytest.raises(MachineNotFound):
            await harness.provider.start(harness.unknown)
        for mode in SleepMode:
            with pytest.raises(MachineNotFound):
                await harness.provider.stop(harness.unknown, mode)

    async def test_a_machine_that_is_gone_is_terminated(self, harness: Harness) -> None:
        with trio.fail_after(DEADLINE_S):
            seen = Machine(harness.unknown, MachineState.RUNNING, Address("192.0.2.1", 1))
            assert (await harness.provider.wait_changed(seen)).state is MachineState.TERMINATED

    async def test_a_started_machine_runs_where_it_says(self, harness: Harness) -> None:
        before = await harness.provider.describe(harness.good)
        assert (before.state, before.address) == (MachineState.STOPPED, None)
        look = await start(harness.provider, harness.good)
        assert await harness.memory(address_of(look))
        assert await harness.provider.describe(harness.good) == look

    async def test_only_a_running_machine_has_an_address(self, harness: Harness) -> None:
        looks = [await harness.provider.describe(harness.good)]

        async def follow() -> None:
            while True:
                looks.append(await harness.provider.wait_changed(looks[-1]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await start(harness.provider, harness.good)
            await harness.provider.stop(harness.good, SleepMode.STOP)
            await wait_state(harness.provider, harness.good, MachineState.STOPPED)
            nursery.cancel_scope.cancel()
        assert MachineState.RUNNING in [look.state for look in looks]
        for look in looks:
            assert (look.address is not None) == (look.state is MachineState.RUNNING), look

    async def test_starting_twice_is_starting_once(self, harness: Harness) -> None:
        await harness.provider.start(harness.good)
        await harness.provider.start(harness.good)
        look = await wait_state(harness.provider, harness.good, MachineState.RUNNING)
        memory = await harness.memory(address_of(look))
        await harness.provider.start(harness.good)
        assert await harness.provider.describe(harness.good) == look
        assert await harness.memory(address_of(look)) == memory

    async def test_a_stopped_machine_forgets_and_starts_again(self, harness: Harness) -> None:
        memory = await harness.memory(address_of(await start(harness.provider, harness.good)))
        await harness.provider.stop(harness.good, SleepMode.STOP)
        await wait_state(harness.provider, harness.good, MachineState.STOPPED)
        assert await harness.memory(address_of(await start(harness.provider, harness.good))) != memory

    async def test_a_hibernated_machine_remembers(self, harness: Harness) -> None:
        memory = await harness.memory(address_of(await start(harness.provider, harness.good)))
        for _ in range(3):
            await harness.provider.stop(harness.good, SleepMode.HIBERNATE)
            await wait_state(harness.provider, harness.good, MachineState.HIBERNATED)
            assert await harness.memory(address_of(await start(harness.provider, harness.good))) == memory

    @pytest.mark.parametrize("mode", SleepMode)
    async def test_stopping_what_sleeps_does_nothing(self, harness: Harness, mode: SleepMode) -> None:
        look = await harness.provider.describe(harness.good)
        await harness.provider.stop(harness.good, mode)
        assert await harness.provider.describe(harness.good) == look
        await start(harness.provider, harness.good)
        await harness.provider.stop(harness.good, SleepMode.HIBERNATE)
        look = await wait_state(harness.provider, harness.good, MachineState.HIBERNATED)
        await harness.provider.stop(harness.good, mode)
        assert await harness.provider.describe(harness.good) == look

    async def test_a_stopping_machine_can_be_stopped_but_not_started(self, harness: Harness) -> None:
        await start(harness.provider, harness.slow_to_stop)
        await harness.provider.stop(harness.slow_to_stop, SleepMode.STOP)
        look = await harness.provider.describe(harness.slow_to_stop)
        assert look.state is MachineState.STOPPING
        with pytest.raises(ProviderRetryable):
            await harness.provider.start(harness.slow_to_stop)
        for mode in SleepMode:
            await harness.provider.stop(harness.slow_to_stop, mode)
        assert await harness.provider.describe(harness.slow_to_stop) == look
        await harness.kill(harness.slow_to_stop)
        await wait_state(harness.provider, harness.slow_to_stop, MachineState.STOPPED)

    async def test_a_machine_that_cannot_start_says_so_and_stays_stopped(self, harness: Harness) -> None:
        with pytest.raises(ProviderPermanent, match=r"\w"):
            await harness.provider.start(harness.unstartable)
        assert (await harness.provider.describe(harness.unstartable)).state is MachineState.STOPPED

    async def test_a_machine_that_stops_again_gives_its_reason(self, harness: Harness) -> None:
        await harness.provider.start(harness.short_lived)
        look = await wait_state(harness.provider, harness.short_lived, MachineState.STOPPED)
        assert look.reason

    @pytest.mark.parametrize("asleep", [False, True], ids=["running", "hibernated"])
    async def test_what_others_do_to_it_is_noticed_by_every_waiter(self, harness: Harness, asleep: bool) -> None:
        seen = await start(harness.provider, harness.good)
        if asleep:
            await harness.provider.stop(harness.good, SleepMode.HIBERNATE)
            seen = await wait_state(harness.provider, harness.good, MachineState.HIBERNATED)
        noticed = []

        async def follow() -> None:
            look = await harness.provider.wait_changed(seen)
            while look.state not in (MachineState.STOPPED, MachineState.TERMINATED):
                look = await harness.provider.wait_changed(look)
            noticed.append(look)

        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(follow)
                await harness.kill(harness.good)
        assert len(noticed) == 3
        assert all(look.reason for look in noticed)

    async def test_only_the_newest_look_at_a_running_machine_is_vouched_for(self, harness: Harness) -> None:
        asleep = await harness.provider.describe(harness.good)
        assert not harness.provider.vouches_nowait(asleep)
        await start(harness.provider, harness.good)
        look = await harness.provider.describe(harness.good)
        assert harness.provider.vouches_nowait(look)
        elsewhere = dataclasses.replace(look, address=Address("192.0.2.1", 1))
        assert not harness.provider.vouches_nowait(elsewhere)
        assert not harness.provider.vouches_nowait(dataclasses.replace(look, machine_id=harness.unknown))
        await harness.kill(harness.good)
        await wait_state(harness.provider, harness.good, MachineState.STOPPED)
        assert not harness.provider.vouches_nowait(look)

    async def test_it_states_what_its_machines_are_like(self, harness: Harness) -> None:
        traits = harness.provider.traits_of(harness.good)
        stated = dataclasses.asdict(traits)
        assert all(value >= 0 for value in stated.values()), stated
        assert traits.look_deadline_s > 0
        assert traits.hibernation_limit_s > 0
        assert harness.provider.traits_of(harness.slow_to_stop) == traits

    async def test_a_waiter_that_gives_up_harms_nobody(self, harness: Harness) -> None:
        seen = await harness.provider.describe(harness.good)
        with trio.move_on_after(0) as scope:
            await harness.provider.wait_changed(seen)
        assert scope.cancelled_caught
        await start(harness.provider, harness.good)

    async def test_wait_changed_returns_at_once_what_differs_already(self, harness: Harness) -> None:
        seen = await harness.provider.describe(harness.good)
        look = await start(harness.provider, harness.good)
        with trio.fail_after(DEADLINE_S):
            assert await harness.provider.wait_changed(seen) == look

    async def test_after_a_cancelled_call_describe_tells_the_truth(self, harness: Harness) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await harness.provider.start(harness.good)
        look = await start(harness.provider, harness.good)
        assert await harness.memory(address_of(look))
        with trio.CancelScope() as scope:
            scope.cancel()
            await harness.provider.stop(harness.good, SleepMode.HIBERNATE)
        await harness.provider.stop(harness.good, SleepMode.HIBERNATE)
        await wait_state(harness.provider, harness.good, MachineState.HIBERNATED)

    async def test_a_forced_stop_ends_a_machine_that_is_stuck(self, harness: Harness) -> None:
        await start(harness.provider, harness.slow_to_stop)
        await harness.provider.stop(harness.slow_to_stop, SleepMode.STOP)
        await wait_state(harness.provider, harness.slow_to_stop, MachineState.STOPPING)
        await harness.provider.stop(harness.slow_to_stop, SleepMode.STOP, force=True)
        await wait_state(harness.provider, harness.slow_to_stop, MachineState.STOPPED)

    async def test_a_terminated_machine_is_gone_until_it_is_launched(self, harness: Harness) -> None:
        look = await start(harness.provider, harness.good)
        await harness.provider.terminate(harness.good)
        await harness.provider.terminate(harness.good)
        with trio.fail_after(DEADLINE_S):
            while look.state is not MachineState.TERMINATED:
                look = await harness.provider.wait_changed(look)
        with pytest.raises(MachineNotFound):
            await harness.provider.start(harness.good)
        await harness.provider.launch(harness.good, "second")
        await harness.provider.launch(harness.good, "second")
        look = await wait_state(harness.provider, harness.good, MachineState.RUNNING)
        assert await harness.memory(address_of(look))
