"""A daemon whose emulated EC2 machines enrol with its own certificate authority: two tenants, each with a satellite."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import trio

from beds.hosts.form import serve_file, write_in_form
from beds.peers.clients import GrpcioClient
from beds.ports import free_port
from beds.programs import program
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.service.serve import Daemon
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

DEADLINE_S = 60.0
SPEED = 100.0
MINE, THEIRS = SatelliteKey("acme", "one"), SatelliteKey("rival", "one")
CONFIG = """
[daemon]
{daemon}
drain_deadline = "100ms"
[store]
{store}
[satellite_ca]
{file}
address = "127.0.0.1:{enrolment}"
machines_call = "127.0.0.1:{enrolment}"
machine_life = "{life}"
[ec2]
region = "eu-central-1"
endpoint = "{url}"
fleet = "test"
poll = "50ms"
sweep = "200ms"
[[listener]]
address = "127.0.0.1:{listener}"
api = true
"""
SATELLITE = """
[[token]]
name = "{org}"
hash = "sha256:{hash}"
grants = ["{org}/*"]
scopes = ["manage"]
[[satellite]]
org = "{org}"
name = "one"
provider = "ec2"
min_awake = 0
wake_deadline = "20s"
retry_after = "100ms"
[satellite.ec2]
launch_template = "builder"
port = {port}
[satellite.tls]
issued = true
"""


@dataclasses.dataclass
class EnrollingCloud:
    """An emulated EC2 whose machines enrol, and the daemon's configuration."""

    emulator: Emulator
    folder: Path
    enrolment: int

    store: str = ""
    """Of [store]; by default SQLite in the folder."""
    file: Path | None = None
    """Of [satellite_ca]."""
    types: str = ""
    """Sections at the end."""
    daemon: str = ""
    """Of [daemon]."""
    port: int = 0
    """Where clients come; 0: where the kernel wants them."""

    def text(self, *, life: str = "90d") -> str:
        machines = self.emulator.cloud.machines
        assert machines is not None
        text = CONFIG.format(
            daemon=self.daemon,
            listener=self.port,
            store=self.store or f'path = "{self.folder}/ledger.sqlite"',
            file="" if self.file is None else f'file = "{self.file}"\n',
            enrolment=self.enrolment,
            url=self.emulator.url,
            life=life,
        )
        for key in (MINE, THEIRS):
            digest = hashlib.sha256(key.org.encode()).hexdigest()
            text += SATELLITE.format(org=key.org, hash=digest, port=machines.port)
        return text + self.types.format(port=machines.port)

    @contextlib.asynccontextmanager
    async def serving(self, *, life: str = "90d") -> AsyncIterator[Daemon]:
        path = self.folder / f"edge-{self.enrolment}.toml"
        write_in_form(path, self.text(life=life), path.with_suffix(""))
        async with trio.open_nursery() as nursery:
            daemon = await nursery.start(serve_file, path)
            yield daemon
            daemon.drain.set()

    def instance_of(self, key: SatelliteKey) -> str:
        (found,) = [
            instance_id
            for instance_id, each in self.emulator.cloud.instances.items()
            if each.tags.get("bentpipe:satellite") == str(key) and each.state.label in ("pending", "running")
        ]
        return found

    async def exchange_addresses(self, daemon: Daemon) -> None:
        """Let EC2 tell the one machine's address of the other, and wait until the daemon believes it."""
        one, two = (self.emulator.cloud.instances[self.instance_of(key)] for key in (MINE, THEIRS))
        with self.emulator.cloud.lock:
            one.private_ip, two.private_ip = two.private_ip, one.private_ip
        assert self.emulator.cloud.machines is not None
        port = self.emulator.cloud.machines.port
        with trio.fail_after(DEADLINE_S):
            for key, instance in ((MINE, one), (THEIRS, two)):
                while not daemon.fleet.get(key).is_at(Address(instance.private_ip, port)):
                    await trio.sleep(0.05)

    def disk_of(self, key: SatelliteKey) -> Path:
        return self.folder / "disks" / self.instance_of(key) / "etc/bentpipe"

    def bootstrap_of(self, key: SatelliteKey) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.disk_of(key) / "enrolment.json").read_text())
        return found


@contextlib.contextmanager
def enrolling_cloud(folder: Path) -> Iterator[EnrollingCloud]:
    """EC2 whose machines are satellites on this host that enrol."""
    disk = str(folder / "disks" / "{instance_id}")
    command = (*program("machines.enrolled_satellite"), "{port}", "{host}", disk)
    with Emulator(ScaledClock(SPEED), machine_command=command, machine_port=free_port()) as emulator:
        emulator.control.add_template(name="builder")
        yield EnrollingCloud(emulator, folder, free_port())


async def call(daemon: Daemon, key: SatelliteKey, words: bytes = b"hello", timeout_s: float = DEADLINE_S) -> bytes:
    names = (("satellite_name", key.name), ("satellite_org", key.org), ("satellite_token", key.org))

    def run() -> bytes:
        with contextlib.closing(GrpcioClient(daemon.addresses[0][1], None, names)) as client:
            return client.unary("Echo", words, timeout_s=timeout_s)

    return await trio.to_thread.run_sync(run)
