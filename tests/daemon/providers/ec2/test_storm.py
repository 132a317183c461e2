"""Herds: a whole fleet at once, with AWS's own token buckets enforced. Calls are counted, nothing is timed."""

import pytest
import trio
from ec2_emulator.clock import ScaledClock
from ec2_emulator.server import Emulator
from emulated_ec2 import ec2_section, machine, machine_id, running, tags_of
from provider_contract import DEADLINE_S, wait_state

from bentpipe.config.model import Ec2RatesSection
from bentpipe.daemon.model import MachineState, SleepMode

FLEET = 300
WAITERS = 1_000
SPEED = 20.0
OUR_RATES = Ec2RatesSection().model_dump()


@pytest.mark.parametrize("by_id", [False, True])
async def test_a_thousand_waiters_for_three_hundred_machines_stay_under_the_limits(by_id: bool) -> None:
    satellites = [f"acme/n{n}" for n in range(FLEET)]
    with Emulator(ScaledClock(SPEED), limited=True) as emulator:
        ids = {each: emulator.control.add_instance(tags=tags_of(each)) for each in satellites}
        machines = {
            machine_id(each): machine(each, **({"instance_id": ids[each]} if by_id else {})) for each in satellites
        }
        async with running(ec2_section(emulator.url, poll=0.3, sweep=60, rates=OUR_RATES), machines) as provider:
            with trio.fail_after(2 * DEADLINE_S):
                async with trio.open_nursery() as nursery:

                    async def wake(each: str) -> None:
                        await provider.start(machine_id(each))
                        await wait_state(provider, machine_id(each), MachineState.RUNNING)

                    for n in range(WAITERS):
                        nursery.start_soon(wake, satellites[n % FLEET])
                async with trio.open_nursery() as nursery:
                    for each in satellites:
                        nursery.start_soon(provider.stop, machine_id(each), SleepMode.HIBERNATE)
        outcomes = {(call.action, call.outcome) for call in emulator.control.calls()}
        counts = {
            action: len(emulator.control.calls(action=action))
            for action in ("DescribeInstances", "StartInstances", "StopInstances")
        }
        assert {outcome for _, outcome in outcomes} == {"ok"}, outcomes
        assert {emulator.control.starts(instance_id=each) for each in ids.values()} == {1}
        # A hundred instances a call, and a few more for who comes while the first is under way.
        assert counts["StartInstances"] <= 2 * FLEET / 100
        assert counts["StopInstances"] <= 2 * FLEET / 100
        assert counts["DescribeInstances"] <= 40, counts


async def test_three_hundred_in_transition_are_looked_at_in_two_calls() -> None:
    satellites = [f"acme/n{n}" for n in range(FLEET)]
    with Emulator(ScaledClock(1)) as emulator:
        for each in satellites:
            emulator.control.add_instance(tags=tags_of(each))
        machines = {machine_id(each): machine(each) for each in satellites}
        async with running(ec2_section(emulator.url, poll=60, sweep=60), machines) as provider:
            async with trio.open_nursery() as nursery:
                for each in machines:
                    nursery.start_soon(provider.describe, each)
            assert len(emulator.control.calls(action="DescribeInstances")) == 2
