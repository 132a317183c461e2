"""`bentpipe serve` with its data plane as a process of its own: either of them can be killed, and started again.

The satellite acme/one is an emulated EC2 instance, whose machine is a process of the test's: it outlives both.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import trio
import trustme

from beds.contracts.ledger import ALWAYS
from beds.hosts.one_satellite import KEY, METADATA, TOKEN, emulated_ec2
from beds.peers.clients import GrpcioClient
from beds.ports import free_port
from beds.programs import program
from bentpipe.daemon.ledger.contract import Interval
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.testbed.cloud import CREDENTIALS
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator
from bentpipe.daemon.testbed.edge_host import complete_lines, end_process

SLEEPER = SatelliteKey("acme", "sleeper")
"""A satellite that sleeps as soon as nobody uses it, so that its clients are held."""
MACHINES = "machines"
"""A folder with the certificates of machines that prove themselves."""
DEADLINE_S = 40.0
PLAIN, TLS = 0, 1
THIS_VERSION = ("-P", "-m", "bentpipe.daemon.service.entry")
LATER_VERSION = ("-P", str(Path(__file__).parents[1] / "planes" / "later_version.py"))
"""What Python runs."""


class TwoPlanes:
    """One edge host. `sections` are further parts of its configuration, `satellite` and `daemon` further keys of those.

    With `proven` its satellites serve TLS by names of their own, so that data planes may bring clients to them.
    """

    def __init__(
        self,
        folder: Path,
        emulator: Emulator,
        *,
        sections: str = "",
        satellite: str = "",
        form: str = "process",
        daemon: str = "",
        proven: bool = False,
    ) -> None:
        self.folder = folder
        self.form = form
        """Of the control plane that is started next, as the configuration has it."""
        self.emulator = emulator
        self.instances = {
            key: emulator.control.add_instance(tags={"bentpipe:fleet": "test", "bentpipe:satellite": str(key)})
            for key in (KEY, SLEEPER)
        }
        authority = trustme.CA()
        self.ca_pem = authority.cert_pem.bytes()
        self.machines = folder / MACHINES
        self.machine_authority = trustme.CA()
        if proven:
            self.machines.mkdir()
            self.machine_authority.cert_pem.write_to_path(self.machines / "ca")
            for key, instance_id in self.instances.items():
                self.identify(emulator.cloud.instances[instance_id].private_ip, key)
        server = authority.issue_cert("localhost", "127.0.0.1")
        (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
        (folder / "key.pem").write_bytes(server.private_key_pem.bytes())
        self.ports = (free_port(), free_port())
        self.planes = folder / "planes"
        self.ledger = folder / "ledger.sqlite"
        self.log_path = folder / "log"
        self.log_path.touch()
        self.config = folder / "bentpipe.toml"
        machines = emulator.cloud.machines
        assert machines is not None
        self.config.write_text(f"""
[daemon]
log_format = "json"
drain_deadline = "2s"
data_plane = "{form}"
planes = "{self.planes}"
{daemon}
[store]
path = "{self.ledger}"
{sections}
[ec2]
region = "eu-central-1"
endpoint = "{emulator.url}"
fleet = "test"
poll = "50ms"
sweep = "200ms"
[[listener]]
address = "127.0.0.1:{self.ports[PLAIN]}"
[[listener]]
address = "127.0.0.1:{self.ports[TLS]}"
[listener.tls]
certificate = "{folder / "cert.pem"}"
key = "{folder / "key.pem"}"
[[token]]
name = "test"
hash = "sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"
grants = ["acme/*"]
[[satellite]]
org = "{KEY.org}"
name = "{KEY.name}"
provider = "ec2"
min_awake = 0
retry_after = "100ms"
{satellite or 'sleep_after = "1s"'}
{self._tls_of(KEY) if proven else ""}
[satellite.ec2]
port = {machines.port}
[[satellite]]
org = "{SLEEPER.org}"
name = "{SLEEPER.name}"
provider = "ec2"
min_awake = 0
retry_after = "100ms"
sleep_after = "100ms"
{self._tls_of(SLEEPER) if proven else ""}
[satellite.ec2]
port = {machines.port}
""")
        self.control: subprocess.Popen[bytes] | None = None
        self._mark = 0

    def _tls_of(self, key: SatelliteKey) -> str:
        return f'[satellite.tls]\nca = "{self.machines / "ca"}"\nserver_name = "{key.name}.{key.org}.test"'

    def identify(self, host: str, key: SatelliteKey) -> None:
        """Give the machine at `host` a new certificate that has the satellite's name."""
        issued, path = self.machine_authority.issue_cert(f"{key.name}.{key.org}.test"), self.machines / f"{host}.pem"
        whole = path.with_suffix(".new")
        whole.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        whole.replace(path)

    def start(self, program: Sequence[str] = THIS_VERSION) -> None:
        """Start a control plane, and wait until it serves."""
        self.start_again(program)
        self.wait_serving()

    def start_again(self, program: Sequence[str] = THIS_VERSION) -> None:
        """Start a control plane without a wait."""
        self._mark = self.log_path.stat().st_size
        self.control = self.begin("serve", program)

    def start_plane(self, program: Sequence[str] = THIS_VERSION) -> subprocess.Popen[bytes]:
        """Start a data plane, and wait until the control plane has it. The caller waits for its end."""
        newer = self.begin("dataplane", program)
        self.wait(lambda: newer.pid in self.plane_pids() or newer.poll() is not None, "the newer plane is not found")
        return newer

    def begin(self, command: str, program: Sequence[str] = THIS_VERSION) -> subprocess.Popen[bytes]:
        """Start a command of this configuration. Its log is the host's."""
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *program, command, "--config", self.config],
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **CREDENTIALS},
            )

    def wait_serving(self) -> None:
        """Wait until the control plane that was started last serves."""
        said = "serving" if self.form == "process" else "listening"
        self.wait(lambda: any(r["message"] == said for r in self.records_since(self._mark)), "it does not serve")

    def end_control(self, number: signal.Signals) -> int:
        """Send the control plane a signal and wait for its end. Returns its exit code."""
        assert self.control is not None
        self.control.send_signal(number)
        return self.control.wait(DEADLINE_S)

    def wait(self, true: Callable[[], bool], words: str) -> None:
        """Wait until something is true."""
        deadline = time.monotonic() + DEADLINE_S
        while not true():
            if time.monotonic() > deadline or (self.control is not None and self.control.poll() not in (None, -9, 0)):
                raise TimeoutError(f"{words}:\n{self.log_path.read_text()[-6000:]}")
            time.sleep(0.02)

    def records(self) -> list[dict[str, object]]:
        """The lines of both planes' log."""
        return [json.loads(line) for line in complete_lines(self.log_path) if line.startswith("{")]

    def records_since(self, at: int) -> list[dict[str, object]]:
        """Those behind an offset in the log."""
        with self.log_path.open("rb") as log:
            log.seek(at)
            lines = log.read().rpartition(b"\n")[0].splitlines()
        return [json.loads(line) for line in lines if line.startswith(b"{")]

    def states(self, key: SatelliteKey = KEY) -> list[str]:
        """The states that the satellite came into, as control planes saw them."""
        changes = [r for r in self.records() if r["message"] == "satellite" and r["satellite"] == str(key)]
        return [str(record["after"]) for record in changes]

    def count(self, message: str) -> int:
        """How often this was logged."""
        return sum(record["message"] == message for record in self.records())

    def plane_pids(self) -> list[int]:
        """The data planes that control planes have connected to, newest last."""
        return [int(str(record["pid"])) for record in self.records() if record["message"] == "data plane seated"]

    def run(self, *arguments: str) -> str:
        """What the command line says."""
        command = [
            sys.executable,
            "-P",
            "-m",
            "bentpipe.daemon.service.entry",
            *arguments,
            "--config",
            str(self.config),
        ]
        done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL, check=False)
        return done.stdout.decode() + done.stderr.decode()

    def kill_plane(self) -> None:
        """Kill the newest data plane."""
        os.kill(self.plane_pids()[-1], signal.SIGKILL)

    def client(self, port: int = PLAIN, key: SatelliteKey = KEY, *, keepalive_s: float = 0) -> GrpcioClient:
        """A client of the satellite on a connection of its own."""
        metadata = (("satellite_name", key.name), *METADATA[1:])
        return GrpcioClient(self.ports[port], self.ca_pem if port == TLS else None, metadata, keepalive_s)

    def close(self) -> None:
        """End both planes, whatever their state."""
        if self.control is not None:
            end_process(self.control, DEADLINE_S)
        # By their command, not by the log: one that is starting is in no log yet.
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
                if b"dataplane" in arguments and os.fsencode(self.config) in arguments:
                    os.kill(int(entry.name), signal.SIGKILL)


class Form(TypedDict):
    """Arguments of `two_planes`."""

    satellite: str
    daemon: str
    proven: bool


def admitting_by(admission: str) -> Form:
    """A host whose clients are admitted so. With snapshots its satellites prove themselves, so that there are gates."""
    daemon = f'admission = "{admission}"'
    return {"satellite": 'sleep_after = "500ms"', "daemon": daemon, "proven": admission == "snapshot"}


def check_admitted(host: TwoPlanes, admission: str) -> None:
    """Fail unless most connections were admitted in the way that is tested."""
    spliced = [each.get("by") == "data plane" for each in host.records() if each["message"] == "spliced"]
    print(f"{sum(spliced)} of {len(spliced)} spliced connections were admitted by data planes")
    assert any(spliced) is (admission == "snapshot")


def read_intervals(path: Path) -> list[Interval]:
    """Everything that a ledger has; no daemon has it open."""

    async def read() -> list[Interval]:
        ledger = SqliteLedger(path, read_only=True)
        found = await ledger.intervals(*ALWAYS)
        await ledger.aclose()
        return found

    return trio.run(read)


@contextlib.contextmanager
def two_planes(
    folder: Path,
    *,
    sections: str = "",
    satellite: str = "",
    form: str = "process",
    daemon: str = "",
    proven: bool = False,
) -> Iterator[TwoPlanes]:
    """An edge host that serves. `daemon`: further keys of that section. `proven`: see TwoPlanes."""
    tls = (*program("machines.tls_satellite"), "{port}", "{host}", str(folder / MACHINES))
    with emulated_ec2(tls) if proven else emulated_ec2() as emulator:
        more = {"sections": sections, "satellite": satellite, "daemon": daemon}
        host = TwoPlanes(folder, emulator, form=form, proven=proven, **more)
        try:
            host.start()
            yield host
        finally:
            host.close()
