"""Launches and starts where EC2 has no capacity: every set of empty pools, lost answers, and one machine always."""

import dataclasses
import itertools

import pytest

from beds.machines.emulated_ec2 import ONE, TEMPLATE, ec2_section, machine, one, running, tags_of, wait_for
from bentpipe.daemon.errors import ProviderCapacity, ProviderError, ProviderRetryable
from bentpipe.daemon.model import Fault, Machine, MachineState
from bentpipe.daemon.providers.attempts import UnsharedRecord, recorded_by
from bentpipe.daemon.providers.ec2.provider import Ec2Provider
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

ZONE_A, ZONE_B = "eu-central-1a", "eu-central-1b"
WAYS = {
    "m7g.large": (dict[str, object](), {"instance_type": "m7g.large", "spot": False}),
    "c7g.xlarge": ({"instance_type": "c7g.xlarge", "zone": ZONE_A}, {"instance_type": "c7g.xlarge", "spot": False}),
    "spot": ({"spot": True}, {"instance_type": "m7g.large", "spot": True}),
    "b": ({"instance_type": "m7i.large", "zone": ZONE_B}, {"instance_type": "m7i.large", "zone": ZONE_B}),
}
"""By name: the alternative's section, and its pools."""
SUBSETS = [set(each) for count in range(len(WAYS) + 1) for each in itertools.combinations(WAYS, count)]


def section_of(*names: str, **more: object) -> dict[str, object]:
    return {"launch_template": TEMPLATE, "alternative": [WAYS[name][0] for name in names], **more}


def empty(control: Control, names: set[str], **how: object) -> None:
    for name in names:
        control.exhaust(**WAYS[name][1], **how)  # type: ignore[arg-type]


def made(emulator: Emulator) -> list[str]:
    """The way in which each living instance was launched."""
    return [
        "spot" if each.spot_request else "b" if each.zone == ZONE_B else each.instance_type
        for each in emulator.cloud.instances.values()
        if each.state.label not in ("shutting-down", "terminated")
    ]


@pytest.fixture(autouse=True)
def _cloud(control: Control) -> None:
    control.add_template(name=TEMPLATE)
    control.add_subnet(zone=ZONE_B)


@pytest.mark.parametrize(
    "order",
    [
        each if each == (2, 0, 3, 1) else pytest.param(each, marks=pytest.mark.slow)
        for each in itertools.permutations(range(len(WAYS)))
    ],
    ids=str,
)
async def test_the_first_that_has_capacity_is_launched_in_every_order(
    emulator: Emulator, control: Control, order: tuple[int, ...]
) -> None:
    names = [list(WAYS)[number] for number in order]
    for number, lacking in enumerate(SUBSETS):
        empty(control, lacking)
        async with one(emulator, **section_of(*names)) as provider:
            left = [name for name in names if name not in lacking]
            control.clear_calls()
            if left:
                await provider.launch(ONE, f"token-{number}")
                assert made(emulator) == left[:1], lacking
                await provider.terminate(ONE)
            else:
                with pytest.raises(ProviderCapacity) as refused:
                    await provider.launch(ONE, f"token-{number}")
                assert all(
                    kind in refused.value.peer_hint
                    for kind in ("the template's type Spot (Insuff", "c7g.xlarge in eu-")
                )
            calls = control.calls(action="RunInstances")
            assert len(calls) == (names.index(left[0]) + 1 if left else len(names)), "at once, and no more than needed"
            assert len({call.client_token for call in calls}) == len(calls)
        control.refill()
        assert made(emulator) == [], "and no Spot request launches another one"


async def settled(provider: Ec2Provider, control: Control, look: Machine) -> Machine:
    """Follow a machine until it runs or has come to nothing."""
    while look.state is MachineState.PENDING:
        control.advance_to_next()
        look = await provider.wait_changed(look)
    return look


@pytest.mark.parametrize("lacking", SUBSETS, ids=lambda each: "+".join(sorted(each)) or "none")
async def test_an_instance_that_comes_to_nothing_says_whether_another_is_left(
    emulator: Emulator, control: Control, lacking: set[str]
) -> None:
    """EC2 accepts each launch, and some end by themselves. The caller launches again with another token."""
    empty(control, lacking, later=True)
    names = list(WAYS)
    async with one(emulator, **section_of(*names)) as provider:
        for number in range(len(names)):
            await provider.launch(ONE, f"token-{number}")
            look = await settled(provider, control, await provider.describe(ONE))
            if look.state is MachineState.RUNNING:
                break
            assert (look.state, look.fault) == (MachineState.TERMINATED, Fault.CAPACITY)
            assert look.other_left == (number + 1 < len(names))
        left = [name for name in names if name not in lacking]
        assert made(emulator) == left[:1]
        assert len(emulator.cloud.instances) == (names.index(left[0]) + 1 if left else len(names))
        again = await provider.describe(ONE)
        assert again.other_left is look.other_left, "a second look at it changes nothing"


async def test_what_worked_is_tried_first_by_other_machines(emulator: Emulator, control: Control) -> None:
    section = section_of("m7g.large", "c7g.xlarge", "b")
    machines = {name: machine(f"acme/{name}", **section) for name in (ONE, type(ONE)("acme.two"))}
    machines = {each: dataclasses.replace(of, satellite=f"acme/{each[5:]}") for each, of in machines.items()}
    empty(control, {"m7g.large", "c7g.xlarge"})
    async with running(ec2_section(emulator.url), machines) as provider:
        for each in machines:
            await provider.launch(each, "token")
    assert made(emulator) == ["b", "b"]
    assert len(control.calls(action="RunInstances")) == 4


@pytest.mark.parametrize("unseen_s", [0, 100_000])
@pytest.mark.parametrize("lost", ["before", "after"])
@pytest.mark.parametrize("at", range(3))
async def test_no_other_is_tried_while_an_answer_is_missing(
    emulator: Emulator, control: Control, at: int, lost: str, unseen_s: int
) -> None:
    """One machine, whether EC2 has carried out the call without an answer or not, and whether it shows that or not."""
    names = ["m7g.large", "c7g.xlarge", "b"]
    control.set_timing(name="unseen_s", seconds=unseen_s)
    empty(control, set(names[:at]))
    record = UnsharedRecord()
    async with one(emulator, **section_of(*names)) as provider:
        with recorded_by(record):
            control.slow(action="RunInstances", delay_s=0, times=at)  # those that are refused are answered
            control.reset(action="RunInstances", times=None, after=lost == "after")
            with pytest.raises(ProviderRetryable):
                await provider.launch(ONE, "token")
            assert record.open is not None
            control.clear_faults()
            # Now everything has capacity, and another alternative would be tried first.
            control.refill()
            await provider.launch(ONE, "token")
    assert made(emulator) == [names[at]]


@pytest.mark.parametrize("refusal", ["InsufficientInstanceCapacity", "UnauthorizedOperation", "RequestLimitExceeded"])
@pytest.mark.parametrize("unseen_s", [0, 100_000])
async def test_a_refusal_after_a_lost_answer_is_not_believed_at_once(
    emulator: Emulator, control: Control, refusal: str, unseen_s: int
) -> None:
    control.set_timing(name="unseen_s", seconds=unseen_s)
    record = UnsharedRecord()
    names = ["m7g.large", "c7g.xlarge"]
    async with one(emulator, **section_of(*names)) as provider:
        with recorded_by(record):
            control.reset(action="RunInstances", after=True)
            control.fail(action="RunInstances", code=refusal, times=None)
            if unseen_s:
                for _ in range(3):
                    with pytest.raises(ProviderRetryable, match="was not answered"):
                        await provider.launch(ONE, "token")
                assert record.open is not None
                assert record.open.alternative == "the template's type"
                control.clear_faults()
                await provider.launch(ONE, "token")
            else:
                await provider.launch(ONE, "token")
            assert (await provider.describe(ONE)).state is MachineState.PENDING
    assert made(emulator) == ["m7g.large"]


async def test_the_doubt_ends_when_ec2_would_have_shown_the_instance(
    emulator: Emulator, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = UnsharedRecord()
    async with one(emulator, **section_of("m7g.large", "c7g.xlarge")) as provider:
        with recorded_by(record):
            control.reset(action="RunInstances", times=2)
            with pytest.raises(ProviderRetryable):
                await provider.launch(ONE, "token")
            empty(control, {"m7g.large"})
            with pytest.raises(ProviderRetryable, match="was not answered"):
                await provider.launch(ONE, "token")
    monkeypatch.setattr("bentpipe.daemon.providers.ec2.provider.UNSEEN_GRACE_S", 0.0)
    async with one(emulator, **section_of("m7g.large", "c7g.xlarge")) as provider:
        with recorded_by(record):
            await provider.launch(ONE, "token")
    assert made(emulator) == ["c7g.xlarge"]


@pytest.mark.parametrize("has_launched", [False, True])
async def test_an_alternative_that_the_configuration_has_no_more(
    emulator: Emulator, control: Control, has_launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its launch was not answered; then the operator has changed the list, and the daemon was started again."""
    control.set_timing(name="unseen_s", seconds=30)
    record = UnsharedRecord()
    control.reset(action="RunInstances", times=2, after=has_launched)
    async with one(emulator, **section_of("b", "c7g.xlarge")) as provider:
        with recorded_by(record), pytest.raises(ProviderRetryable):
            await provider.launch(ONE, "token")
    async with one(emulator, **section_of("m7g.large", "c7g.xlarge")) as provider:
        with recorded_by(record):
            with pytest.raises(ProviderRetryable, match="was not answered"):
                await provider.launch(ONE, "token")
            control.advance(seconds=31)
    if not has_launched:
        monkeypatch.setattr("bentpipe.daemon.providers.ec2.provider.UNSEEN_GRACE_S", 0.0)
    async with one(emulator, **section_of("m7g.large", "c7g.xlarge")) as provider:
        with recorded_by(record):
            await provider.launch(ONE, "token")
    assert made(emulator) == ["b" if has_launched else "m7g.large"]


@pytest.mark.parametrize(
    "fault", ["DescribeLaunchTemplateVersions", "DescribeImages", "DescribeInstanceTypes", "DescribeInstances"]
)
@pytest.mark.parametrize("refused", [False, True])
async def test_a_failure_before_the_launch_launches_nothing(
    emulator: Emulator, control: Control, fault: str, refused: bool
) -> None:
    record = UnsharedRecord()
    async with one(emulator, **section_of(*WAYS)) as provider:
        if refused:
            control.deny(action=fault)
        else:
            control.reset(action=fault, times=None)
        with recorded_by(record), pytest.raises(ProviderError):
            await provider.launch(ONE, "token")
        assert record.open is None
        control.clear_faults()
        await provider.launch(ONE, "token")
    assert made(emulator) == ["m7g.large"]


async def test_an_alternative_that_ec2_refuses_does_not_take_the_others_with_it(
    emulator: Emulator, control: Control
) -> None:
    ways = [{"instance_type": "m9x.large"}, {"subnet": "subnet-0123abcd"}, {"instance_type": "c7g.xlarge"}]
    async with one(emulator, launch_template=TEMPLATE, alternative=ways) as provider:
        await provider.launch(ONE, "token")
    assert made(emulator) == ["c7g.xlarge"]
    async with one(emulator, launch_template=TEMPLATE, alternative=ways[:2]) as provider:
        await provider.terminate(ONE)
        with pytest.raises(ProviderError, match="InvalidInstanceType"):
            await provider.launch(ONE, "token-2")


# -- a machine that exists ---------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(control: Control) -> str:
    return control.add_instance(tags=tags_of("acme/one"), hibernation=False)


def change_types(**more: object) -> dict[str, object]:
    return section_of("m7g.large", "c7g.xlarge", "spot", "b", change_type=True, **more)


@pytest.mark.parametrize("later", [False, True])
async def test_a_machine_whose_zone_is_empty_says_so(
    emulator: Emulator, control: Control, stopped: str, later: bool
) -> None:
    empty(control, set(WAYS), later=later)
    async with one(emulator, **section_of(*WAYS)) as provider:
        if later:
            await provider.start(ONE)
            look = await settled(provider, control, await provider.describe(ONE))
            assert (look.state, look.fault, look.other_left) == (MachineState.STOPPED, Fault.CAPACITY, False)
        else:
            with pytest.raises(ProviderCapacity) as refused:
                await provider.start(ONE)
            assert "m7g.large (InsufficientInstanceCapacity)" in refused.value.peer_hint
            assert f"in {ZONE_A}, where the satellite's disk is" in refused.value.peer_hint
    assert control.calls(action="ModifyInstanceAttribute") == []
    assert control.instance(stopped).instance_type == "m7g.large"


@pytest.mark.parametrize("later", [False, True])
async def test_a_machine_whose_zone_is_empty_gets_another_type_if_that_is_allowed(
    emulator: Emulator, control: Control, stopped: str, later: bool
) -> None:
    empty(control, {"m7g.large"}, later=later)
    async with one(emulator, **change_types()) as provider:
        await provider.start(ONE)
        look = await settled(provider, control, await provider.describe(ONE))
        if later:
            assert (look.state, look.other_left) == (MachineState.STOPPED, True)
            await provider.start(ONE)
            look = await settled(provider, control, await provider.describe(ONE))
        assert look.state is MachineState.RUNNING
    assert control.instance(stopped).instance_type == "c7g.xlarge"
    assert len(emulator.cloud.instances) == 1


async def test_if_no_type_has_capacity_all_of_them_are_named(
    emulator: Emulator, control: Control, stopped: str
) -> None:
    empty(control, set(WAYS))
    async with one(emulator, **change_types()) as provider:
        with pytest.raises(ProviderCapacity, match=r"c7g\.xlarge") as refused:
            await provider.start(ONE)
        assert "m7g.large (" in refused.value.peer_hint
        assert "c7g.xlarge (" in refused.value.peer_hint
        assert "m7i.large" not in refused.value.peer_hint, "that one is for another zone"
        control.refill()
        await provider.start(ONE)
    assert control.state(instance_id=stopped) == "pending"


@pytest.mark.parametrize("fault", ["refused", "before", "after"])
async def test_a_change_of_type_that_fails(emulator: Emulator, control: Control, stopped: str, fault: str) -> None:
    empty(control, {"m7g.large"})
    async with one(emulator, **change_types()) as provider:
        if fault == "refused":
            control.deny(action="ModifyInstanceAttribute")
            with pytest.raises(ProviderCapacity):
                await provider.start(ONE)
        else:
            control.reset(action="ModifyInstanceAttribute", times=2, after=fault == "after")
            with pytest.raises(ProviderRetryable):
                await provider.start(ONE)
        control.clear_faults()
        await provider.start(ONE)
        await wait_for(lambda: control.state(instance_id=stopped) == "pending")
    assert control.instance(stopped).instance_type == "c7g.xlarge"


async def test_ec2_changes_no_type_of_a_machine_that_can_hibernate_nor_of_spot(
    emulator: Emulator, control: Control
) -> None:
    control.add_instance(tags=tags_of("acme/one"), hibernation=True)
    empty(control, {"m7g.large"})
    async with one(emulator, **change_types()) as provider:
        with pytest.raises(ProviderCapacity):
            await provider.start(ONE)
        await provider.terminate(ONE)
        await provider.launch(ONE, "token")
    assert control.calls(action="ModifyInstanceAttribute") == []


@pytest.mark.parametrize("fault", ["none", "refused", "before", "after", "gone"])
async def test_a_spot_instance_is_terminated_with_its_request(emulator: Emulator, control: Control, fault: str) -> None:
    """EC2 would replace it otherwise."""
    async with one(emulator, **section_of("spot")) as provider:
        await provider.launch(ONE, "token")
        (instance,) = emulator.cloud.instances.values()
        assert (instance.hibernation, instance.tags) == (True, tags_of("acme/one"))
        if fault == "gone":
            del emulator.cloud.spot_requests[instance.spot_request]
        elif fault == "refused":
            control.deny(action="CancelSpotInstanceRequests")
        elif fault != "none":
            control.reset(action="CancelSpotInstanceRequests", times=2, after=fault == "after")
        if fault not in ("none", "gone"):
            with pytest.raises(ProviderError):
                await provider.terminate(ONE)
            assert made(emulator) == ["spot"], "not terminated before its request"
            control.clear_faults()
        await provider.terminate(ONE)
    assert made(emulator) == []
    assert len(emulator.cloud.instances) == 1
