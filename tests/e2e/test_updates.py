"""UpdateSatellite: local processes, EC2 with a fault at each call and daemons killed at each, and two hosts."""

import contextlib
import dataclasses
import functools
import sqlite3
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from beds.hosts.edge_daemons import edge_daemon
from beds.hosts.provisioned import (
    DEADLINE_S,
    KEY,
    ask,
    client_of,
    config_text,
    ec2_text,
    ec2_type,
    in_thread,
    kill_in,
    launch,
    listed,
    living,
    remove,
    serving,
    until,
)
from beds.stores.dynamodb_server import DynamoDbServer
from bentpipe.daemon.providers.ec2 import provider as ec2_provider
from bentpipe.daemon.providers.ec2.traits import TRAITS
from bentpipe.daemon.store.dynamodb_table import Table
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator
from bentpipe.proto import compute_pb2 as pb
from bentpipe.proto.grpc_status import GrpcStatus

GRACE_S = 1.0
"""Of a new instance to appear, instead of minutes."""
PROCESS = """
[[machine_type]]
size = "{size}"
sleep_mode = "hibernate"
min_awake = 0
[machine_type.process]
command = ["{python}", "-P", "-m", "bentpipe.daemon.testbed.satellite", "--boot", "0.0{number}", "{{port}}"]
"""
IN_PLACE = "hibernation = false\ninstance_type = "
TYPES = {"small": "m7g.large", "big": "c7g.xlarge"}


def update(port: int, *, token: str = "manager", name: str = KEY.name, **fields: object) -> tuple[GrpcStatus, str]:
    request = pb.UpdateSatelliteRequest(org_id=KEY.org, name=name, **{"platform": "linux/amd64", **fields})  # type: ignore[arg-type]
    return ask(port, "UpdateSatellite", request, token)[:2]


def got(port: int) -> pb.GetSatelliteResponse:
    request = pb.GetSatelliteRequest(org_id=KEY.org, name=KEY.name)
    status, words, answer = ask(port, "GetSatellite", request)
    assert status is GrpcStatus.OK, words
    return pb.GetSatelliteResponse.FromString(answer)


async def seen(port: int) -> pb.GetSatelliteResponse:
    return await trio.to_thread.run_sync(got, port)


def build(port: int) -> bytes:
    """One build's call. Raises CallError."""
    with contextlib.closing(client_of(port)) as client:
        return client.unary("Echo", b"built", timeout_s=DEADLINE_S)


def process_text(folder: Path) -> str:
    return config_text(
        folder, "".join(PROCESS.format(size=size, number=n, python=sys.executable) for n, size in enumerate(TYPES))
    )


async def test_local_processes(tmp_path: Path) -> None:
    async with serving(tmp_path, process_text(tmp_path)) as daemon:
        port = daemon.addresses[0][1]

        def drive() -> None:
            assert launch(port)[0] is GrpcStatus.OK
            assert update(port, token="user", size="big")[0] is GrpcStatus.PERMISSION_DENIED
            assert update(port, token="stranger", size="big")[0] is GrpcStatus.NOT_FOUND
            assert update(port, name="other", size="big")[0] is GrpcStatus.NOT_FOUND
            status, words = update(port, size="huge")
            assert status is GrpcStatus.INVALID_ARGUMENT
            assert "small (linux/amd64), big (linux/amd64)" in words
            assert update(port, size="big", platform="linux/arm64")[0] is GrpcStatus.INVALID_ARGUMENT
            for field, value in REFUSED.items():
                status, words = update(port, size="big", **{field: value})  # type: ignore[arg-type]
                assert status is GrpcStatus.UNIMPLEMENTED, field
                assert words.startswith(field)
            status, words = update(port, drop_cache=True)
            assert status is GrpcStatus.UNIMPLEMENTED
            assert "keeps its files" in words
            with contextlib.closing(client_of(port)) as client:
                assert client.unary("Echo", b"hello", timeout_s=DEADLINE_S) == b"hello"
                status, words = update(port, size="big")
                assert status is GrpcStatus.ABORTED
                assert "is used now" in words
                assert client.unary("Echo", b"still", timeout_s=DEADLINE_S) == b"still"
            assert update(port) == (GrpcStatus.OK, ""), "nothing is to change"
            assert got(port).size == "small"
            for size in ("big", "big", "small"):
                until_now(functools.partial(is_updated, port, size))  # the build's lease ends soon
                assert got(port).size == size
                assert build(port) == b"built"
            assert remove(port, force=True)[0] is GrpcStatus.OK
            assert listed(port) == {}

        await trio.to_thread.run_sync(drive)
        assert daemon.fleet.satellites == ()


REFUSED = {
    "version": "v0.8.14",
    "maintenance_window_start": "02:00",
    "maintenance_weekends_only": True,
    "feature_flags": ["x"],
}


def is_updated(port: int, size: str) -> bool:
    return update(port, size=size)[0] is GrpcStatus.OK


def until_now(condition: Callable[[], bool]) -> None:
    trio.from_thread.run(until, condition, "it is not used any more")


@pytest.fixture
def cloud(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    monkeypatch.setattr(ec2_provider, "TRAITS", dataclasses.replace(TRAITS, appear_grace_s=GRACE_S))
    emulator.control.add_template(name="builder")
    return emulator


def text_of(folder: Path, cloud: Emulator, store: str = "", *, hibernation: bool = False) -> str:
    types = "".join(
        ec2_type(cloud, size=size, machine=f'hibernation = {str(hibernation).lower()}\ninstance_type = "{kind}"')
        for size, kind in TYPES.items()
    )
    return ec2_text(folder, cloud, store, types=types)


def kinds(cloud: Emulator) -> dict[str, str]:
    """The types of the living instances, by their ids."""
    lives = living(cloud)
    return {
        str(each["instance_id"]): str(each["instance_type"])
        for each in cloud.control.describe()
        if each["instance_id"] in lives
    }


def is_one(cloud: Emulator, port: int, size: str = "") -> bool:
    """Whether there is one machine at most, of the satellite's present size, which is `size`, and the update is over."""
    found = got(port)
    if size not in ("", found.size):
        return False
    over = found.status not in (pb.SATELLITE_STATUS_UPDATING, pb.SATELLITE_STATUS_UNKNOWN)
    return over and list(kinds(cloud).values()) in ([], [TYPES[found.size]])


@pytest.mark.parametrize("asleep", [False, True])
async def test_a_size_is_changed_with_the_disks_kept(tmp_path: Path, cloud: Emulator, asleep: bool) -> None:
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        assert (await trio.to_thread.run_sync(launch, port))[0] is GrpcStatus.OK
        await until(lambda: got(port).status == pb.SATELLITE_STATUS_OPERATIONAL, "it is up")
        (instance_id,) = living(cloud)
        if asleep:
            cloud.control.others_stop(instance_id=instance_id)
            await until(lambda: got(port).status == pb.SATELLITE_STATUS_SLEEP, "it sleeps")
        status, words = await trio.to_thread.run_sync(functools.partial(update, port, size="big"))
        assert (status, words) == (GrpcStatus.OK, "")
        await until(lambda: got(port).size == "big", "it is big")
        assert kinds(cloud) == {instance_id: "c7g.xlarge"}
        assert len(cloud.control.describe()) == 1
        assert await trio.to_thread.run_sync(build, port) == b"built"
        assert (await trio.to_thread.run_sync(functools.partial(remove, port, force=True)))[0] is GrpcStatus.OK
        assert living(cloud) == []


async def test_what_needs_another_machine_is_done_only_if_the_cache_is_dropped(tmp_path: Path, cloud: Emulator) -> None:
    async with serving(tmp_path, text_of(tmp_path, cloud, hibernation=True)) as daemon:
        port = daemon.addresses[0][1]
        assert (await trio.to_thread.run_sync(launch, port))[0] is GrpcStatus.OK
        await until(lambda: got(port).status == pb.SATELLITE_STATUS_OPERATIONAL, "it is up")
        (first,) = living(cloud)
        cloud.control.clear_calls()
        status, words = await trio.to_thread.run_sync(functools.partial(update, port, size="big"))
        assert status is GrpcStatus.INVALID_ARGUMENT
        assert "--drop-cache" in words
        assert (await seen(port)).status == pb.SATELLITE_STATUS_OPERATIONAL
        assert {call.action for call in cloud.control.calls()} == {"DescribeInstances"}, "nothing has changed"
        for size in ("big", "big", "small"):
            before = living(cloud)
            status, words = await trio.to_thread.run_sync(functools.partial(update, port, size=size, drop_cache=True))
            assert (status, words) == (GrpcStatus.OK, "")
            assert (await seen(port)).size == size
            ((instance_id, kind),) = kinds(cloud).items()
            assert instance_id not in before, "another machine each time: that is what was asked for"
            assert kind == TYPES[size]
            await until(lambda: got(port).status == pb.SATELLITE_STATUS_OPERATIONAL, "it is up")
        assert first not in living(cloud)
        assert await trio.to_thread.run_sync(build, port) == b"built"


FAULTS = ("refused", "broken before", "broken after")
STEPS = [
    (False, "ModifyInstanceAttribute"),
    (True, "TerminateInstances"),
    (True, "RunInstances"),
    *(
        pytest.param(*step, marks=pytest.mark.slow)
        for step in (
            (False, "DescribeInstances"),
            (False, "StopInstances"),
            (True, "DescribeInstances"),
            (True, "DescribeLaunchTemplateVersions"),
            (True, "DescribeImages"),
            (True, "DescribeInstanceTypes"),
        )
    ),
]


def break_call(cloud: Emulator, action: str, fault: str) -> None:
    if fault == "refused":
        cloud.control.fail(action=action, code="UnauthorizedOperation", status=403, times=None)
    else:
        cloud.control.reset(action=action, times=None, after=fault == "broken after")


@pytest.mark.parametrize(("drop_cache", "action"), STEPS)
async def test_an_update_that_fails_at_any_call_is_done_later_or_given_up(
    tmp_path: Path, cloud: Emulator, drop_cache: bool, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bentpipe.daemon.fleet.provisioning.FINISH_S", 2.0)
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        assert (await trio.to_thread.run_sync(launch, port))[0] is GrpcStatus.OK
        await until(lambda: got(port).status == pb.SATELLITE_STATUS_OPERATIONAL, "it is up")
        for fault in FAULTS:
            before = (await seen(port)).size
            wanted = "big" if before == "small" else "small"
            change = functools.partial(update, port, size=wanted, drop_cache=drop_cache)
            break_call(cloud, action, fault)
            status, words = await trio.to_thread.run_sync(change)
            cloud.control.clear_faults()
            if status is not GrpcStatus.OK:
                assert status is GrpcStatus.ABORTED, (fault, words)
                assert words
            await until(lambda: is_one(cloud, port), f"one machine of the size after {action} {fault}")
            if (await seen(port)).size == before:
                status, words = await trio.to_thread.run_sync(change)
                assert status is GrpcStatus.OK, (fault, words)
                await until(functools.partial(is_one, cloud, port, wanted), "repeated, it works")
            assert await trio.to_thread.run_sync(build, port) == b"built"
            assert len(living(cloud)) == 1
            await until(lambda: daemon.fleet.get(KEY).leases == 0, "the build has left")
        status, words = await trio.to_thread.run_sync(functools.partial(remove, port, force=True))
        assert status is GrpcStatus.OK, words
        assert living(cloud) == []


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("drop_cache", "action"),
    [
        (False, "ModifyInstanceAttribute"),
        (True, "TerminateInstances"),
        pytest.param(False, "StopInstances", marks=pytest.mark.slow),
        pytest.param(True, "RunInstances", marks=pytest.mark.slow),
    ],
)
async def test_a_daemon_that_is_killed_in_an_update(
    tmp_path: Path, cloud: Emulator, drop_cache: bool, action: str, after: bool
) -> None:
    text = text_of(tmp_path, cloud)
    with edge_daemon(tmp_path, text) as daemon:
        assert launch(daemon.port)[0] is GrpcStatus.OK
        await until(lambda: got(daemon.port).status == pb.SATELLITE_STATUS_OPERATIONAL, "it is up")
    (first,) = living(cloud)
    age_launches(tmp_path)
    change = functools.partial(update, size="big", drop_cache=drop_cache)
    await kill_in(tmp_path, text, cloud, action, change, after=after)
    with edge_daemon(tmp_path, text) as daemon:
        port = daemon.port
        await until(lambda: is_one(cloud, port, "big"), "the next daemon goes on")
        assert await trio.to_thread.run_sync(build, port) == b"built"
        ((instance_id, kind),) = kinds(cloud).items()
        assert kind == "c7g.xlarge"
        assert (instance_id == first) is not drop_cache
        assert len(cloud.control.describe()) == 1 + drop_cache, "nothing was launched twice"
        age_launches(tmp_path)
        status, words = remove(port, force=True)
        assert status is GrpcStatus.OK, words
        await until(lambda: listed(port) == {} and not living(cloud), "nothing is left")


def age_launches(folder: Path) -> None:
    """Let all launches be so old that what they have made is visible."""
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as db, db:
        db.execute("UPDATE attempt SET at_us = at_us - ?", (int(TRAITS.appear_grace_s * 1e6),))


async def test_no_capacity_for_the_new_size(tmp_path: Path, cloud: Emulator) -> None:
    """The old machine is gone then, as the client wanted: its cache was to be dropped."""
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        assert (await trio.to_thread.run_sync(launch, port))[0] is GrpcStatus.OK
        await until(lambda: got(port).status == pb.SATELLITE_STATUS_OPERATIONAL, "it is up")
        cloud.control.exhaust(instance_type="c7g.xlarge")
        status, words = await trio.to_thread.run_sync(functools.partial(update, port, size="big", drop_cache=True))
        assert status is GrpcStatus.ABORTED
        assert "is updated, but its new machine could not be launched" in words
        assert "InsufficientInstanceCapacity" in words
        assert ((await seen(port)).size, living(cloud)) == ("big", [])
        cloud.control.refill()
        assert await trio.to_thread.run_sync(build, port) == b"built"
        assert list(kinds(cloud).values()) == ["c7g.xlarge"]


async def test_a_removal_ends_an_update_and_a_launch_waits_for_it(tmp_path: Path, cloud: Emulator) -> None:
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        assert (await trio.to_thread.run_sync(launch, port))[0] is GrpcStatus.OK
        await until(lambda: got(port).status == pb.SATELLITE_STATUS_OPERATIONAL, "it is up")
        cloud.control.hold(action="ModifyInstanceAttribute")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, functools.partial(update, port, size="big"))
            await until(lambda: cloud.control.held(action="ModifyInstanceAttribute") > 0, "it is under way")
            assert (await seen(port)).status == pb.SATELLITE_STATUS_UPDATING
            for call in (launch, functools.partial(update, size="small"), functools.partial(update, drop_cache=True)):
                status, words = await trio.to_thread.run_sync(call, port)
                assert status is GrpcStatus.ABORTED
                assert "being updated" in words
            async with trio.open_nursery() as removing:
                removing.start_soon(in_thread, functools.partial(remove, port, force=True))
                await until(lambda: got(port).status == pb.SATELLITE_STATUS_DESTROYING, "it is being removed")
                cloud.control.release(action="ModifyInstanceAttribute")
        await until(lambda: listed(port) == {} and not living(cloud), "it is gone")


@pytest.mark.parametrize("drop_cache", [False, True])
async def test_two_hosts(tmp_path: Path, cloud: Emulator, drop_cache: bool) -> None:
    with DynamoDbServer() as server:
        table = uuid.uuid4().hex
        Table(table, region="eu-central-1", endpoint=server.url).create_now()
        shared = f'kind = "dynamodb"\ntable = "{table}"\nregion = "eu-central-1"\nendpoint = "{server.url}"\n'
        texts = {host: text_of(tmp_path, cloud, shared + f'host = "{host}"') for host in ("a", "b")}
        async with serving(tmp_path, texts["a"], "a") as a, serving(tmp_path, texts["b"], "b") as b:
            here, there = a.addresses[0][1], b.addresses[0][1]
            assert (await trio.to_thread.run_sync(launch, here))[0] is GrpcStatus.OK
            await until(lambda: "new" in listed(there), "both have it")
            (first,) = living(cloud)
            change = functools.partial(update, size="big", drop_cache=drop_cache)
            with contextlib.closing(client_of(there)) as client:
                echo = functools.partial(client.unary, "Echo", b"hello", timeout_s=DEADLINE_S)
                assert await trio.to_thread.run_sync(echo) == b"hello"
                status, words = await trio.to_thread.run_sync(change, here)
                assert status is GrpcStatus.ABORTED, "a client of the other host uses it"
                assert "used" in words
                assert await trio.to_thread.run_sync(echo) == b"hello"
            for port in (here, there):  # while it is awake for a host, the other one does not stop it
                await until(functools.partial(is_let_go, port, cloud), "it sleeps")
            answers: list[tuple[GrpcStatus, str]] = []
            async with trio.open_nursery() as nursery:
                for port in (here, there):
                    nursery.start_soon(in_thread, lambda port=port: answers.append(change(port)))
            assert GrpcStatus.OK in [status for status, _ in answers], answers
            await until(lambda: got(here).size == got(there).size == "big", "both know")
            await until(lambda: len(living(cloud)) == 1, "one machine")
            assert (living(cloud) == [first]) is not drop_cache
            assert len(cloud.control.describe()) <= 1 + 2 * drop_cache
            assert await trio.to_thread.run_sync(build, there) == b"built"
            assert list(kinds(cloud).values()) == ["c7g.xlarge"]


def is_let_go(port: int, cloud: Emulator) -> bool:
    """Whether the host has seen the machine asleep, which others stop."""
    for instance_id in living(cloud):
        cloud.control.others_stop(instance_id=instance_id)
    return got(port).status == pb.SATELLITE_STATUS_SLEEP
