"""What the EC2 provider does beyond the contract, over an emulator whose time stands still."""

import functools

import pytest
import trio

from beds.contracts.provider import DEADLINE_S, wait_state
from beds.machines.emulated_ec2 import ONE, ec2_section, machine, machine_id, one, running, tags_of, wait_for
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
from bentpipe.daemon.providers.ec2 import calls, client
from bentpipe.daemon.providers.ec2.errors import UNANSWERED
from bentpipe.daemon.providers.ec2.provider import Ec2Provider
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

HIBERNATE, STOP = SleepMode.HIBERNATE, SleepMode.STOP


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
        await wait_for(lambda: len(control.calls(action="DescribeInstances")) >= 5)
    assert [call.outcome for call in control.calls(action="DescribeInstanceTypes")] == ["ok", "UnauthorizedOperation"]


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
            for act, seconds, state in (
                (provider.start, 17, MachineState.RUNNING),
                (lambda one: provider.stop(one, HIBERNATE), 31, MachineState.HIBERNATED),
                (provider.terminate, 10, MachineState.TERMINATED),
            ):
                await act(ONE)
                control.clear_calls()
                await wait_for(lambda: len(control.calls(action="DescribeInstances")) >= 3)
                control.advance(seconds=seconds)
                await wait_for(functools.partial(lambda state: looks[-1] is state, state))
            nursery.cancel_scope.cancel()
    assert [look for look in looks if look is not MachineState.STOPPED] == [
        MachineState.PENDING,
        MachineState.RUNNING,
        MachineState.STOPPING,
        MachineState.HIBERNATED,
        MachineState.TERMINATED,
    ]
    assert control.starts(instance_id=instance_id) == 1


async def test_an_answer_from_before_our_call_is_passed_over(emulator: Emulator, control: Control) -> None:
    control.add_instance(tags=tags_of("acme/one"), running=True)
    async with one(emulator) as provider:
        looks = [await provider.describe(ONE)]

        async def follow() -> None:
            while True:
                looks.append(await provider.wait_changed(looks[-1]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            control.hold(action="TerminateInstances")
            async with trio.open_nursery() as terminating:
                terminating.start_soon(provider.terminate, ONE)
                await wait_for(lambda: control.held(action="TerminateInstances") == 1)
                control.hold(action="DescribeInstances", after=True)
                await wait_for(lambda: control.held(action="DescribeInstances") == 1)
                control.release(action="TerminateInstances")
            control.clear_calls()
            control.release(action="DescribeInstances")
            await wait_for(lambda: len(control.calls(action="DescribeInstances")) >= 3)
            nursery.cancel_scope.cancel()
    assert [look.state for look in looks] == [MachineState.RUNNING, MachineState.TERMINATED]


async def test_a_start_whose_caller_has_left_is_noticed(emulator: Emulator, control: Control) -> None:
    control.add_instance(tags=tags_of("acme/one"))
    section = ec2_section(emulator.url, poll=60, sweep=60)
    async with running(section, {ONE: machine("acme/one")}) as provider:
        look = await provider.describe(ONE)
        control.hold(action="StartInstances")
        async with trio.open_nursery() as starting:
            starting.start_soon(provider.start, ONE)
            await wait_for(lambda: control.held(action="StartInstances") == 1)
            starting.cancel_scope.cancel()
        control.release(action="StartInstances")
        assert (await provider.wait_changed(look)).state is MachineState.PENDING


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
async def test_a_broken_connection_is_tried_once_more(emulator: Emulator, control: Control, after: bool) -> None:
    instance_id = control.add_instance(tags=tags_of("acme/one"))
    async with one(emulator) as provider:
        control.reset(action="StartInstances", after=after)
        await provider.start(ONE)
        assert control.starts(instance_id=instance_id) == 1
        control.reset(action="DescribeInstances", times=None)
        with pytest.raises(ProviderRetryable, match="DescribeInstances"):
            await provider.describe(ONE)


async def test_an_answer_that_does_not_come_is_asked_for_once_more(
    emulator: Emulator, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "READ_TIMEOUT_S", 0.2)
    instance_id = control.add_instance(tags=tags_of("acme/one"))
    control.slow(action="StartInstances", delay_s=0.5)
    async with one(emulator) as provider:
        await provider.start(ONE)
        assert provider.call_counts["StartInstances", UNANSWERED] == 1
    assert control.starts(instance_id=instance_id) == 1


async def test_large_fleets_are_looked_at_in_pages_and_parts(
    emulator: Emulator, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "PAGE", 5)
    monkeypatch.setattr(calls, "IDS_PER_DESCRIBE", 7)
    satellites = [f"acme/n{n}" for n in range(12)]
    for each in satellites:
        control.add_instance(tags=tags_of(each))
    async with running(ec2_section(emulator.url), {machine_id(each): machine(each) for each in satellites}) as provider:
        for _ in range(2):  # by tags, then by ids
            for each in satellites:
                assert (await provider.describe(machine_id(each))).state is MachineState.STOPPED
            await wait_for(lambda: len(control.calls(action="DescribeInstances")) >= 8)
    assert {call.outcome for call in control.calls()} == {"ok"}


@pytest.mark.parametrize("body", ["<html><p>Please log in</html>", "<html/>", ""])
async def test_who_answers_is_not_always_ec2(emulator: Emulator, control: Control, body: str) -> None:
    control.add_instance(tags=tags_of("acme/one"))
    control.foreign(action="*", body=body, times=None)
    async with one(emulator) as provider:
        with pytest.raises(ProviderRetryable, match="Unintelligible"):
            await provider.describe(ONE)
        control.clear_faults()
        await provider.describe(ONE)
        for action in ("StartInstances", "DescribeInstances"):
            control.foreign(action=action, body=body)
        with pytest.raises(ProviderRetryable, match="Unintelligible"):
            await provider.start(ONE)
        await provider.start(ONE)


async def test_an_endpoint_that_is_none(emulator: Emulator) -> None:
    async with running(ec2_section("http://-/"), {ONE: machine("acme/one")}) as provider:
        with pytest.raises(ProviderPermanent, match="endpoint"):
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


async def test_an_instance_is_vouched_for_until_its_look_is_old_or_another_has_its_host(
    emulator: Emulator, control: Control
) -> None:
    """EC2 gives an instance a host of its own: another satellite there is wrong, though by another port."""
    ids = [control.add_instance(tags=tags_of(f"acme/{each}")) for each in ("one", "two")]
    machines = {ONE: machine("acme/one"), machine_id("acme/two"): machine("acme/two", port=9000)}
    section = ec2_section(emulator.url, address_age=2, sweep=60)
    async with running(section, machines) as provider:
        looks = {}
        for each, instance_id in zip(machines, ids, strict=True):
            control.script(instance_id=instance_id, address="10.9.9.9")
            await provider.start(each)
            control.advance(seconds=60)
            looks[each] = await wait_state(provider, each, MachineState.RUNNING)
        for look in looks.values():
            assert not provider.vouches_nowait(await provider.describe(look.machine_id))
        control.others_terminate(instance_id=ids[1])
        assert not provider.vouches_nowait(looks[ONE])  # which has the other looked at again
        await wait_state(provider, machine_id("acme/two"), MachineState.TERMINATED)
        await provider.describe(ONE)
        assert provider.vouches_nowait(looks[ONE])
        # It is looked at ahead for as long as somebody asks; while EC2 does not answer it grows old.
        with trio.fail_after(DEADLINE_S):
            for _ in range(30):
                await trio.sleep(0.1)
                assert provider.vouches_nowait(looks[ONE])
        control.fail(action="DescribeInstances", code="InternalError", status=500, times=None)
        await wait_for(lambda: not provider.vouches_nowait(looks[ONE]))
        control.clear_faults()
        await provider.describe(ONE)
        assert provider.vouches_nowait(looks[ONE])
