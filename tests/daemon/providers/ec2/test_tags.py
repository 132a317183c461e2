"""Whose an instance is, by its tags: looked at with every look, for what is given by id, found or launched."""

import logging

import pytest

from beds.contracts.provider import wait_state
from beds.machines.emulated_ec2 import FLEET, ONE, TEMPLATE, one, tags_of, wait_for
from bentpipe.daemon.errors import MachineNotFound, ProviderPermission
from bentpipe.daemon.model import Fault, MachineState, SleepMode
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

OTHERS = [tags_of("acme/two"), tags_of("acme/one", fleet="staging"), {"bentpipe:fleet": "staging"}]


@pytest.mark.parametrize("tags", [{}, tags_of("acme/one"), {"bentpipe:fleet": FLEET}])
async def test_a_given_instance_may_lack_tags(emulator: Emulator, control: Control, tags: dict[str, str]) -> None:
    instance_id = control.add_instance(tags=tags, running=True)
    async with one(emulator, instance_id=instance_id) as provider:
        assert (await provider.describe(ONE)).state is MachineState.RUNNING


@pytest.mark.parametrize("tags", OTHERS)
async def test_a_given_instance_of_anothers_is_refused(
    emulator: Emulator, control: Control, tags: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    instance_id = control.add_instance(tags=tags, running=True)
    async with one(emulator, instance_id=instance_id) as provider:
        look = await provider.describe(ONE)
        assert (look.state, look.fault, look.address) == (MachineState.TERMINATED, Fault.FOREIGN, None)
        assert instance_id in look.reason
        assert not any(value in look.reason for value in tags.values())  # clients read it
        with pytest.raises(MachineNotFound):
            await provider.start(ONE)
        for mode in SleepMode:
            with pytest.raises(MachineNotFound):
                await provider.stop(ONE, mode)
        with pytest.raises(ProviderPermission):
            await provider.terminate(ONE)
        control.tag(instance_id=instance_id, tags=tags_of("acme/one"))
        await wait_state(provider, ONE, MachineState.RUNNING)
    assert control.state(instance_id=instance_id) == "running"
    (said,) = [each for each in caplog.records if each.getMessage() == "an instance is not used"]
    reason = str(said.__dict__["fields"]["reason"])
    assert said.levelno == logging.ERROR
    assert all(f"{key}={value}" in reason for key, value in tags.items())
    assert "instance_id" in reason  # what to do


@pytest.mark.parametrize("given", [False, True])
async def test_tags_that_change_under_us(emulator: Emulator, control: Control, given: bool) -> None:
    instance_id = control.add_instance(tags=tags_of("acme/one"), running=True)
    section = {"instance_id": instance_id} if given else {"launch_template": TEMPLATE}
    async with one(emulator, **section) as provider:
        look = await provider.describe(ONE)
        assert look.state is MachineState.RUNNING
        control.tag(instance_id=instance_id, tags={"bentpipe:fleet": "staging"})
        # Before any sweep has seen it: a machine that is another's by now is not put to sleep.
        with pytest.raises(MachineNotFound):
            await provider.stop(ONE, SleepMode.STOP)
        look = await wait_state(provider, ONE, MachineState.TERMINATED)
        assert look.fault is Fault.FOREIGN
        control.tag(instance_id=instance_id, tags={"bentpipe:fleet": FLEET})
        await wait_state(provider, ONE, MachineState.RUNNING)
    assert control.calls(action="StopInstances") == []


async def test_tags_that_are_taken_away(emulator: Emulator, control: Control) -> None:
    """What was found by its tags is ours no more without them; what is given by its id stays."""
    instance_id = control.add_instance(tags=tags_of("acme/one"), running=True)
    async with one(emulator) as found, one(emulator, instance_id=instance_id) as given:
        for provider in (found, given):
            assert (await provider.describe(ONE)).state is MachineState.RUNNING
        control.tag(instance_id=instance_id, tags=dict.fromkeys(tags_of("acme/one")))
        assert (await found.describe(ONE)).state is MachineState.TERMINATED
        assert (await given.describe(ONE)).state is MachineState.RUNNING


async def test_of_several_with_the_same_tags_one_is_used_and_all_are_told(
    emulator: Emulator, control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    ids = sorted(control.add_instance(tags=tags_of("acme/one"), running=number == 1) for number in range(3))
    (awake,) = (each for each in ids if control.state(instance_id=each) == "running")
    async with one(emulator) as provider:
        await wait_state(provider, ONE, MachineState.RUNNING)
        await provider.stop(ONE, SleepMode.STOP)
        assert [call.instance_ids for call in control.calls(action="StopInstances")] == [(awake,)]
        control.advance(seconds=60)
        await wait_state(provider, ONE, MachineState.STOPPED)
        await provider.start(ONE)  # the one that was taken, though others may have a lesser id
        assert [call.instance_ids for call in control.calls(action="StartInstances")] == [(awake,)]
        added = control.add_instance(tags=tags_of("acme/one"))  # and one that comes later is told of
        others = sorted({*ids, added} - {awake})
        await wait_for(lambda: " ".join(others) in [str(each["unused"]) for each in said(caplog)])
        assert {each["used"] for each in said(caplog)} == {awake}
        assert len(said(caplog)) == 2
    caplog.clear()
    control.others_terminate(instance_id=awake)
    async with one(emulator) as provider:
        await provider.describe(ONE)
        assert [each["used"] for each in said(caplog)] == [min(others)]


def said(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [
        each.__dict__["fields"]
        for each in caplog.records
        if each.getMessage() == "several instances have one satellite's tags"
    ]
