"""Several real daemons that share one fleet: their store is moto's DynamoDB, their cloud the EC2 emulator.

What is judged is what happened (the cloud's own log of calls), never how long it took; leases are short to be quick.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from beds.hosts.wires import CutWire
from beds.peers.clients import GrpcioClient
from beds.ports import free_port
from beds.programs import BENTPIPE
from beds.stores.dynamodb_server import DynamoDbServer
from bentpipe.daemon.api.client import Server, call
from bentpipe.daemon.coordination.dynamodb import DynamoRows
from bentpipe.daemon.coordination.rows import Row
from bentpipe.daemon.ledger.contract import Interval
from bentpipe.daemon.ledger.dynamodb import DynamoLedger
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.store.dynamodb_table import Table
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator
from bentpipe.daemon.testbed.edge_host import complete_lines
from bentpipe.proto import compute_pb2 as pb

TOKEN = "bp_test"
PATIENCE_S = 60.0
SPEED = 100.0
"""A start then takes 0.2 s, a hibernation 0.3 s."""
CLIENTS = 200
LEASE, EXPIRY = "2s", "4s"
KEY = SatelliteKey("acme", "one")
SATELLITE = (sys.executable, "-P", "-m", "bentpipe.daemon.testbed.satellite", "{port}", "--host", "{host}")


def wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"never: {what}")
        time.sleep(0.02)


@dataclasses.dataclass(frozen=True)
class Daemon:
    """One `bentpipe serve`."""

    process: subprocess.Popen[bytes]
    log: Path
    wire: CutWire

    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in complete_lines(self.log) if line.startswith("{")]

    def said(self, message: str, **fields: str) -> bool:
        return any(
            record.get("message") == message and all(words in str(record.get(k)) for k, words in fields.items())
            for record in self.records()
        )

    @property
    def port(self) -> int:
        wait(lambda: self.said("listening") or self.process.poll() is not None, "it listens")
        assert self.process.poll() is None, self.log.read_text()
        return next(int(str(record["port"])) for record in self.records() if record.get("message") == "listening")

    def client(self) -> GrpcioClient:
        metadata = (("satellite_name", KEY.name), ("satellite_org", KEY.org), ("satellite_token", TOKEN))
        return GrpcioClient(self.port, None, metadata)


@dataclasses.dataclass(frozen=True)
class World:
    """The store, the cloud, and the machine in it."""

    folder: Path
    store: DynamoDbServer
    cloud: Emulator
    instance_id: str
    table_name: str
    """moto keeps its tables for as long as the process lives."""

    def config(self, host: str, sleep_after: str, endpoint: str) -> Path:
        assert self.cloud.cloud.machines is not None
        path = self.folder / f"{host}.toml"
        path.write_text(f"""
[daemon]
log_format = "json"
drain_deadline = "100ms"
[[listener]]
address = "127.0.0.1:0"
api = true
[store]
kind = "dynamodb"
table = "{self.table_name}"
region = "eu-central-1"
endpoint = "{endpoint}"
host = "{host}"
lease = "{LEASE}"
host_expiry = "{EXPIRY}"
[[token]]
name = "test"
hash = "sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"
grants = ["acme/*"]
[ec2]
region = "eu-central-1"
endpoint = "{self.cloud.url}"
fleet = "test"
poll = "50ms"
sweep = "200ms"
[[satellite]]
org = "{KEY.org}"
name = "{KEY.name}"
provider = "ec2"
sleep_after = "{sleep_after}"
min_awake = 0
retry_after = "100ms"
[satellite.ec2]
port = {self.cloud.cloud.machines.port}
""")
        return path

    @contextlib.contextmanager
    def daemon(self, host: str, sleep_after: str = "10m") -> Iterator[Daemon]:
        log = self.folder / f"{host}.log"
        with CutWire(int(self.store.url.rpartition(":")[2])) as wire, log.open("wb") as file:
            command = [str(BENTPIPE), "serve", "--config", str(self.config(host, sleep_after, wire.url))]
            with subprocess.Popen(command, stderr=file, stdin=subprocess.DEVNULL) as process:
                daemon = Daemon(process, log, wire)
                try:
                    yield daemon
                finally:
                    # One that a failed test left stopped would hear no SIGTERM.
                    for number in (signal.SIGCONT, signal.SIGTERM):
                        process.send_signal(number)
                    process.wait(PATIENCE_S)

    def row(self) -> Row:
        return trio.run(DynamoRows(self.table()).read, KEY)

    def table(self) -> Table:
        return Table(self.table_name, region="eu-central-1", endpoint=self.store.url)

    def books(self) -> list[Interval]:
        return trio.run(DynamoLedger(self.table(), "reader").intervals, 0, 1 << 60)

    def calls(self, action: str) -> int:
        return len(self.cloud.control.calls(action=action))

    def is_asleep(self) -> bool:
        return self.cloud.control.state(instance_id=self.instance_id) == "stopped"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "AKIDONE")
    with (
        DynamoDbServer() as store,
        Emulator(ScaledClock(SPEED), machine_command=SATELLITE, machine_port=free_port()) as cloud,
    ):
        instance_id = cloud.control.add_instance(tags={"bentpipe:fleet": "test", "bentpipe:satellite": str(KEY)})
        world = World(tmp_path, store, cloud, instance_id, f"bentpipe-{uuid.uuid4().hex}")
        made = subprocess.run(
            [BENTPIPE, "store", "init", "--config", world.config("init", "1h", store.url)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        assert made.stdout == f"table {world.table_name}: made\n"
        yield world


def test_two_hundred_clients_over_three_hosts_wake_it_once(world: World) -> None:
    with contextlib.ExitStack() as stack:
        daemons = [stack.enter_context(world.daemon(f"edge-{number}")) for number in range(3)]
        clients = [daemons[number % 3].client() for number in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(lambda client: client.unary("Echo", b"hello", timeout_s=PATIENCE_S), clients))
        assert answers == [b"hello"] * CLIENTS
        assert world.calls("StartInstances") == 1
        assert world.cloud.control.starts(instance_id=world.instance_id) == 1
        users = {each.partition("/")[0] for each in world.row().entered}
        assert users == {"edge-0", "edge-1", "edge-2"}
        for client in clients:
            client.close()
    found = world.books()
    assert all(before.to_us == after.from_us for before, after in itertools.pairwise(found))
    assert 0 < sum(interval.facts.waits.clients for interval in found) <= CLIENTS
    report = subprocess.run(
        [BENTPIPE, "report", "--config", world.folder / "init.toml", "--json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert json.loads(report.stdout)["everything"]["wakes"] == 1


def test_a_hundred_reserves_over_two_hosts_start_it_once(world: World) -> None:
    """Each caller hears states in a legal order, and the satellite is kept awake for each host's callers."""

    def reserve(daemon: Daemon) -> list[str]:
        server = Server(f"http://127.0.0.1:{daemon.port}", TOKEN)
        request = pb.ReserveSatelliteRequest(org_id=KEY.org, name=KEY.name)
        answers = call(server, "/api.public.compute.Compute/ReserveSatellite", request, pb.ReserveSatelliteResponse)
        return [pb.SatelliteStatus.Name(each.status).removeprefix("SATELLITE_STATUS_") for each in answers]

    with world.daemon("edge-0", "1s") as first, world.daemon("edge-1", "1s") as second:
        with ThreadPoolExecutor(100) as pool:
            streams = list(pool.map(reserve, [first, second] * 50))
        assert world.calls("StartInstances") == 1
        assert world.cloud.control.starts(instance_id=world.instance_id) == 1
        for states in streams:
            assert re.fullmatch("(SLEEP )?(STARTING )*OPERATIONAL", " ".join(states)), states
        time.sleep(3.0)
        assert not world.is_asleep(), "it is reserved, though sleep_after is over"
        assert {each.partition("/")[0] for each in world.row().entered} == {"edge-0", "edge-1"}


def test_an_owner_that_is_killed_while_it_starts_is_replaced(world: World) -> None:
    with world.daemon("edge-0") as first, world.daemon("edge-1") as second, ThreadPoolExecutor(2) as pool:
        world.cloud.control.hold(action="StartInstances")
        lost, kept = first.client(), second.client()
        pool.submit(lost.unary, "Echo", b"hello")
        wait(lambda: world.calls("StartInstances") or world.row().owner.startswith("edge-0/"), "edge-0 acts")
        answer = pool.submit(kept.unary, "Echo", b"hello", timeout_s=PATIENCE_S)
        wait(lambda: any(each.startswith("edge-1/") for each in world.row().entered), "edge-1 wants it")
        assert world.row().owner.startswith("edge-0/")
        os.kill(first.process.pid, signal.SIGKILL)
        wait(lambda: second.said("turn taken over"), "edge-1 takes over")
        world.cloud.control.release(action="StartInstances")
        assert answer.result(PATIENCE_S) == b"hello"
        assert world.cloud.control.starts(instance_id=world.instance_id) == 1
        lost.close()
        kept.close()


def test_an_owner_that_was_paused_cannot_stop_a_machine_in_use(world: World) -> None:
    """Between the write that closes the row and the call that stops the machine: the worst moment there is."""
    paused: list[int] = []
    with world.daemon("edge-0", sleep_after="300ms") as owner, world.daemon("edge-1") as other:

        def pause(body: bytes) -> None:
            if b"closing = :closing" in body and not paused:
                paused.append(owner.process.pid)
                os.kill(owner.process.pid, signal.SIGSTOP)

        world.store.after = pause
        first = owner.client()
        assert first.unary("Echo", b"hello") == b"hello"
        first.close()
        wait(lambda: paused, "edge-0 closes the row")
        client = other.client()
        assert client.unary("Echo", b"hello", timeout_s=PATIENCE_S) == b"hello"
        assert other.said("turn taken over", **{"from": "edge-0/"})
        assert world.calls("StopInstances") == 0
        os.kill(owner.process.pid, signal.SIGCONT)
        wait(lambda: owner.said("sleep refused"), "edge-0 finds out")
        assert client.unary("Echo", b"again") == b"again"
        assert world.calls("StopInstances") == 0
        assert world.cloud.control.starts(instance_id=world.instance_id) == 1
        client.close()


@pytest.mark.slow  # with real daemons; tests/daemon/fleet/test_coordinated.py has it without
def test_a_host_without_the_store_serves_and_puts_nobody_to_sleep(world: World) -> None:
    with world.daemon("edge-0", sleep_after="300ms") as cut, world.daemon("edge-1") as other:
        client = other.client()
        assert client.unary("Echo", b"hello", timeout_s=PATIENCE_S) == b"hello"
        cut.wire.cut()
        ours = cut.client()
        assert ours.unary("Echo", b"hello", timeout_s=PATIENCE_S) == b"hello"
        ours.close()
        wait(lambda: cut.said("sleep refused"), "edge-0 would put it to sleep")
        assert client.unary("Echo", b"again") == b"again"
        assert world.calls("StopInstances") == 0
        cut.wire.heal()
        wait(lambda: cut.said("sleep refused", error="in use at edge-1"), "edge-0 knows who uses it")
        assert world.calls("StopInstances") == 0
        client.close()


@pytest.mark.slow  # with real daemons; tests/daemon/fleet/test_coordinated.py has it without
def test_a_dead_hosts_machine_falls_asleep(world: World) -> None:
    with world.daemon("edge-0", sleep_after="300ms") as left, world.daemon("edge-1") as dead:
        client = dead.client()
        assert client.unary("Echo", b"hello", timeout_s=PATIENCE_S) == b"hello"
        wait(lambda: left.said("sleep refused", error="in use at edge-1"), "edge-1 is known to use it")
        assert world.calls("StopInstances") == 0
        os.kill(dead.process.pid, signal.SIGKILL)
        wait(world.is_asleep, "nobody is left, and it sleeps")
        assert left.said("a host is gone", host="edge-1/")
        client.close()


def test_an_owner_that_was_paused_repeats_no_stop(world: World) -> None:
    """Its call is under way when it is paused, and the connection breaks when it goes on: another has had the turn since."""
    with world.daemon("edge-0", sleep_after="300ms") as owner, world.daemon("edge-1") as other:
        control = world.cloud.control
        control.hold(action="StopInstances")
        first = owner.client()
        assert first.unary("Echo", b"hello") == b"hello"
        first.close()
        wait(lambda: control.held(action="StopInstances"), "edge-0 puts it to sleep")
        os.kill(owner.process.pid, signal.SIGSTOP)
        client = other.client()
        assert client.unary("Echo", b"hello", timeout_s=PATIENCE_S) == b"hello"
        assert other.said("turn taken over", **{"from": "edge-0/"})
        control.reset(action="StopInstances")
        control.release(action="StopInstances")
        os.kill(owner.process.pid, signal.SIGCONT)
        wait(lambda: owner.said("sleep refused"), "edge-0 finds out")
        time.sleep(2.0)
        assert client.unary("Echo", b"again") == b"again"
        assert [call.outcome for call in control.calls(action="StopInstances")] == ["reset"]
        assert world.cloud.control.starts(instance_id=world.instance_id) == 1
        client.close()
