"""The same provider against moto's server: its requests have the shapes that another reading of EC2's API expects.

moto knows no time between states, no hibernation and no faults; those are the emulator's.
"""

import base64
import dataclasses
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
import trio
from moto.server import ThreadedMotoServer

from beds.contracts.provider import DEADLINE_S, wait_state
from beds.machines.emulated_ec2 import ec2_section, machine, machine_id, running, tags_of
from bentpipe.config.model import MachineTypeSection
from bentpipe.daemon.errors import MachineNotFound, ProviderPermanent, ProviderPermission, SpareUnusable
from bentpipe.daemon.model import MachineState, SleepMode

IMAGE = "ami-12c6146b"
"""Of those that moto brings along."""

ONE, TWO = machine_id("acme/one"), machine_id("acme/two")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def ec2(server: str) -> Iterator[Any]:
    client = boto3.client("ec2", endpoint_url=server, region_name="eu-central-1")
    yield client
    client.close()


@pytest.fixture
def template(ec2: Any) -> Iterator[str]:
    (image,) = ec2.describe_images(ImageIds=[IMAGE])["Images"]
    disk = {"DeviceName": image["RootDeviceName"], "Ebs": {"VolumeSize": 50, "VolumeType": "gp3"}}
    data = {"ImageId": IMAGE, "InstanceType": "m6g.large", "BlockDeviceMappings": [disk]}
    made = ec2.create_launch_template(LaunchTemplateName="builder", LaunchTemplateData=data)
    yield made["LaunchTemplate"]["LaunchTemplateId"]
    ec2.delete_launch_template(LaunchTemplateName="builder")


@pytest.mark.parametrize("by_name", [False, True])
async def test_a_life(server: str, ec2: Any, template: str, by_name: bool) -> None:
    section = {"launch_template": "builder" if by_name else template, "launch_template_version": "$Latest"}
    async with running(ec2_section(server), {ONE: machine("acme/one", **section)}) as provider:
        with pytest.raises(MachineNotFound):
            await provider.describe(ONE)
        await provider.launch(ONE, f"token-{by_name}")
        look = await wait_state(provider, ONE, MachineState.RUNNING)
        assert look.can_hibernate
        instance = instance_at(ec2, look.address.host if look.address else "")
        assert tags_of("acme/one").items() <= {tag["Key"]: tag["Value"] for tag in instance["Tags"]}.items()
        assert instance["HibernationOptions"]["Configured"]
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        (volume_id,) = (each["Ebs"]["VolumeId"] for each in instance["BlockDeviceMappings"])
        (volume,) = ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
        assert (volume["Encrypted"], volume["Size"], volume["VolumeType"]) == (True, 50, "gp3")
        assert tags_of("acme/one").items() <= {tag["Key"]: tag["Value"] for tag in volume["Tags"]}.items()
        await provider.stop(ONE, SleepMode.HIBERNATE)
        look = await wait_state(provider, ONE, MachineState.STOPPED)
        assert look.asleep_since is not None
        await provider.start(ONE)
        await wait_state(provider, ONE, MachineState.RUNNING)
        await provider.stop(ONE, SleepMode.STOP, force=True)
        await wait_state(provider, ONE, MachineState.STOPPED)
        await provider.terminate(ONE)
        with trio.fail_after(DEADLINE_S):
            while look.state is not MachineState.TERMINATED:
                look = await provider.wait_changed(look)
    (state,) = states(ec2, instance["InstanceId"])
    assert state in ("shutting-down", "terminated")


async def test_a_machine_of_the_reserve_becomes_a_satellites(server: str, ec2: Any, template: str) -> None:
    kind = MachineTypeSection.model_validate(
        {"size": "small", "provider": "ec2", "ec2": {"launch_template": template}, "reserve": 1}
    )
    spare, tag = "5" * 32, "bentpipe:reserve"

    async def own_data(token: str) -> bytes:
        return f"#cloud-config\n{token}\n".encode()

    whole = machine("acme/one", launch_template=template)
    mine = dataclasses.replace(whole, own_data=own_data)
    async with running(ec2_section(server), {ONE: mine}) as provider:
        reserve = provider.reserve
        await reserve.launch(kind, spare)
        (seen,) = [each for each in await reserve.look(()) if each.spare == spare]
        assert (seen.state, seen.satellite) == (MachineState.RUNNING, "")
        await reserve.lay_down(seen, SleepMode.HIBERNATE)
        with pytest.raises(SpareUnusable):
            await reserve.assign(seen.instance, "6" * 32, ONE, "token", again=False)
        await reserve.assign(seen.instance, spare, ONE, "token", again=False)
        await wait_state(provider, ONE, MachineState.RUNNING)
        (after,) = await reserve.look((seen.instance,))
        assert (after.satellite, after.spare) == ("acme/one", spare)
        await reserve.release(after)
        (reservation,) = ec2.describe_instances(InstanceIds=[seen.instance])["Reservations"]
        (instance,) = reservation["Instances"]
        tags = {each["Key"]: each["Value"] for each in instance["Tags"]}
        assert tags_of("acme/one").items() <= tags.items()
        assert tag not in tags
        (volume_id,) = (each["Ebs"]["VolumeId"] for each in instance["BlockDeviceMappings"])
        (volume,) = ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
        assert tags_of("acme/one").items() <= {each["Key"]: each["Value"] for each in volume["Tags"]}.items()
        told = ec2.describe_instance_attribute(InstanceId=seen.instance, Attribute="userData")["UserData"]["Value"]
        assert base64.b64decode(told) == b"#cloud-config\ntoken\n"
        assert await reserve.look(()) == ()
        await provider.terminate(ONE)


async def test_given_instances(server: str, ec2: Any) -> None:
    ids = [each["InstanceId"] for each in ec2.run_instances(ImageId=IMAGE, MinCount=2, MaxCount=2)["Instances"]]
    machines = {ONE: machine("acme/one", instance_id=ids[0]), TWO: machine("acme/two", instance_id=ids[1])}
    async with running(ec2_section(server), machines) as provider:
        for each in machines:
            assert not (await wait_state(provider, each, MachineState.RUNNING)).can_hibernate
            with pytest.raises(ProviderPermission):
                await provider.terminate(each)
        async with trio.open_nursery() as nursery:
            for each in machines:
                nursery.start_soon(provider.stop, each, SleepMode.STOP)
        for each in machines:
            await wait_state(provider, each, MachineState.STOPPED)
    assert states(ec2, *ids) == ["stopped", "stopped"]


async def test_what_does_not_exist(server: str) -> None:
    machines = {
        ONE: machine("acme/one", instance_id="i-0123456789abcdef0"),
        TWO: machine("acme/two", launch_template="nonsense"),
    }
    async with running(ec2_section(server), machines) as provider:
        for each in machines:
            with pytest.raises(MachineNotFound):
                await provider.start(each)
        with pytest.raises(ProviderPermanent):
            await provider.launch(TWO, "token")


def instance_at(ec2: Any, host: str) -> dict[str, Any]:
    filters = [{"Name": "private-ip-address", "Values": [host]}]
    (reservation,) = ec2.describe_instances(Filters=filters)["Reservations"]
    return dict(reservation["Instances"][0])


def states(ec2: Any, *ids: str) -> list[str]:
    reservations = ec2.describe_instances(InstanceIds=list(ids))["Reservations"]
    return [each["State"]["Name"] for one in reservations for each in one["Instances"]]
