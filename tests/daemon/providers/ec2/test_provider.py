"""What the EC2 provider does beyond the contract, over an emulator whose time stands still."""

import contextlib
from collections.abc import AsyncIterator

import pytest
import trio
from ec2_emulator.control import Control
from ec2_emulator.server import Emulator
from emulated_ec2 import TEMPLATE, ec2_section, machine, machine_id, running, tags_of, wait_for
from provider_contract import DEADLINE_S, wait_state

from bentpipe.daemon.errors import (
    MachineNotFound,
    ProviderCapacity,
    ProviderPermanent,
    ProviderPermission,
    ProviderRetryable,
    ProviderThrottled,
    SleepModeRefused,
    SleepTooEarly,
)
from bentpipe.daemon.model import Fault, Machine, MachineState, SleepMode
from bentpipe.daemon.providers.ec2 import poller
from bentpipe.daemon.providers.ec2.provider import Ec2Provider

ONE = machine_id("acme/one")
HIBERNATE, STOP = SleepMode.HIBERNATE, SleepMode.STOP


@contextlib.asynccontextmanager
async def one(emulator: Emulator, **section: object) -> AsyncIterator[Ec2Provider]:
    """A provider of the one machine acme/one."""
    async with running(ec2_section(emulator.url), {ONE: machine("acme/one", **section)}) as provider:
        yield provider


async def awake(provider: Ec2Provider, control: Control, instance_id: str) -> Machine:
    await provider.start(ONE)
    control.advance_to_next()
    return await wait_state(provider, ONE, MachineState.RUNNING)


# Which instance it is


async def test_an_instance_is_found_by_its_id(emulator: Emulator, control: Control) -> None:
    instance_id = control.add_instance()
    async with one(emulator, instance_id=instance_id) as provider:
        await awake(provider, control, instance_id)
    assert control.state(instance_id=instance_id) == "running"


@pytest.mark.parametrize("section", [{"instance_id": "i-0123456789abcdef0"}, {}])
async def test_an_instance_that_does_not_exist(emulator: Emulator, section: dict[str, object]) -> None:
    emulator.control.add_instance(tags=tags_of("acme/two"))
    emulator.control.add_instance(tags=tags_of("acme/one", fleet="other"))
    async with one(emulator, **section) as provider:
        with pytest.raises(MachineNotFound, match=r"i-0123|acme/one"):
            await provider.describe(ONE)
        with pytest.raises(MachineNotFound):
            await provider.start(ONE)


async def test_of_several_with_the_same_tags_the_one_awake_is_taken(emulator: Emulator, control: Control) -> None:
    control.add_instance(tags=tags_of("acme/one"))
    instance_id = control.add_instance(tags=tags_of("acme/one"), running=True)
    control.add_instance(tags=tags_of("acme/one"))
    async with one(emulator) as provider:
        look = await provider.describe(ONE)
        assert look.address is not None
        assert look.address.host == control.instance(instance_id).private_ip


async def test_another_daemon_finds_the_same(emulator: Emulator, control: Control) -> None:
    instance_id = control.add_instance(tags=tags_of("acme/one"))
    async with one(emulator) as provider:
        look = await awake(provider, control, instance_id)
    async with one(emulator) as provider:
        assert await provider.describe(ONE) == look
        assert (await provider.wait_changed(Machine(ONE, MachineState.STOPPED))) == look


async def test_what_replaces_a_terminated_instance_is_found(emulator: Emulator, control: Control) -> None:
    first = control.add_instance(tags=tags_of("acme/one"), running=True)
    async with one(emulator) as provider:
        look = await provider.describe(ONE)
        control.others_terminate(instance_id=first)
        look = await provider.wait_changed(look)
        assert look.state is MachineState.TERMINATED
        control.add_instance(tags=tags_of("acme/one"))
        assert (await provider.wait_changed(look)).state is MachineState.STOPPED
        await provider.start(ONE)


async def test_an_instance_that_ec2_has_forgotten_is_terminated(emulator: Emulator, control: Control) -> None:
    instance_id = control.add_instance()
    async with one(emulator, instance_id=instance_id) as provider:
        look = await provider.describe(ONE)
        control.forget(instance_id=instance_id)
        look = await provider.wait_changed(look)
        assert look.state is MachineState.TERMINATED
        assert instance_id in look.reason


# How it sleeps and wakes


async def test_how_it_sleeps_is_told(emulator: Emulator, control: Control) -> None:
    instance_id = control.add_instance(tags=tags_of("acme/one"), running=True)
    async with one(emulator) as provider:
        await provider.stop(ONE, HIBERNATE)
        stopped_at = int(emulator.cloud.clock.now())
        control.advance_to_next()
        look = await wait_state(provider, ONE, MachineState.HIBERNATED)
        assert look.asleep_since == stopped_at
        await awake(provider, control, instance_id)
        control.script(instance_id=instance_id, on_hibernate="fall-back")
        await provider.stop(ONE, HIBERNATE)
        control.advance_to_next()
        look = await wait_state(provider, ONE, MachineState.STOPPED, MachineState.HIBERNATED)
        assert (look.state, look.fault) == (MachineState.STOPPED, None)
        assert "UserInitiatedShutdown" in look.reason


@pytest.mark.parametrize(
    ("script", "fault", "word"),
    [("no-key", Fault.PERMISSION, "InternalError"), ("no-capacity", Fault.CAPACITY, "InsufficientInstanceCapacity")],
)
async def test_why_it_did_not_come_up_is_told(
    emulator: Emulator, control: Control, script: str, fault: Fault, word: str
) -> None:
    instance_id = control.add_instance(tags=tags_of("acme/one"))
    control.script(instance_id=instance_id, on_start=script)
    async with one(emulator) as provider:
        await provider.start(ONE)
        look = await wait_state(provider, ONE, MachineState.PENDING)
        control.advance_to_next()
        look = await provider.wait_changed(look)
        assert (look.state, look.fault) == (MachineState.STOPPED, fault)
        assert word in look.reason


async def test_no_capacity_at_once(emulator: Emulator, control: Control) -> None:
    control.add_instance(tags=tags_of("acme/one"))
    control.fail(action="StartInstances", code="InsufficientInstanceCapacity", status=500)
    async with one(emulator) as provider:
        with pytest.raises(ProviderCapacity, match="InsufficientInstanceCapacity"):
            await provider.start(ONE)
        await provider.start(ONE)


async def test_hibernation_that_is_refused(emulator: Emulator, control: Control) -> None:
    plain = control.add_instance(hibernation=False, running=True)
    async with one(emulator, instance_id=plain) as provider:
        assert not (await provider.describe(ONE)).can_hibernate
        with pytest.raises(SleepModeRefused, match="not configured"):
            await provider.stop(ONE, HIBERNATE)
        await provider.stop(ONE, STOP)
        await provider.stop(ONE, HIBERNATE)  # it sleeps already: nothing to do


async def test_a_type_that_cannot_hibernate(emulator: Emulator, control: Control) -> None:
    instance_id = control.add_instance(instance_type="m5n.large")
    async with one(emulator, instance_id=instance_id) as provider:
        assert not (await provider.describe(ONE)).can_hibernate
    control.deny(action="DescribeInstanceTypes")
    async with one(emulator, instance_id=instance_id) as provider:
        assert (await provider.describe(ONE)).can_hibernate  # worth an attempt, if nobody says that it is not


async def test_hibernation_too_early(emulator: Emulator, control: Control) -> None:
    instance_id = control.add_instance(running=True, age_s=60)
    async with one(emulator, instance_id=instance_id) as provider:
        with pytest.raises(SleepTooEarly, match="not ready"):
            await provider.stop(ONE, HIBERNATE)
        control.advance(seconds=60)
        await provider.stop(ONE, HIBERNATE)


async def test_a_pending_machine_cannot_be_stopped_yet(emulator: Emulator, control: Control) -> None:
    control.add_instance(tags=tags_of("acme/one"))
    async with one(emulator) as provider:
        await provider.start(ONE)
        with pytest.raises(ProviderRetryable, match="IncorrectInstanceState"):
            await provider.stop(ONE, STOP)


async def test_an_address_that_has_changed(emulator: Emulator, control: Control) -> None:
    instance_id = control.add_instance(tags=tags_of("acme/one"))
    async with one(emulator) as provider:
        before = await awake(provider, control, instance_id)
        await provider.stop(ONE, STOP)
        control.advance_to_next()
        control.script(instance_id=instance_id, new_address=True)
        await wait_state(provider, ONE, MachineState.STOPPED)
        after = await awake(provider, control, instance_id)
        assert before.address != after.address


async def test_what_ec2_says_late_is_passed_over(emulator: Emulator, control: Control) -> None:
    control.set_timing(name="outdated_s", seconds=5)
    instance_id = control.add_instance(tags=tags_of("acme/one"))
    async with one(emulator) as provider:
        await provider.describe(ONE)
        looks: list[MachineState] = []

        async def follow() -> None:
            look = Machine(ONE, MachineState.STOPPED)
            while True:
                look = await provider.wait_changed(look)
                looks.append(look.state)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for act, seconds in ((provider.start, 17), (lambda one: provider.stop(one, HIBERNATE), 31)):
                control.clear_calls()
                await act(ONE)
                await wait_for(lambda: len(control.calls(action="DescribeInstances")) >= 3)
                control.advance(seconds=seconds)
                state = MachineState.RUNNING if seconds == 17 else MachineState.HIBERNATED
                await wait_for(lambda state=state: state in looks)
            nursery.cancel_scope.cancel()
    first, *rest = [look for look in looks if look is not MachineState.STOPPED]
    states = [MachineState.PENDING, MachineState.RUNNING, MachineState.STOPPING, MachineState.HIBERNATED]
    assert [first, *rest] == states
    assert control.starts(instance_id=instance_id) == 1


# Launch and termination


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
    control.advance(seconds=31)
    (instance_id,) = emulator.cloud.instances
    control.instance(instance_id).tags.clear()
    async with one(emulator, **other) as provider:
        await provider.launch(ONE, "token-1")
        assert (await provider.describe(ONE)).state is MachineState.RUNNING


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
        with pytest.raises(ProviderPermanent, match="use another"):
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


# Trouble with the API


async def test_a_refused_call_is_not_repeated_at_once(emulator: Emulator, control: Control) -> None:
    control.add_instance(tags=tags_of("acme/one"))
    control.fail(action="StartInstances", code="RequestLimitExceeded", status=503)
    async with one(emulator) as provider:
        with pytest.raises(ProviderThrottled):
            await provider.start(ONE)
        assert len(control.calls(action="StartInstances")) == 1
        await provider.start(ONE)
        assert provider.call_counts["StartInstances", "RequestLimitExceeded"] == 1
        assert provider.call_counts["StartInstances", "ok"] == 1


@pytest.mark.parametrize("after", [False, True])
async def test_a_broken_connection_is_tried_once_more(
    emulator: Emulator, control: Control, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "FRESH_S", 0.0)
    instance_id = control.add_instance(tags=tags_of("acme/one"))
    async with one(emulator) as provider:
        control.reset(action="StartInstances", after=after)
        await provider.start(ONE)
        assert control.starts(instance_id=instance_id) == 1
        control.reset(action="DescribeInstances", times=None)
        with pytest.raises(ProviderRetryable, match="DescribeInstances"):
            await provider.describe(ONE)


async def test_waiters_outlast_an_outage(emulator: Emulator, control: Control) -> None:
    instance_id = control.add_instance(tags=tags_of("acme/one"))
    async with one(emulator) as provider:
        look = await provider.describe(ONE)
        control.clear_calls()
        control.fail(action="DescribeInstances", code="Unavailable", status=503, times=3)
        control.deny(action="DescribeInstances")
        control.others_start(instance_id=instance_id)
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:

                async def lift() -> None:
                    await wait_for(lambda: len(control.calls()) >= 5)
                    control.clear_faults()

                nursery.start_soon(lift)
                assert (await provider.wait_changed(look)).state is MachineState.PENDING


async def test_what_we_may_not_do(emulator: Emulator, control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    control.add_instance(tags=tags_of("acme/one"))
    control.deny(action="StartInstances")
    async with one(emulator) as provider:
        with pytest.raises(ProviderPermission, match="UnauthorizedOperation"):
            await provider.start(ONE)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    async with one(emulator) as provider:
        with pytest.raises(ProviderPermission, match="NoCredentials"):
            await provider.describe(ONE)


async def test_without_a_region_every_call_says_so(emulator: Emulator) -> None:
    async with running(ec2_section(emulator.url, region=None), {ONE: machine("acme/one")}) as provider:
        with pytest.raises(ProviderPermanent, match="region"):
            await provider.describe(ONE)


async def test_nothing_is_done_before_it_runs(emulator: Emulator) -> None:
    provider = Ec2Provider(ec2_section(emulator.url), {ONE: machine("acme/one")})
    for call in (provider.describe, provider.start, provider.terminate):
        with pytest.raises(ProviderRetryable, match="not running"):
            await call(ONE)
    await provider.aclose()
