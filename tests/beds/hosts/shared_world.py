"""Several `bentpipe serve` that share one fleet: their store is moto's DynamoDB, their cloud the EC2 emulator."""

import contextlib
import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trustme

from beds.hosts.form import end_planes_in
from beds.hosts.wires import CutWire
from beds.peers.clients import GrpcioClient
from beds.ports import free_port
from beds.programs import BENTPIPE, program
from beds.stores.dynamodb_server import DynamoDbServer
from bentpipe.daemon.coordination.dynamodb import DynamoRows
from bentpipe.daemon.coordination.rows import Row
from bentpipe.daemon.ledger.contract import Interval
from bentpipe.daemon.ledger.dynamodb import DynamoLedger
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.store.dynamodb_table import Table
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator
from bentpipe.daemon.testbed.edge_host import complete_lines

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
    tls: str = ""
    """The satellite's section. With one, clients are admitted by snapshots."""

    def config(self, host: str, sleep_after: str, endpoint: str, port: int = 0) -> Path:
        """`port`: that of clients, whose connections then live in a data plane of its own."""
        assert self.cloud.cloud.machines is not None
        path = self.folder / f"{host}.toml"
        path.write_text(f"""
[daemon]
log_format = "json"
drain_deadline = "100ms"
{f'data_plane = "process"{chr(10)}planes = "{self.folder / host}-planes"' if port else 'data_plane = "inside"'}
{'admission = "snapshot"' if port and self.tls else ""}
[[listener]]
address = "127.0.0.1:{port}"
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
{self.tls}
[satellite.ec2]
port = {self.cloud.cloud.machines.port}
""")
        return path

    @contextlib.contextmanager
    def daemon(self, host: str, sleep_after: str = "10m", port: int = 0) -> Iterator[Daemon]:
        """`port`: see `config`. At the end the daemon is stopped, if it runs still."""
        log = self.folder / f"{host}.log"
        with CutWire(int(self.store.url.rpartition(":")[2])) as wire, log.open("ab") as file:
            command = [str(BENTPIPE), "serve", "--config", str(self.config(host, sleep_after, wire.url, port))]
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


def identify(machines: Path, host: str) -> str:
    """Make an authority, and the certificate of the machine at `host`. Returns the satellite's section."""
    machines.mkdir()
    authority, name = trustme.CA(), f"{KEY.name}.{KEY.org}.test"
    authority.cert_pem.write_to_path(machines / "ca")
    authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(machines / f"{host}.pem")
    return f'[satellite.tls]\nca = "{machines / "ca"}"\nserver_name = "{name}"'


@contextlib.contextmanager
def shared_world(folder: Path, monkeypatch: pytest.MonkeyPatch, *, proven: bool = False) -> Iterator[World]:
    """A store with its table, and a cloud with the satellite's machine, which is stopped.

    With `proven` the machine serves TLS by a name of its own, and data planes bring clients to it.
    """
    machines = folder / "machines"
    command = (*program("machines.tls_satellite"), "{port}", "{host}", str(machines)) if proven else SATELLITE
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "AKIDONE")
    with (
        DynamoDbServer() as store,
        Emulator(ScaledClock(SPEED), machine_command=command, machine_port=free_port()) as cloud,
    ):
        instance_id = cloud.control.add_instance(tags={"bentpipe:fleet": "test", "bentpipe:satellite": str(KEY)})
        tls = identify(machines, cloud.cloud.instances[instance_id].private_ip) if proven else ""
        world = World(folder, store, cloud, instance_id, f"bentpipe-{uuid.uuid4().hex}", tls)
        made = subprocess.run(
            [BENTPIPE, "store", "init", "--config", world.config("init", "1h", store.url)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        assert made.stdout == f"table {world.table_name}: made\n"
        try:
            yield world
        finally:
            for planes in folder.glob("*-planes"):
                end_planes_in(planes)
