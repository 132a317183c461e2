"""The demo's edge host: certificates, configuration, and a real `bentpipe serve` in a process of its own."""

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

from bentpipe.daemon.model import SatelliteState

ORG = "acme"
DATA_PLANE = os.environ.get("BENTPIPE_TESTBED_DATA_PLANE", "inside")
"""The form of the daemons that a run of the tests starts: "inside" or "process"."""
ADMISSION = os.environ.get("BENTPIPE_TESTBED_ADMISSION", "auto")
"""As in the configuration."""
START_DEADLINE_S = 120.0
"""It ends what hangs. The first start after an installation compiles every module: on a busy machine over 20 s."""
STOP_DEADLINE_S = 40.0
CLOCK_TICKS_S = 1 / os.sysconf("SC_CLK_TCK")
MAIN_THREAD = "trio"
SERVING = "serving"
"""What a daemon logs whose data plane is a process of its own, once it takes clients."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoggedChange:
    """A satellite's new state, as the daemon's log has it; `at` in seconds since the epoch."""

    satellite: str
    state: SatelliteState
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class DemoSatellite:
    """A satellite of the demo: its name, and further arguments of the demo's own satellite, or another program."""

    name: str
    arguments: tuple[str, ...] = ()
    command: tuple[str, ...] = (sys.executable, "-P", "-m", "bentpipe.daemon.testbed.satellite", "{port}")

    def sections(self) -> str:
        """Its provider's part of the configuration."""
        command = json.dumps([*self.command, *self.arguments])
        return f'[satellite.process]\ncommand = {command}\nstop_grace = "3s"'


@dataclasses.dataclass(frozen=True, slots=True)
class CloudSatellite:
    """A satellite of the demo that is an EC2 instance; `settings` are further keys of its [[satellite]]."""

    name: str
    instance_id: str
    port: int
    settings: str = ""

    def sections(self) -> str:
        """Its provider's part of the configuration."""
        own = f'instance_id = "{self.instance_id}"\nport = {self.port}'
        return f'provider = "ec2"\n{self.settings}\n[satellite.ec2]\n{own}'


def end_process(process: subprocess.Popen[bytes], deadline_s: float) -> None:
    """Ask a process to end, and kill it if it has not ended after `deadline_s`. Does nothing if it has ended."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(deadline_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def complete_lines(log_path: Path) -> list[str]:
    """The lines of a log that is being written. The last line may be incomplete."""
    return log_path.read_text().rpartition("\n")[0].splitlines()


class EdgeHost:
    """Runs the daemon on a free port with TLS, in a temporary folder that is removed at its end.

    The log is JSON lines in `log_path`. `settings` are further sections of its configuration.
    """

    def __init__(
        self,
        satellites: Sequence[DemoSatellite | CloudSatellite],
        *,
        sleep_after_s: float,
        drain_deadline_s: float = 20,
        wake_deadline_s: float = 30,
        ledger: Path | None = None,
        settings: str = "",
        environment: Mapping[str, str] | None = None,
        data_plane: str = DATA_PLANE,
    ) -> None:
        """`data_plane`: where connections live, as in the configuration. "auto": the file says nothing of it."""
        self._data_plane = data_plane
        self._drain_deadline_s = drain_deadline_s
        self._wake_deadline_s = wake_deadline_s
        self._settings = settings
        self._environment = environment or {}
        self._directory = Path(tempfile.mkdtemp(prefix="bentpipe-demo-"))
        self._ledger = ledger or self._directory / "ledger.sqlite"
        self.token = "bp_" + secrets.token_hex(32)
        self.log_path = self._directory / "log"
        authority = trustme.CA()
        self.ca_pem = authority.cert_pem.bytes()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        (self._directory / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        key = self._directory / "key.pem"
        key.touch(mode=0o600)
        key.write_bytes(certificate.private_key_pem.bytes())
        self.config_path = self._directory / "bentpipe.toml"
        self.config_path.write_text(self._config(satellites, sleep_after_s))
        self._process: subprocess.Popen[bytes] | None = None
        self.ports: list[int] = []
        """Of the listeners, in the configuration's order."""
        self._planes: set[object] = set()
        """Process ids of the data planes whose ports these are."""

    def _config(self, satellites: Sequence[DemoSatellite | CloudSatellite], sleep_after_s: float) -> str:
        form = [
            f'data_plane = "{self._data_plane}"\nplanes = "{self._directory / "planes"}"',
            f'admission = "{"auto" if self._data_plane == "inside" else ADMISSION}"',
        ]
        lines = [
            f'[daemon]\nlog_format = "json"\ndrain_deadline = "{self._drain_deadline_s}s"',
            *(form if self._data_plane != "auto" else ()),
            f'[store]\npath = "{self._ledger}"',
            '[[listener]]\naddress = "127.0.0.1:0"\n[listener.tls]',
            f'certificate = "{self._directory / "cert.pem"}"\nkey = "{self._directory / "key.pem"}"',
            f'[[token]]\nname = "demo"\nhash = "sha256:{hashlib.sha256(self.token.encode()).hexdigest()}"',
            f'grants = ["{ORG}/*"]',
        ]
        lines.append(self._settings)
        for satellite in satellites:
            lines += [
                f'[[satellite]]\norg = "{ORG}"\nname = "{satellite.name}"\nsleep_after = "{sleep_after_s}s"',
                f'min_awake = "0s"\nwake_deadline = "{self._wake_deadline_s}s"\nretry_after = "1s"\n{satellite.sections()}',
            ]
        return "\n".join(lines) + "\n"

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start the daemon, or the next one after one that has ended. Its log begins anew."""
        self.log_path.write_bytes(b"")
        self._spawn()
        with self._or_end_it():
            self._wait_listening()

    def kill_and_start(self) -> None:
        """Kill the daemon (SIGKILL), and start the next one, whose log goes on. A data plane of its own stays.

        Returns once the next one takes clients. Raises TimeoutError.
        """
        self._running.kill()
        self._running.wait()
        served = self._count(SERVING)
        self._spawn()
        with self._or_end_it():
            self._wait(lambda: self._count(SERVING) > served, f"no further {SERVING!r} in the log", START_DEADLINE_S)

    def _spawn(self) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self._environment}
        with self.log_path.open("ab") as log:  # a data plane that lives on writes to it, too
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bentpipe.daemon.service.entry", "serve", "--config", self.config_path],
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
            )

    @contextlib.contextmanager
    def _or_end_it(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _wait_listening(self) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline:
            if self._is_listening():
                return
            if self._process is None or self._process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"the daemon did not start:\n{self.log_path.read_text()}")

    def _is_listening(self) -> bool:
        """Whether the daemon serves. Notes its ports, unless its data plane has told them to an earlier daemon's log."""
        records = list(self.records())
        said = {record.get("message") for record in records}
        planes = {record["pid"] for record in records if record.get("message") == "data plane seated"}
        if self._data_plane != "inside" and not (planes and SERVING in said):
            return False
        if not planes or not planes <= self._planes:
            ports = [int(str(record["port"])) for record in records if record.get("message") == "listening"]
            if len(ports) != self.config_path.read_text().count("[[listener]]"):
                return False
            self.ports, self._planes = ports, planes
        return True

    @property
    def port(self) -> int:
        """The first listener's."""
        return self.ports[0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            end_process(self._process, STOP_DEADLINE_S)
            if self._process.returncode < 0:
                self._stop_keeper()
                self._kill_data_planes()
        shutil.rmtree(self._directory)

    def _stop_keeper(self) -> None:
        """End what a killed daemon has left."""
        command = [sys.executable, "-P", "-m", "bentpipe.daemon.service.cli", "keeper", "--stop", "--config"]
        subprocess.run([*command, str(self.config_path)], check=True, stdout=subprocess.DEVNULL)

    def _kill_data_planes(self) -> None:
        """The same for the data planes that it has left."""
        for pid in self.data_planes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def data_planes(self) -> Iterator[int]:
        """The process ids of those that run."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
                if b"dataplane" in arguments and os.fsencode(self.config_path) in arguments:
                    yield int(entry.name)

    def stop(self) -> int:
        """Send SIGTERM and wait. Returns the exit code."""
        self._running.terminate()
        return self.wait()

    def wait(self) -> int:
        """Wait for the daemon's end. Returns the exit code."""
        return self._running.wait(STOP_DEADLINE_S)

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self._running.pid

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("not started")
        return self._process

    def wait_message(self, message: str, deadline_s: float) -> None:
        """Wait until the daemon has logged `message`. Raises TimeoutError."""
        self._wait(lambda: self._count(message) > 0, f"no {message!r} in the log", deadline_s)

    @staticmethod
    def _wait(is_so: Callable[[], bool], words: str, deadline_s: float) -> None:
        deadline = time.monotonic() + deadline_s
        while not is_so():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{words} after {deadline_s:g} s")
            time.sleep(0.02)

    def _count(self, message: str) -> int:
        return sum(record.get("message") == message for record in self.records())

    def count_messages(self, message: str, satellite: str) -> int:
        """How often the daemon has logged `message` about the satellite so far."""
        return sum(r.get("message") == message and r.get("satellite") == f"{ORG}/{satellite}" for r in self.records())

    def records(self) -> Iterator[dict[str, object]]:
        """Every complete line of the daemon's log so far."""
        for line in complete_lines(self.log_path):
            if line.startswith("{"):
                yield json.loads(line)

    def changes(self) -> list[LoggedChange]:
        """Every transition of a satellite so far."""
        return [
            LoggedChange(
                str(r["satellite"]).removeprefix(f"{ORG}/"), SatelliteState(str(r["after"])), float(str(r["at"]))
            )
            for r in self.records()
            if r.get("message") == "satellite"
        ]

    def state_of(self, satellite: str) -> SatelliteState | None:
        """The satellite's last logged state; None if there is none yet."""
        return next((change.state for change in reversed(self.changes()) if change.satellite == satellite), None)

    def wait_state(self, satellite: str, state: SatelliteState, deadline_s: float) -> None:
        """Wait until the satellite's last logged state is `state`. Raises TimeoutError."""
        self._wait(lambda: self.state_of(satellite) is state, f"{satellite} did not become {state.value}", deadline_s)

    def starts(self, satellite: str) -> int:
        """How often the satellite was woken so far."""
        return sum(c.state is SatelliteState.STARTING for c in self.changes() if c.satellite == satellite)

    def found_again(self, satellite: str) -> bool:
        """Whether a daemon that was started later has found the satellite's process, which an earlier one had started."""
        return self._has_told("a local satellite was found again", satellite)

    def wait_process(self, satellite: str, deadline_s: float) -> None:
        """Wait until the satellite, which is a local process, has one. Raises TimeoutError."""
        told = "a local satellite was started"
        self._wait(lambda: self._has_told(told, satellite), f"no process of {satellite}", deadline_s)

    def _has_told(self, message: str, satellite: str) -> bool:
        machine = f"{ORG}.{satellite}"
        return any(r.get("message") == message and r.get("machine") == machine for r in self.records())

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds (user and system) of the daemon and its data planes so far, by thread.

        MAIN_THREAD is the thread that runs Python in each; the others have their names (proc(5)).
        """
        used: dict[str, float] = {}
        for pid in (self.pid, *self.data_planes()):
            for task in Path(f"/proc/{pid}/task").iterdir():
                name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
                fields = rest.split()
                name = MAIN_THREAD if task.name == str(pid) else name
                used[name] = used.get(name, 0.0) + (int(fields[11]) + int(fields[12])) * CLOCK_TICKS_S
        return used
