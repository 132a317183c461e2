"""Machine types with alternatives, through the API: EC2 lacks capacity, says so at once or later, and daemons are killed."""

import contextlib
import dataclasses
import functools
import itertools
from pathlib import Path

import pytest
import trio

from beds.hosts.edge_daemons import edge_daemon
from beds.hosts.provisioned import (
    DEADLINE_S,
    client_of,
    ec2_text,
    ec2_type,
    kill_in,
    launch,
    listed,
    living,
    remove,
    serving,
    until,
)
from beds.peers.clients import CallError
from bentpipe.daemon.providers.ec2 import provider as ec2_provider
from bentpipe.daemon.providers.ec2.traits import TRAITS
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator
from bentpipe.proto import compute_pb2 as pb
from bentpipe.proto.grpc_status import GrpcStatus

GRACE_S = 1.0
"""Of a new instance to appear, instead of minutes."""
ALTERNATIVES = """
hibernation = false
[[machine_type.ec2.alternative]]
[[machine_type.ec2.alternative]]
instance_type = "c7g.xlarge"
[[machine_type.ec2.alternative]]
spot = true
"""
POOLS = (
    {"instance_type": "m7g.large", "spot": False},
    {"instance_type": "c7g.xlarge", "spot": False},
    {"instance_type": "m7g.large", "spot": True},
)
"""Those of the alternatives, in their order."""
SETS = [set(each) for count in range(1, 4) for each in itertools.combinations(range(3), count)]


@pytest.fixture
def cloud(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    monkeypatch.setattr(ec2_provider, "TRAITS", dataclasses.replace(TRAITS, appear_grace_s=GRACE_S))
    monkeypatch.setattr(ec2_provider, "UNSEEN_GRACE_S", GRACE_S)
    emulator.control.add_template(name="builder")
    return emulator


def text_of(folder: Path, cloud: Emulator, *, machine: str = ALTERNATIVES) -> str:
    return ec2_text(folder, cloud, types=ec2_type(cloud, machine=machine, settings='capacity_retry_after = "200ms"'))


def came_to_nothing(cloud: Emulator, instances: int) -> bool:
    """Whether so many instances were launched, and none lives."""
    return len(cloud.control.describe()) == instances and not living(cloud)


def pools(cloud: Emulator) -> list[int]:
    """By which alternatives the living instances were launched."""
    found = [each for each in cloud.control.describe() if each["instance_id"] in living(cloud)]
    return [POOLS.index({"instance_type": each["instance_type"], "spot": each["spot"]}) for each in found]


@pytest.mark.parametrize("later", [False, True], ids=["refused", "later"])
@pytest.mark.parametrize(
    "sets", [SETS[-1:], [{0, 1}], pytest.param(SETS, marks=pytest.mark.slow)], ids=["all", "two", "every set"]
)
async def test_a_launch_takes_the_first_alternative_that_has_capacity(
    tmp_path: Path, cloud: Emulator, later: bool, sets: list[set[int]]
) -> None:
    """At once, and for nobody: no client waits for the satellite."""
    for empty in sets:
        async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:  # a new one each time, that remembers nothing
            port = daemon.addresses[0][1]
            for number in empty:
                cloud.control.exhaust(**POOLS[number], later=later)  # type: ignore[arg-type]
            before = len(cloud.control.describe())
            status, words = await trio.to_thread.run_sync(launch, port)
            left = sorted({0, 1, 2} - empty)
            if left:
                assert status is GrpcStatus.OK, words
                await until(functools.partial(is_listed, port, pb.SATELLITE_STATUS_OPERATIONAL), f"{empty} are empty")
                assert pools(cloud) == left[:1]
            elif later:
                await until(functools.partial(came_to_nothing, cloud, before + 3), "all three are tried")
                await until(functools.partial(is_listed, port, pb.SATELLITE_STATUS_SLEEP), "it sleeps")
                cloud.control.refill()
                await until(functools.partial(answers, port), "a build tries again")
                assert len(living(cloud)) == 1
            else:
                assert status is GrpcStatus.ABORTED
                assert "c7g.xlarge (InsufficientInstanceCapacity)" in words
                assert await trio.to_thread.run_sync(listed, port) == {}
            if listed_now := await trio.to_thread.run_sync(listed, port):
                assert set(listed_now) == {"new"}
                status, words = await trio.to_thread.run_sync(functools.partial(remove, port, force=True))
                assert status is GrpcStatus.OK, words
            assert living(cloud) == []
            cloud.control.refill()


async def test_a_client_hears_that_the_zone_of_its_machine_is_empty(tmp_path: Path, cloud: Emulator) -> None:
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        await stopped_satellite(port, cloud)
        cloud.control.exhaust()
        with pytest.raises(CallError, match=r"where the satellite's disk is: m7g\.large"):
            await trio.to_thread.run_sync(call, port)
        assert len(living(cloud)) == 1
        assert cloud.control.calls(action="ModifyInstanceAttribute") == []


@pytest.mark.parametrize("later", [False, True], ids=["refused", "later"])
async def test_a_machine_in_an_empty_zone_gets_another_type_if_the_configuration_says_so(
    tmp_path: Path, cloud: Emulator, later: bool
) -> None:
    text = text_of(tmp_path, cloud, machine="change_type = true" + ALTERNATIVES)
    async with serving(tmp_path, text) as daemon:
        port = daemon.addresses[0][1]
        await stopped_satellite(port, cloud)
        cloud.control.exhaust(instance_type="m7g.large", later=later)
        assert await trio.to_thread.run_sync(call, port) == b"on"
        assert pools(cloud) == [1]
        assert len(cloud.control.describe()) == 1, "it is the same instance"


def call(port: int) -> bytes:
    """One build's call. Raises CallError."""
    with contextlib.closing(client_of(port)) as client:
        return client.unary("Echo", b"on", timeout_s=DEADLINE_S)


def answers(port: int) -> bool:
    """Whether the satellite answers a build that does not mind to be refused before."""
    try:
        return call(port) == b"on"
    except CallError:
        return False


def is_listed(port: int, status: "pb.SatelliteStatus") -> bool:
    return listed(port) == {"new": status}


async def stopped_satellite(port: int, cloud: Emulator) -> None:
    """Launch a satellite, and let others stop its machine."""
    assert (await trio.to_thread.run_sync(launch, port))[0] is GrpcStatus.OK
    await until(lambda: listed(port) == {"new": pb.SATELLITE_STATUS_OPERATIONAL}, "it is up")
    (instance_id,) = living(cloud)
    cloud.control.others_stop(instance_id=instance_id)
    await until(lambda: listed(port) == {"new": pb.SATELLITE_STATUS_SLEEP}, "it sleeps")


KILLS = [
    ("RunInstances", 0, False),
    ("RunInstances", 0, True),
    ("RunInstances", 1, False),
    *(
        pytest.param(action, 0, after, marks=pytest.mark.slow)
        for action in ("DescribeInstances", "DescribeLaunchTemplateVersions", "DescribeImages", "DescribeInstanceTypes")
        for after in (False, True)
    ),
]


@pytest.mark.parametrize(("action", "skip", "after"), KILLS)
async def test_a_daemon_that_is_killed_between_two_alternatives(
    tmp_path: Path, cloud: Emulator, action: str, skip: int, after: bool
) -> None:
    """The next daemon remembers nothing but the store. By then the pools that were empty have capacity again."""
    text = text_of(tmp_path, cloud, machine=ALTERNATIVES.replace("hibernation = false", ""))
    cloud.control.exhaust(**POOLS[0])  # type: ignore[arg-type]
    await kill_in(tmp_path, text, cloud, action, launch, after=after, skip=skip)
    launched = action == "RunInstances" and (after or skip == 1)  # after: the first one is refused, and so not held
    if launched and after:
        assert pools(cloud) == [1]
    cloud.control.refill()
    with edge_daemon(tmp_path, text) as daemon:
        port = daemon.port
        assert await trio.to_thread.run_sync(launch, port) == (GrpcStatus.OK, "")
        await until(lambda: listed(port) == {"new": pb.SATELLITE_STATUS_OPERATIONAL}, "it is up")
        assert pools(cloud) == [1 if launched else 0]
        assert len(cloud.control.describe()) == 1, "nothing was launched twice"
        status, words = await trio.to_thread.run_sync(lambda: remove(port, force=True))
        assert status is GrpcStatus.OK, words
        await until(lambda: listed(port) == {} and not living(cloud), "nothing is left")
