"""Launching and terminating instances, over an emulator whose time stands still."""

import pytest
import trio

from beds.contracts.provider import wait_state
from beds.machines.emulated_ec2 import FLEET, ONE, TEMPLATE, ec2_section, machine, one, running, tags_of, wait_for
from bentpipe.daemon.errors import (
    LaunchTokenSpent,
    MachineNotFound,
    ProviderCapacity,
    ProviderPermanent,
    ProviderPermission,
    ProviderRetryable,
)
from bentpipe.daemon.model import MachineId, MachineState
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator


async def test_a_launch(emulator: Emulator, control: Control) -> None:
    control.add_template(name=TEMPLATE)
    control.set_timing(name="unseen_s", seconds=30)
    async with one(emulator, launch_template=TEMPLATE) as provider:
        with pytest.raises(MachineNotFound):
            await provider.describe(ONE)
        await provider.launch(ONE, "token-1")
        look = await provider.describe(ONE)
        assert look.state is MachineState.PENDING
        control.clear_calls()
        await wait_for(lambda: len(control.calls(action="DescribeInstances")) >= 3)
        assert await provider.describe(ONE) == look  # though EC2 does not know the id yet
        with pytest.raises(ProviderRetryable, match="NotFound"):
            await provider.start(ONE)
        with pytest.raises(ProviderRetryable, match="NotFound"):
            await provider.terminate(ONE)
        assert await provider.describe(ONE) == look
        control.advance(seconds=31)
        await wait_state(provider, ONE, MachineState.RUNNING)
        await provider.launch(ONE, "token-2")
    ((instance_id, instance),) = emulator.cloud.instances.items()
    assert instance.tags == instance.volume_tags == tags_of("acme/one")
    assert (instance.hibernation, instance.encrypted, instance.http_tokens) == (True, True, "required")
    assert control.starts(instance_id=instance_id) == 0


async def test_one_token_is_one_machine_even_if_the_answer_is_lost(emulator: Emulator, control: Control) -> None:
    control.add_template(name=TEMPLATE)
    control.reset(action="RunInstances", after=True)
    async with one(emulator, launch_template=TEMPLATE) as provider:
        await provider.launch(ONE, "token-1")
    assert len(emulator.cloud.instances) == 1
    assert [call.outcome for call in control.calls(action="RunInstances")] == ["reset", "ok"]


async def test_a_token_that_was_used_with_another_configuration(emulator: Emulator, control: Control) -> None:
    control.add_template(name=TEMPLATE)
    control.set_timing(name="unseen_s", seconds=30)
    async with one(emulator, launch_template=TEMPLATE) as provider:
        await provider.launch(ONE, "token-1")
    other = {"launch_template": TEMPLATE, "instance_type": "c7g.xlarge"}
    async with one(emulator, **other) as provider:
        with pytest.raises(ProviderPermanent, match="IdempotentParameterMismatch"):
            await provider.launch(ONE, "token-1")
    # It becomes visible after the look by tags, and before the launch.
    control.hold(action="RunInstances")
    async with one(emulator, **other) as provider, trio.open_nursery() as nursery:
        nursery.start_soon(provider.launch, ONE, "token-1")
        await wait_for(lambda: control.held(action="RunInstances") == 1)
        control.advance(seconds=31)
        control.release(action="RunInstances")
    async with one(emulator, **other) as provider:
        assert (await provider.describe(ONE)).state is MachineState.RUNNING
    assert len(emulator.cloud.instances) == 1


async def test_a_token_of_another_launch_of_which_nothing_is_left_is_spent(
    emulator: Emulator, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at once, since what it has made may only not be visible yet; and each token is judged by itself."""
    monkeypatch.setattr("bentpipe.daemon.providers.ec2.provider.UNSEEN_GRACE_S", 0.5)
    control.add_template(name=TEMPLATE)
    control.set_timing(name="unseen_s", seconds=100_000)
    async with one(emulator, launch_template=TEMPLATE) as provider:
        await provider.launch(ONE, "token-1")
        await provider.launch(ONE, "token-1")
    async with one(emulator, launch_template=TEMPLATE, instance_type="c7g.xlarge") as provider:
        for _ in range(2):
            with pytest.raises(ProviderPermanent, match="IdempotentParameterMismatch") as early:
                await provider.launch(ONE, "token-1")
            assert not isinstance(early.value, LaunchTokenSpent)
        await trio.sleep(0.6)
        with pytest.raises(LaunchTokenSpent, match="nothing is left"):
            await provider.launch(ONE, "token-1")
        await provider.launch(ONE, "token-2")
    assert len(emulator.cloud.instances) == 2


@pytest.mark.parametrize("other_type", [False, True])
@pytest.mark.parametrize(
    "tags", [{}, tags_of("acme/two"), tags_of("acme/one", fleet="staging"), {"bentpipe:fleet": FLEET}]
)
async def test_what_a_launch_gives_is_taken_only_with_our_tags(
    emulator: Emulator, control: Control, tags: dict[str, str], other_type: bool
) -> None:
    """By RunInstances' answer, and after IdempotentParameterMismatch."""
    control.add_template(name=TEMPLATE)
    async with one(emulator, launch_template=TEMPLATE) as provider:
        await provider.launch(ONE, "token-1")
    (instance_id,) = emulator.cloud.instances
    control.tag(instance_id=instance_id, tags={**dict.fromkeys(tags_of("acme/one")), **tags})
    section = {"launch_template": TEMPLATE, **({"instance_type": "c7g.xlarge"} if other_type else {})}
    async with one(emulator, **section) as provider:
        with pytest.raises(ProviderPermission, match=instance_id) as refused:
            await provider.launch(ONE, "token-1")
        assert all(value in str(refused.value) for value in tags.values())
        assert not any(value in refused.value.peer_hint for value in tags.values())
        with pytest.raises(MachineNotFound):
            await provider.describe(ONE)
        await provider.launch(ONE, "token-2")
        assert (await provider.describe(ONE)).state is MachineState.PENDING
    assert len(emulator.cloud.instances) == 2


async def test_two_fleets_and_two_satellites_have_launches_of_their_own(emulator: Emulator, control: Control) -> None:
    """Whatever token they are given."""
    control.add_template(name=TEMPLATE)
    machines = {each: machine(f"acme/{each}", launch_template=TEMPLATE) for each in map(MachineId, ("one", "two"))}
    for fleet in ("prod", "staging"):
        async with running(ec2_section(emulator.url, fleet=fleet), machines) as provider:
            for each in machines:
                await provider.launch(each, "token-1")
    found = [tuple(each.tags.values()) for each in emulator.cloud.instances.values()]
    assert sorted(found) == [(fleet, f"acme/{each}") for fleet in ("prod", "staging") for each in machines]


async def test_a_type_without_hibernation_is_launched_without(emulator: Emulator, control: Control) -> None:
    template_id = control.add_template(name=TEMPLATE, instance_type="m7g.metal")
    async with one(emulator, launch_template=template_id) as provider:
        await provider.launch(ONE, "token-1")
        assert not (await provider.describe(ONE)).can_hibernate
    async with one(emulator, launch_template=template_id, instance_type="m7g.large", hibernation=False) as provider:
        await provider.terminate(ONE)
        await provider.launch(ONE, "token-2")
    first, second = emulator.cloud.instances.values()
    assert (first.instance_type, first.hibernation) == ("m7g.metal", False)
    assert (second.instance_type, second.hibernation) == ("m7g.large", False)


async def test_launches_that_fail(emulator: Emulator, control: Control) -> None:
    async with one(emulator) as provider:
        with pytest.raises(ProviderPermanent, match="launch_template"):
            await provider.launch(ONE, "token-1")
    async with one(emulator, launch_template=TEMPLATE) as provider:
        with pytest.raises(ProviderPermanent, match="InvalidLaunchTemplateName"):
            await provider.launch(ONE, "token-1")
        control.add_template(name=TEMPLATE)
        control.fail(action="RunInstances", code="InsufficientInstanceCapacity", status=500)
        with pytest.raises(ProviderCapacity):
            await provider.launch(ONE, "token-1")
        await provider.launch(ONE, "token-1")
        await provider.terminate(ONE)
        with pytest.raises(ProviderPermanent, match=r"use another|IdempotentInstanceTerminated"):
            await provider.launch(ONE, "token-1")


@pytest.mark.parametrize("tags", [{}, tags_of("acme/two"), tags_of("acme/one", fleet="other")])
async def test_what_is_not_marked_as_ours_is_never_terminated(
    emulator: Emulator, control: Control, tags: dict[str, str]
) -> None:
    instance_id = control.add_instance(tags=tags, running=True)
    async with one(emulator, instance_id=instance_id) as provider:
        with pytest.raises(ProviderPermission, match=instance_id):
            await provider.terminate(ONE)
    assert control.state(instance_id=instance_id) == "running"
    assert control.calls(action="TerminateInstances") == []
