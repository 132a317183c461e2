"""Herds: a whole fleet at once, with AWS's own token buckets enforced. Calls are counted, nothing is timed."""

import pytest
import trio

from beds.contracts.provider import DEADLINE_S, wait_state
from beds.machines.emulated_ec2 import ec2_section, machine, machine_id, running, tags_of
from bentpipe.config.rates import Ec2RatesSection
from bentpipe.daemon.model import MachineState, SleepMode
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

FLEET = 300
WAITERS = 1_000
SPEED = 20.0
POLL_S = 0.3
OUR_RATES = Ec2RatesSection().model_dump()


@pytest.mark.parametrize("by_id", [False, True])
async def test_a_thousand_waiters_for_three_hundred_machines_stay_under_the_limits(by_id: bool) -> None:
    satellites = [f"acme/n{n}" for n in range(FLEET)]
    with Emulator(ScaledClock(SPEED), limited=True) as emulator:
        ids = {each: emulator.control.add_instance(tags=tags_of(each)) for each in satellites}
        machines = {
            machine_id(each): machine(each, **({"instance_id": ids[each]} if by_id else {})) for each in satellites
        }
        async with running(ec2_section(emulator.url, poll=POLL_S, sweep=60, rates=OUR_RATES), machines) as provider:
            began = trio.current_time()
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
            lasted_s = trio.current_time() - began
        outcomes = {(call.action, call.outcome) for call in emulator.control.calls()}
        counts = {
            action: len(emulator.control.calls(action=action))
            for action in ("DescribeInstances", "StartInstances", "StopInstances")
        }
        assert {outcome for _, outcome in outcomes} == {"ok"}, outcomes
        assert {emulator.control.starts(instance_id=each) for each in ids.values()} == {1}
        # A hundred instances a call, and more calls only for requests that come while one is under way: as long as it lasts,
        # our own rates bound them, and two looks a poll are all that 300 machines need.
        assert counts["StartInstances"] <= OUR_RATES["start"]["burst"] + OUR_RATES["start"]["per_s"] * lasted_s + 1
        assert counts["StopInstances"] <= FLEET / 10
        assert counts["DescribeInstances"] <= 2 * (lasted_s / POLL_S + 16), (counts, lasted_s)


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
