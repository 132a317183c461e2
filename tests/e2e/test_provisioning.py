"""Satellites that are launched and removed by the API: local processes, EC2 with a fault at each call, and two hosts."""

import contextlib
import dataclasses
import functools
import time
import uuid
from pathlib import Path

import pytest
import trio

from beds.hosts.edge_daemons import edge_daemon
from beds.hosts.provisioned import (
    DEADLINE_S,
    KEY,
    PROCESSES,
    ask,
    client_of,
    config_text,
    ec2_text,
    in_thread,
    kill_in,
    launch,
    listed,
    living,
    remove,
    serving,
    until,
)
from beds.peers.clients import CallError
from beds.stores.dynamodb_server import DynamoDbServer
from bentpipe.daemon.providers.ec2 import provider as ec2_provider
from bentpipe.daemon.providers.ec2.traits import TRAITS
from bentpipe.daemon.store.dynamodb_table import Table
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator
from bentpipe.proto import compute_pb2 as pb
from bentpipe.proto.grpc_status import GrpcStatus

GRACE_S = 1.0
"""Of a new instance to appear, instead of two minutes."""


async def test_local_processes_from_launch_to_removal(tmp_path: Path) -> None:
    async with serving(tmp_path, config_text(tmp_path, PROCESSES, limits="max_launched_per_org = 2")) as daemon:
        port = daemon.addresses[0][1]

        def drive() -> None:
            assert remove(port)[0] is GrpcStatus.NOT_FOUND
            assert launch(port, token="user")[0] is GrpcStatus.PERMISSION_DENIED
            assert launch(port, token="stranger")[0] is GrpcStatus.PERMISSION_DENIED
            status, words = launch(port, size="huge")
            assert status is GrpcStatus.INVALID_ARGUMENT
            assert "small (linux/amd64)" in words
            assert listed(port) == {}
            assert [launch(port)[0] for _ in range(2)] == [GrpcStatus.OK] * 2, "twice is once"
            assert launch(port, name="second")[0] is GrpcStatus.OK
            status, words = launch(port, name="third")
            assert status in (GrpcStatus.ABORTED, GrpcStatus.RESOURCE_EXHAUSTED)
            assert "max_launched_per_org" in words
            assert set(listed(port)) == {"new", "second"}
            got = pb.GetSatelliteResponse.FromString(
                ask(port, "GetSatellite", pb.GetSatelliteRequest(org_id=KEY.org, name=KEY.name), "user")[2]
            )
            assert (got.size, got.platform, got.is_managed) == ("small", "linux/amd64", True)
            with contextlib.closing(client_of(port)) as client:
                assert client.unary("Echo", b"hello", timeout_s=DEADLINE_S) == b"hello"
                assert remove(port, token="user")[0] is GrpcStatus.PERMISSION_DENIED
                assert remove(port, token="stranger")[0] is GrpcStatus.NOT_FOUND
                status, words = remove(port)
                assert status is GrpcStatus.ABORTED
                assert "--force" in words
                assert client.unary("Echo", b"still", timeout_s=DEADLINE_S) == b"still"
                assert remove(port, force=True)[0] is GrpcStatus.OK
                with pytest.raises(CallError):
                    client.unary("Echo", b"gone", timeout_s=DEADLINE_S)
            assert set(listed(port)) == {"second"}, "the other one is not touched"
            assert launch(port)[0] is GrpcStatus.OK, "its name and its place are free again"
            with contextlib.closing(client_of(port)) as client:
                assert client.unary("Echo", b"again", timeout_s=DEADLINE_S) == b"again"
            for name in ("new", "second"):
                assert remove(port, force=True, name=name)[0] is GrpcStatus.OK
            assert listed(port) == {}

        await trio.to_thread.run_sync(drive)
        assert daemon.fleet.satellites == ()


@pytest.fixture
def cloud(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    traits = dataclasses.replace(TRAITS, appear_grace_s=GRACE_S)
    monkeypatch.setattr(ec2_provider, "TRAITS", traits)
    emulator.control.add_template(name="builder")
    return emulator


LAUNCH_CALLS = (
    *("DescribeInstances", "DescribeLaunchTemplateVersions", "DescribeImages", "DescribeInstanceTypes"),
    "RunInstances",
)
FAULTS = ("refused", "no capacity", "broken before", "broken after")


def break_call(cloud: Emulator, action: str, fault: str, times: int | None) -> None:
    match fault:
        case "refused":
            cloud.control.fail(action=action, code="UnauthorizedOperation", status=403, times=times)
        case "no capacity":
            cloud.control.fail(action=action, code="InsufficientInstanceCapacity", status=500, times=times)
        case "broken before" | "broken after":
            cloud.control.reset(action=action, times=times, after=fault == "broken after")


@pytest.mark.parametrize("action", LAUNCH_CALLS)
async def test_a_launch_that_fails_at_any_call_leaves_nothing(tmp_path: Path, cloud: Emulator, action: str) -> None:
    async with serving(tmp_path, ec2_text(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        for fault in FAULTS:
            before = len(cloud.control.describe())
            break_call(cloud, action, fault, None)
            status, words = await trio.to_thread.run_sync(launch, port)
            cloud.control.clear_faults()
            if status is not GrpcStatus.OK:
                assert status is GrpcStatus.ABORTED, (fault, words)
                await until(lambda: listed(port) == {}, f"nothing is left in the store after {action} {fault}")
                assert living(cloud) == []
                assert len(cloud.control.describe()) - before <= 1, "one token makes one machine"
                assert await trio.to_thread.run_sync(launch, port) == (GrpcStatus.OK, "")
            assert len(living(cloud)) == 1
            assert (await trio.to_thread.run_sync(launch, port))[0] is GrpcStatus.OK
            assert len(living(cloud)) == 1, "launched twice is one machine"
            status, words = await trio.to_thread.run_sync(lambda: remove(port, force=True))
            assert status is GrpcStatus.OK, words
            assert living(cloud) == []
            assert await trio.to_thread.run_sync(listed, port) == {}


@pytest.mark.parametrize("unseen_s", [0, 45])
@pytest.mark.parametrize("code", ["UnauthorizedOperation", "InsufficientInstanceCapacity", "RequestLimitExceeded"])
async def test_a_refusal_after_a_lost_answer_leaves_nothing(
    tmp_path: Path, cloud: Emulator, code: str, unseen_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EC2 has launched a machine, and the answer was lost. It may not show the machine yet, and refuses what is repeated."""
    monkeypatch.setattr(ec2_provider, "TRAITS", dataclasses.replace(TRAITS, appear_grace_s=5.0))
    cloud.control.set_timing(name="unseen_s", seconds=unseen_s)
    async with serving(tmp_path, ec2_text(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        cloud.control.reset(action="RunInstances", after=True)
        cloud.control.fail(action="RunInstances", code=code, times=None)
        status, words = await trio.to_thread.run_sync(launch, port)
        cloud.control.clear_faults()
        if status is GrpcStatus.OK:
            assert len(living(cloud)) == 1, "it was found by its token"
            status, words = await trio.to_thread.run_sync(lambda: remove(port, force=True))
            assert status is GrpcStatus.OK, words
        await until(lambda: listed(port) == {}, "nothing is left in the store")
        assert living(cloud) == []
        assert len(cloud.control.describe()) == 1


@pytest.mark.parametrize("action", ["DescribeInstances", "TerminateInstances"])
async def test_a_removal_that_fails_says_what_is_left_and_is_finished_later(
    tmp_path: Path, cloud: Emulator, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bentpipe.daemon.fleet.provisioning.FINISH_S", 2.0)
    async with serving(tmp_path, ec2_text(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        for fault in ("refused", "broken before", "broken after"):
            assert (await trio.to_thread.run_sync(launch, port))[0] is GrpcStatus.OK
            break_call(cloud, action, fault, None)
            status, words = await trio.to_thread.run_sync(lambda: remove(port, force=True))
            if status is not GrpcStatus.OK:
                assert status is GrpcStatus.ABORTED
                assert "its machine is still there" in words
            if fault != "broken after":
                assert await trio.to_thread.run_sync(listed, port) == {"new": pb.SATELLITE_STATUS_DESTROYING}
                assert (await trio.to_thread.run_sync(launch, port))[0] is GrpcStatus.ABORTED, (
                    "its name is not free yet"
                )
            cloud.control.clear_faults()
            await until(lambda: listed(port) == {}, f"the removal goes on after {action} {fault}")
            assert living(cloud) == []


async def test_a_launch_says_what_the_cloud_does_not_take_back(
    tmp_path: Path, cloud: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bentpipe.daemon.fleet.provisioning.FINISH_S", 2.0)
    async with serving(tmp_path, ec2_text(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        break_call(cloud, "RunInstances", "broken after", None)
        cloud.control.hold(action="RunInstances", after=True)
        answers: list[tuple[GrpcStatus, str]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, lambda: answers.append(launch(port)))
            await until(lambda: cloud.control.held(action="RunInstances") > 0, "RunInstances has been carried out")
            break_call(cloud, "DescribeInstances", "broken before", None)
            cloud.control.release(action="RunInstances")
        ((status, words),) = answers
        assert status is GrpcStatus.ABORTED
        assert "may have made a machine" in words
        assert len(living(cloud)) == 1
        cloud.control.clear_faults()
        await until(lambda: listed(port) == {}, "it goes on")
        assert living(cloud) == []


@pytest.mark.parametrize("after", [False, True])
async def test_a_daemon_that_is_killed_in_a_launch_or_a_removal(tmp_path: Path, cloud: Emulator, after: bool) -> None:
    text = ec2_text(tmp_path, cloud)

    await kill_in(tmp_path, text, cloud, "RunInstances", launch, after=after)
    # What EC2 has received it may still carry out.
    assert len(living(cloud)) == 1 if after else len(living(cloud)) <= 1
    with edge_daemon(tmp_path, text) as daemon:
        assert launch(daemon.port)[0] is GrpcStatus.OK
        assert len(living(cloud)) == 1, "the launch is repeated with its own token"
    await kill_in(tmp_path, text, cloud, "TerminateInstances", lambda port: remove(port, force=True), after=after)
    with edge_daemon(tmp_path, text) as daemon:
        port = daemon.port
        began = time.monotonic()
        await until(lambda: living(cloud) == [], "the removal is finished by the next daemon")
        assert time.monotonic() - began < DEADLINE_S
        assert set(listed(port).values()) <= {pb.SATELLITE_STATUS_DESTROYING}


async def test_hosts_take_up_each_others_launches_and_removals(tmp_path: Path, cloud: Emulator) -> None:
    with DynamoDbServer() as server:
        table = uuid.uuid4().hex
        Table(table, region="eu-central-1", endpoint=server.url).create_now()
        shared = f'kind = "dynamodb"\ntable = "{table}"\nregion = "eu-central-1"\nendpoint = "{server.url}"\n'
        texts = {host: ec2_text(tmp_path, cloud, shared + f'host = "{host}"') for host in ("a", "b")}
        async with serving(tmp_path, texts["a"], "a") as a, serving(tmp_path, texts["b"], "b") as b:
            here, there = a.addresses[0][1], b.addresses[0][1]
            async with trio.open_nursery() as nursery:
                for port in (here, there):
                    nursery.start_soon(in_thread, functools.partial(launch, port))
            await until(lambda: "new" in listed(here) and "new" in listed(there), "both have it")
            assert len(living(cloud)) == 1
            with contextlib.closing(client_of(there)) as client:
                echo = lambda: client.unary("Echo", b"hello", timeout_s=DEADLINE_S)  # noqa: E731
                assert await trio.to_thread.run_sync(echo) == b"hello"
                status, words = await trio.to_thread.run_sync(remove, here)
                assert status is GrpcStatus.ABORTED, "a client of the other host uses it"
                assert await trio.to_thread.run_sync(echo) == b"hello"
                status, words = await trio.to_thread.run_sync(lambda: remove(here, force=True))
                assert status is GrpcStatus.OK, words
                assert living(cloud) == []
                with pytest.raises(CallError):
                    await trio.to_thread.run_sync(echo)
            await until(lambda: listed(here) == listed(there) == {}, "neither has it")
