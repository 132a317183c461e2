"""What every peer can do: say why it is not available, start in front of the lab's upstream, name its processes, stop."""

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Literal

from bench.lab import ORG, SATELLITE, Lab, free_port
from bench.load import Load, LoadSpec

Wire = Literal["plain", "tls"]
WIRES: tuple[Wire, ...] = ("plain", "tls")
HERE = Path(__file__).parent


@dataclasses.dataclass(slots=True)
class Peer:
    """One thing between client and upstream. Subclasses say how it is started."""

    name: str
    kind: Literal["limit", "tcp", "l7", "python", "bentpipe"]
    """limit: no proxy; tcp: chooses no satellite; l7: routes each request; python, bentpipe: route each connection."""
    about: str
    wires: tuple[Wire, ...] = WIRES
    token: str = "none"
    ports: dict[Wire, int] = dataclasses.field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = dataclasses.field(default_factory=list)

    def missing(self) -> str | None:
        """Why it is not available on this machine, or None."""
        return None

    def start(self, lab: Lab) -> None:
        """Listen on a port for each wire. Raises LabError."""
        raise NotImplementedError

    def stop(self, lab: Lab) -> None:
        """End what `start` began."""
        for process in self.processes:
            lab.stop(process)
        self.processes.clear()

    def pids(self) -> list[int]:
        """The processes that do the work: what was started, and their children."""
        found = [process.pid for process in self.processes]
        for pid in found:
            # Of all its threads: a child belongs to the one that started it (proc_pid_task(5)).
            children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
            found.extend(int(child) for child in children if self.is_worker(int(child)))
        return found

    def is_worker(self, pid: int) -> bool:
        """Whether a child process belongs to the peer."""
        return pid > 0

    def load(self, lab: Lab, wire: Wire, spec: LoadSpec) -> Load:
        """The load generator, aimed at this peer."""
        return Load(self.ports[wire], str(lab.ca) if wire == "tls" else None, self.token, spec, lab.placement)

    def run_pinned(self, lab: Lab, command: list[str], *, pass_fd: int | None = None) -> None:
        """Start the peer's own process on its core, if it has one, and wait for its ports."""
        self.processes.append(lab.start(self.name, lab.pinned(command), self.ports["plain"], pass_fd=pass_fd))

    def choose_ports(self) -> None:
        """A fresh port for each wire."""
        self.ports = {wire: free_port() for wire in self.wires}

    def write_config(self, lab: Lab, template: str, **values: object) -> Path:
        """Fill in one of the commented configurations beside this file."""
        path = lab.directory / f"{self.name.replace(' ', '-')}-{Path(template).name}"
        names = {
            **{f"{wire}_port": port for wire, port in self.ports.items()},
            "upstream_port": lab.upstream_port,
            "threads": lab.placement.threads,
            "directory": lab.directory,
            "certificate": lab.certificate,
            "key": lab.key,
            "identity": lab.identity,
            "org": ORG,
            "satellite": SATELLITE,
            **values,
        }
        # `@{name}`: the configurations use the dollar sign themselves.
        text = (HERE / template).read_text()
        path.write_text(re.sub(r"@\{([a-z_]+)\}", lambda match: str(names[match[1]]), text))
        return path


def program_missing(program: str) -> str | None:
    """Say so if a program is not installed."""
    return None if shutil.which(program) else f"{program} is not installed"


class Direct(Peer):
    """No proxy. This is the limit. Measured twice, it shows the noise of the machine."""

    def __init__(self, name: str = "direct") -> None:
        super().__init__(name, "limit", "client to upstream; with TLS the upstream itself speaks it")

    def start(self, lab: Lab) -> None:
        """The lab's own upstream, and a second one that speaks TLS."""
        self.choose_ports()
        self.ports["plain"] = lab.upstream_port
        command = lab.upstream_command(self.ports["tls"], "--tls", str(lab.identity))
        self.processes.append(lab.start(self.name, command, self.ports["tls"]))

    def pids(self) -> list[int]:
        """None: there is no proxy to be charged."""
        return []
