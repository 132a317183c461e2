"""The reserve of warm machines: a daemon over emulated EC2, with faults at each call, kills, and two hosts."""

import contextlib
import dataclasses
import functools
import itertools
import json
import random
import sys
import time
import uuid
from pathlib import Path

import pytest
import trio

from beds.hosts.edge_daemons import edge_daemon
from beds.hosts.provisioned import (
    DEADLINE_S,
    KEY,
    ask,
    client_of,
    ec2_text,
    ec2_type,
    in_thread,
    kill_in,
    killed,
    launch,
    living,
    remove,
    serving,
    until,
)
from beds.ports import free_port
from beds.stores.dynamodb_server import DynamoDbServer
from bentpipe.daemon.api.client import Server
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.fleet import reserve_keeper, reserve_rules
from bentpipe.daemon.fleet.reserve_giver import Given
from bentpipe.daemon.ids import reserve_key
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.providers.ec2 import provider as ec2_provider
from bentpipe.daemon.providers.ec2.traits import TRAITS
from bentpipe.daemon.registry.reserve import SpareState, StoredSpare
from bentpipe.daemon.registry.sqlite_reserve import SqliteReserveStore
from bentpipe.daemon.service.exposition import Exposition
from bentpipe.daemon.service.sat import Asker, run_list
from bentpipe.daemon.service.serve import Daemon
from bentpipe.daemon.service.top import run_top
from bentpipe.daemon.store.dynamodb_table import Table
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator
from bentpipe.proto import operations_pb2
from bentpipe.proto.grpc_status import GrpcStatus

GRACE_S = 1.0


@pytest.fixture
def cloud(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    monkeypatch.setattr(ec2_provider, "TRAITS", dataclasses.replace(TRAITS, appear_grace_s=GRACE_S))
    monkeypatch.setattr(ec2_provider, "UNSEEN_GRACE_S", GRACE_S)
    monkeypatch.setattr(reserve_keeper, "MOVING_S", 0.05)
    monkeypatch.setattr(reserve_keeper, "RESTING_S", 0.2)
    monkeypatch.setattr(reserve_keeper, "TOO_EARLY_S", 0.1)
    monkeypatch.setattr(reserve_keeper, "UNANSWERED_S", 0.2)
    monkeypatch.setattr(reserve_keeper, "ORPHAN_S", 0.5)
    monkeypatch.setattr(reserve_rules, "UNSEEN_S", GRACE_S)
    monkeypatch.setattr(reserve_rules, "FAILURE_FIRST_S", 0.5)
    emulator.control.add_template(name="builder")
    return emulator


def text_of(folder: Path, cloud: Emulator, *, reserve: int = 1, settings: str = "", machine: str = "") -> str:
    return ec2_text(folder, cloud, types=ec2_type(cloud, settings=f"reserve = {reserve}\n{settings}", machine=machine))


def tagged(cloud: Emulator, key: str = str(KEY)) -> list[str]:
    """The living machines with a satellite's tag."""
    return [each for each in living(cloud) if cloud.cloud.instances[each].tags.get("bentpipe:satellite") == key]


def given(daemon: Daemon) -> dict[Given, int]:
    """What came of launches, by outcome."""
    assert daemon.reserve is not None
    return dict(+daemon.reserve.given.counts)


def is_awake(daemon: Daemon, name: str) -> bool:
    return daemon.fleet.get(SatelliteKey(KEY.org, name)).state is SatelliteState.OPERATIONAL


async def ends_well(daemon: Daemon, cloud: Emulator, number: int = 1) -> None:
    """The satellite has one machine, the reserve has its number, and nothing else lives."""
    await filled(daemon, number)
    await until(lambda: len(living(cloud)) == number + 1, "nothing else lives")
    (machine,) = tagged(cloud)
    await until(lambda: "bentpipe:reserve" not in cloud.cloud.instances[machine].tags, "the reserve's tag is gone")
    assert daemon.reserve is not None
    assert machine not in {each.instance for each in daemon.reserve.view.rows}


async def filled(daemon: Daemon, number: int = 1) -> list[str]:
    """Wait until the reserve is ready. Returns its machines."""
    keeper = daemon.reserve
    assert keeper is not None
    await until(
        lambda: sum(each.state is SpareState.READY for each in keeper.view.rows) == number, "the reserve is ready"
    )
    return [each.instance for each in keeper.view.rows if each.state is SpareState.READY]


def echo(port: int, words: bytes = b"hello") -> bytes:
    with contextlib.closing(client_of(port)) as client:
        return client.unary("Echo", words, timeout_s=DEADLINE_S)


async def test_a_new_satellite_gets_a_machine_of_the_reserve(tmp_path: Path, cloud: Emulator) -> None:
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        (first,) = await filled(daemon)
        spare = cloud.cloud.instances[first]
        assert spare.state.label == "stopped"
        assert spare.reason is not None
        assert spare.reason.code == "Client.UserInitiatedHibernate"
        assert set(spare.tags) == {"bentpipe:fleet", "bentpipe:reserve"}
        assert spare.volume_tags == spare.tags
        booted = spare.boot_id

        def drive() -> None:
            began = time.monotonic()
            assert launch(port)[0] is GrpcStatus.OK
            assert echo(port) == b"hello"
            print(f"from the reserve: {time.monotonic() - began:.2f} s of this clock")

        await in_thread(drive)
        assert spare.tags["bentpipe:satellite"] == str(KEY)
        assert spare.boot_id == booted, "it has resumed"
        await until(lambda: set(spare.tags) == {"bentpipe:fleet", "bentpipe:satellite"}, "the reserve's tag is gone")
        assert spare.volume_tags == spare.tags
        (second,) = await filled(daemon)
        assert second != first
        assert len(living(cloud)) == 2
        await in_thread(lambda: remove(port, force=True))
        assert living(cloud) == [second], "a removed satellite's machine is terminated, and never goes back"


CALLS = ("StartInstances", "CreateTags")
FAULTS = ("refused", "no capacity", "throttled", "broken before", "broken after")


BY_DEFAULT = {("StartInstances", "no capacity"), ("CreateTags", "broken after")}
CASES = [
    pytest.param(*case, marks=() if case in BY_DEFAULT else pytest.mark.slow)
    for case in itertools.product(CALLS, FAULTS)
]


@pytest.mark.parametrize(("action", "fault"), CASES)
async def test_a_fault_at_any_call_holds_the_client_and_leaves_nothing(
    tmp_path: Path, cloud: Emulator, action: str, fault: str
) -> None:
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        await filled(daemon)
        match fault:
            case "refused":
                cloud.control.fail(action=action, code="UnauthorizedOperation", status=403, times=1)
            case "no capacity":
                cloud.control.fail(action=action, code="InsufficientInstanceCapacity", status=500, times=1)
            case "throttled":
                cloud.control.fail(action=action, code="RequestLimitExceeded", status=503, times=1)
            case _:
                cloud.control.reset(action=action, times=3, after=fault == "broken after")
        await in_thread(lambda: launch(port))
        await in_thread(lambda: echo(port))
        await ends_well(daemon, cloud)
        expected = {Given.FAILED: 1} if fault in ("refused", "no capacity") else {Given.RESERVE: 1}
        assert given(daemon).items() >= expected.items() or fault.startswith("broken")


@pytest.mark.parametrize(
    "script",
    [
        {"on_start": "no-capacity"},
        pytest.param({"on_start": "no-key"}, marks=pytest.mark.slow),
        {"new_address": True},
    ],
)
async def test_a_machine_that_does_not_come_up_is_replaced_while_its_client_waits(
    tmp_path: Path, cloud: Emulator, monkeypatch: pytest.MonkeyPatch, script: dict[str, str | bool]
) -> None:
    monkeypatch.setattr(reserve_keeper, "GIVE_UP_S", 1.5)
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        (spare,) = await filled(daemon)
        cloud.control.script(instance_id=spare, **script)  # type: ignore[arg-type]
        await in_thread(lambda: launch(port))
        await in_thread(lambda: echo(port))
        await ends_well(daemon, cloud)
        assert spare not in living(cloud)


async def test_an_empty_reserve_leads_to_an_ordinary_launch(tmp_path: Path, cloud: Emulator) -> None:
    cloud.control.set_timing(name="pending_s", seconds=200.0)
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        await in_thread(lambda: launch(port))
        assert given(daemon) == {Given.EMPTY: 1}
        cloud.control.set_timing(name="pending_s", seconds=1.0)
        await in_thread(lambda: echo(port))


async def test_what_happens_to_machines_in_the_reserve(tmp_path: Path, cloud: Emulator) -> None:
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        (first,) = await filled(daemon)
        starts = cloud.control.starts(instance_id=first)
        cloud.control.others_start(instance_id=first)
        await until(lambda: cloud.control.starts(instance_id=first) > starts, "others have started it")
        await until(lambda: cloud.control.state(instance_id=first) == "running", "it runs")
        await until(lambda: cloud.control.state(instance_id=first) == "stopped", "it is laid down again")
        assert await filled(daemon) == [first]
        cloud.control.others_terminate(instance_id=first)
        await until(lambda: living(cloud) not in ([], [first]), "another one is launched")
        (second,) = await filled(daemon)
        assert second != first
        assert daemon.reserve is not None
        assert daemon.reserve.failures == 1


async def test_a_refused_hibernation_is_a_stop(tmp_path: Path, cloud: Emulator) -> None:
    cloud.control.fail(action="StopInstances", code="UnsupportedHibernationConfiguration", status=400, times=1)
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        (spare,) = await filled(daemon)
        reason = cloud.cloud.instances[spare].reason
        assert reason is not None
        assert reason.code == "Client.UserInitiatedShutdown"
        port = daemon.addresses[0][1]
        await in_thread(lambda: launch(port))
        await in_thread(lambda: echo(port))
        assert tagged(cloud) == [spare], "it boots, which is quicker than a launch"


async def test_a_refused_launch_waits_and_does_not_hinder_tenants(tmp_path: Path, cloud: Emulator) -> None:
    cloud.control.fail(action="RunInstances", code="InsufficientInstanceCapacity", status=500, times=2)
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        keeper = daemon.reserve
        assert keeper is not None
        await until(lambda: any(each.failures for each in keeper.view.rows), "it was refused")
        began = time.monotonic()
        await filled(daemon)
        assert keeper.failures == 2
        assert time.monotonic() - began >= reserve_rules.FAILURE_FIRST_S, "it has waited"


async def test_a_change_of_the_configuration_empties_and_fills_it(tmp_path: Path, cloud: Emulator) -> None:
    async with serving(tmp_path, text_of(tmp_path, cloud, reserve=2)) as daemon:
        before = await filled(daemon, 2)
    other = text_of(tmp_path, cloud, reserve=1, machine='instance_type = "m7i.large"')
    async with serving(tmp_path, other) as daemon:
        await until(lambda: not set(living(cloud)) & set(before), "the old ones are destroyed")
        (after,) = await filled(daemon)
        assert cloud.cloud.instances[after].instance_type == "m7i.large"
    async with serving(tmp_path, text_of(tmp_path, cloud, reserve=0)) as daemon:
        await until(lambda: not living(cloud), "none is wanted")
        keeper = daemon.reserve
        assert keeper is not None
        await until(lambda: keeper.view.rows == (), "the store is empty too")


async def test_machines_that_no_row_knows_are_destroyed(tmp_path: Path, cloud: Emulator) -> None:
    tags = {"bentpipe:fleet": "test", "bentpipe:reserve": f"small/linux/amd64/{uuid.uuid4().hex}"}
    orphan = cloud.control.add_instance(tags=tags)
    others = cloud.control.add_instance(tags={**tags, "bentpipe:fleet": "staging"})
    theirs = cloud.control.add_instance(tags={**tags, "bentpipe:satellite": "acme/other"})
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        await until(lambda: orphan not in living(cloud), "the orphan is destroyed")
        await until(lambda: "bentpipe:reserve" not in cloud.cloud.instances[theirs].tags, "it is its satellite's")
        (spare,) = await filled(daemon)
        assert set(living(cloud)) == {others, theirs, spare}


async def test_a_store_that_fails_in_the_middle_holds_the_client(
    tmp_path: Path, cloud: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write is carried out, and its answer is lost; the second is not carried out."""
    failing: list[str] = []
    put = SqliteReserveStore.put

    async def failing_put(self: SqliteReserveStore, row: StoredSpare) -> bool:
        if row.state is not SpareState.TAKEN or not failing:
            return await put(self, row)
        if failing.pop() == "after":
            await put(self, row)
        raise StoreError("the disk is full")

    monkeypatch.setattr(SqliteReserveStore, "put", failing_put)
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        for order in (["after"], ["before"]):
            (spare,) = await filled(daemon)
            failing[:] = order
            await in_thread(lambda: launch(port))
            await in_thread(lambda: echo(port))
            assert not failing
            await ends_well(daemon, cloud)
            assert tagged(cloud) == [spare]
            await in_thread(lambda: remove(port, force=True))


KILLED_AT = [
    *((action, after) for action in ("StartInstances", "CreateTags") for after in (False, True)),
    ("DeleteTags", False),
    ("DeleteTags", True),
]


@pytest.mark.parametrize(
    ("action", "after"),
    [each if number == 1 else pytest.param(*each, marks=pytest.mark.slow) for number, each in enumerate(KILLED_AT)],
)
async def test_a_daemon_killed_while_it_gives_a_machine_away(
    tmp_path: Path, cloud: Emulator, action: str, after: bool
) -> None:
    text = text_of(tmp_path, cloud)
    async with serving(tmp_path, text) as daemon:
        (spare,) = await filled(daemon)

    def drive(port: int) -> None:
        launch(port)
        echo(port)

    await kill_in(tmp_path, text, cloud, action, drive, after=after)
    async with serving(tmp_path, text) as daemon:
        port = daemon.addresses[0][1]
        await in_thread(lambda: launch(port))
        await in_thread(lambda: echo(port))
        await ends_well(daemon, cloud)
        assert tagged(cloud) == [spare], "the launch goes on with its machine"


FILLED_AT = [(action, after) for action in ("RunInstances", "StopInstances") for after in (False, True)]


@pytest.mark.parametrize(
    ("action", "after"),
    [each if number == 1 else pytest.param(*each, marks=pytest.mark.slow) for number, each in enumerate(FILLED_AT)],
)
async def test_a_daemon_killed_while_it_fills_the_reserve(
    tmp_path: Path, cloud: Emulator, action: str, after: bool
) -> None:
    text = text_of(tmp_path, cloud)
    await kill_in(tmp_path, text, cloud, action, lambda port: time.sleep(DEADLINE_S), after=after)
    async with serving(tmp_path, text) as daemon:
        (spare,) = await filled(daemon)
        assert living(cloud) == [spare]
        assert len(cloud.control.describe()) == 1, "it was taken up"


@pytest.mark.slow
async def test_a_satellite_that_is_removed_in_the_middle_takes_its_machine_with_it(
    tmp_path: Path, cloud: Emulator
) -> None:
    text = text_of(tmp_path, cloud)
    async with serving(tmp_path, text) as daemon:
        (spare,) = await filled(daemon)
    await kill_in(tmp_path, text, cloud, "CreateTags", launch)
    async with serving(tmp_path, text) as daemon:
        port = daemon.addresses[0][1]
        await in_thread(lambda: remove(port, force=True))
        await until(lambda: spare not in living(cloud), "it is destroyed")
        (after,) = await filled(daemon)
        assert living(cloud) == [after]


@pytest.mark.slow
async def test_how_long_a_first_build_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In seconds of the emulated clock, for people: a boot takes 34 s until cloud-init and BuildKit are done."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "AKIDONE")
    monkeypatch.setattr(reserve_keeper, "MOVING_S", 0.05)
    monkeypatch.setattr(reserve_keeper, "TOO_EARLY_S", 0.1)
    speed, boot_s = 20.0, 34.0
    module = ("-P", "-m", "bentpipe.daemon.testbed.satellite")
    command = (sys.executable, *module, "{port}", "--host", "{host}", "--boot", str(boot_s / speed))
    waits: list[float] = []
    with Emulator(ScaledClock(speed), machine_command=command, machine_port=free_port()) as emulator:
        emulator.control.add_template(name="builder")
        for reserve in (1, 0):
            folder = tmp_path / str(reserve)
            folder.mkdir()
            async with serving(folder, text_of(folder, emulator, reserve=reserve)) as daemon:
                port = daemon.addresses[0][1]
                if reserve:
                    await filled(daemon)
                began = time.monotonic()
                await in_thread(functools.partial(launch, port))
                await in_thread(functools.partial(echo, port))
                waits.append((time.monotonic() - began) * speed)
                expected = {Given.RESERVE: 1} if reserve else {}
                assert given(daemon) == expected
                await in_thread(functools.partial(remove, port, force=True))
    with capsys.disabled():
        print(
            f"\nfrom the reserve {waits[0]:.0f} s, by an ordinary launch {waits[1]:.0f} s, at {speed:g} times the speed"
        )


async def test_tenants_of_two_hosts_never_get_one_machine(tmp_path: Path, cloud: Emulator) -> None:
    names = [f"s{number}" for number in range(6)]
    with DynamoDbServer() as server:
        table = uuid.uuid4().hex
        Table(table, region="eu-central-1", endpoint=server.url).create_now()
        shared = f'kind = "dynamodb"\ntable = "{table}"\nregion = "eu-central-1"\nendpoint = "{server.url}"\n'
        types = ec2_type(cloud, settings="reserve = 2")
        texts = {host: ec2_text(tmp_path, cloud, shared + f'host = "{host}"', types=types) for host in ("a", "b")}
        async with serving(tmp_path, texts["a"], "a") as a, serving(tmp_path, texts["b"], "b") as b:
            spares = set(await filled(a, 2))
            assert len(living(cloud)) == 2, "the reserve is filled once and not for each host"
            ports = [daemon.addresses[0][1] for daemon in (a, b)]
            async with trio.open_nursery() as nursery:
                for number, name in enumerate(names):
                    nursery.start_soon(in_thread, functools.partial(launch, ports[number % 2], name=name))
            await until(lambda: all(len(tagged(cloud, f"acme/{name}")) == 1 for name in names), "each has a machine")
            machines = [tagged(cloud, f"acme/{name}")[0] for name in names]
            assert len(set(machines)) == len(names)
            assert spares <= set(machines)
            counts = [given(daemon).get(Given.RESERVE, 0) for daemon in (a, b)]
            assert sum(counts) >= 2


async def test_it_is_filled_only_while_the_awake_budget_has_room(tmp_path: Path, cloud: Emulator) -> None:
    """max_awake is 2."""
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        port = daemon.addresses[0][1]
        for name in ("one", "two"):
            await filled(daemon)
            await in_thread(functools.partial(launch, port, name=name))
            await until(functools.partial(is_awake, daemon, name), "it is awake")
        keeper = daemon.reserve
        assert keeper is not None
        await until(lambda: [each.state for each in keeper.view.rows] == [SpareState.FILLING], "its place is free")
        launches = keeper.launches
        await trio.sleep(10 * reserve_keeper.MOVING_S)
        assert (keeper.launches, len(living(cloud))) == (launches, 2)
        await in_thread(lambda: remove(port, name="two", force=True))
        await filled(daemon)


async def test_the_commands_show_it(tmp_path: Path, cloud: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(tmp_path, text_of(tmp_path, cloud)) as daemon:
        asker = Asker(Server(f"http://127.0.0.1:{daemon.addresses[0][1]}", "manager"), KEY.org, as_json=False)
        await filled(daemon)
        await in_thread(lambda: run_list(asker))
        line = "reserve of small (linux/amd64): 1 of 1 ready, 0 filling"
        assert line in capsys.readouterr().out
        await in_thread(lambda: run_top(asker, 1.0, once=True))
        assert line in capsys.readouterr().out
        await in_thread(lambda: run_top(dataclasses.replace(asker, as_json=True), 1.0, once=True))
        (shown,) = json.loads(capsys.readouterr().out)["reserve"]
        assert (shown["size"], shown["wanted"], shown["ready"]) == ("small", 1, 1)
        metrics = (await Exposition(daemon).make(""))[0].decode()
        assert 'bentpipe_reserve_machines{platform="linux/amd64",size="small",state="ready"} 1.0' in metrics
        assert "bentpipe_reserve_launches_total 1.0" in metrics
        assert 'bentpipe_reserve_given_total{outcome="empty"} 0.0' in metrics
    intervals = await SqliteLedger(tmp_path / "ledger.sqlite", read_only=True).intervals(0, int(time.time() * 1e6))
    states = [each.state for each in intervals if each.key == reserve_key("small", "linux/amd64", 0)]
    assert SatelliteState.STARTING in states, "its hours awake are in the ledger"
    assert SatelliteState.SLEEP in states


async def test_those_who_may_launch_see_it(tmp_path: Path, cloud: Emulator) -> None:
    async with serving(tmp_path, text_of(tmp_path, cloud, reserve=1)) as daemon:
        port = daemon.addresses[0][1]
        await filled(daemon)

        def shown(token: str) -> list[tuple[str, int, int]]:
            request = operations_pb2.GetActivityRequest(org_id=KEY.org)
            path = "/bentpipe.operations.Operations/GetActivity"
            status, words, answer = ask(port, path, request, token)
            assert status is GrpcStatus.OK, words
            found = operations_pb2.GetActivityResponse.FromString(answer).reserve
            return [(each.size, each.wanted, each.ready) for each in found]

        assert await trio.to_thread.run_sync(shown, "manager") == [("small", 1, 1)]
        assert await trio.to_thread.run_sync(shown, "user") == []


@pytest.mark.slow
async def test_kills_at_random_moments_leave_one_machine_each(tmp_path: Path, cloud: Emulator) -> None:
    """Processes with the usual times, killed again and again while satellites are launched and the reserve is filled."""
    chance = random.Random(7)
    text = text_of(tmp_path, cloud, reserve=2).replace("max_awake = 2", "max_awake = 20")
    names = [f"s{number}" for number in range(6)]
    for name in names:
        with edge_daemon(tmp_path, text) as daemon, killed(daemon):
            port = daemon.port
            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, functools.partial(try_launch, port, name))
                await trio.sleep(chance.uniform(0.5, 4.0))
                nursery.cancel_scope.cancel()
    async with serving(tmp_path, text) as last:
        port = last.addresses[0][1]
        for name in names:
            await in_thread(functools.partial(launch, port, name=name))
        await filled(last, 2)
        await until(lambda: len(living(cloud)) == len(names) + 2, "nothing else lives")
        machines = [machine for name in names for machine in tagged(cloud, f"{KEY.org}/{name}")]
        assert len(set(machines)) == len(machines) == len(names)


def try_launch(port: int, name: str) -> None:
    with contextlib.suppress(Exception):  # the daemon is killed in the middle
        launch(port, name=name)
