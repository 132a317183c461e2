"""A host with the package installed, its service configured, and clients of it: what stories of the package share."""

import dataclasses
import hashlib
import os
import secrets
import subprocess
import sys
from pathlib import Path

import trustme

from beds.booted import build_client
from beds.booted.machine import Booted

INSTALL_DEADLINE_S = 300.0
"""dpkg, and the compilation of some thousand modules, on a busy machine."""
DPKG = "dpkg --force-unsafe-io"
"""A root lives for a test: it does not wait until thousands of files are on the disk."""
DEADLINE_S = 120.0
LONGEST_S = 360.0
"""For the end of the longest build of a story, and what its client waits for."""
SATELLITE = "acme/builder"
FILE = "/etc/bentpipe/bentpipe.toml"
CONFIGURATION = """
[daemon]
drain_deadline = "60s"
[[listener]]
systemd = "clients"
[listener.tls]
certificate = "/etc/bentpipe/tls.pem"
key = "credential:tls.key"
[[token]]
name = "ci"
hash = "sha256:{hash}"
grants = ["acme/*"]
[[satellite]]
org = "acme"
name = "builder"
sleep_after = "10m"
[satellite.process]
command = ["/usr/lib/bentpipe/bin/python3", "-I", "-m", "bentpipe.daemon.testbed.satellite", "{{port}}"]
"""


SHOWN = (
    "import socket, ssl, sys; context = ssl.create_default_context(cafile=sys.argv[1]); "
    "sock = context.wrap_socket(socket.create_connection(('127.0.0.1', 8372), 10), server_hostname=sys.argv[2]); "
    "print(sock.getpeercert()['serialNumber'])"
)


@dataclasses.dataclass
class Story:
    """A host and what its clients know."""

    host: Booted
    package: Path
    folder: Path
    units: str = "bentpipe-dataplane.socket bentpipe.target"
    """What is enabled and started."""
    token: str = dataclasses.field(default_factory=lambda: f"bp_{secrets.token_hex(32)}")
    authority: trustme.CA = dataclasses.field(default_factory=trustme.CA)

    def install(self, package: Path) -> str:
        """Install a package file. Returns what dpkg and the package said."""
        self.host.put("/root/bentpipe.deb", package.read_bytes())
        return self.host.run(f"{DPKG} -i /root/bentpipe.deb 2>&1; rm /root/bentpipe.deb", deadline_s=INSTALL_DEADLINE_S)

    def configure(self) -> None:
        """Write a configuration, a certificate and a key as README.Debian says."""
        digest = hashlib.sha256(self.token.encode()).hexdigest()
        self.host.put(FILE, CONFIGURATION.format(hash=digest).encode())
        chain, key = self.issue()
        self.host.put("/etc/bentpipe/tls.pem", chain)
        self.host.put("/etc/bentpipe/tls.key", key, 0o600)
        self.authority.cert_pem.write_to_path(self.ca)

    def start(self) -> None:
        """Enable and start the service, as README.Debian says."""
        self.host.run(f"systemctl enable --now {self.units}", deadline_s=DEADLINE_S)

    def choose_one_process(self) -> None:
        """Have the service be one process, before it is started."""
        self.units = "bentpipe.socket bentpipe.service"
        self.host.run("systemctl link /usr/share/bentpipe/systemd/one-process/bentpipe.service")

    @property
    def ca(self) -> Path:
        """What clients trust."""
        return self.folder / "ca.pem"

    def issue(self) -> tuple[bytes, bytes]:
        """A new certificate for localhost, with its chain, and its key."""
        issued = self.authority.issue_cert("localhost")
        return b"".join(each.bytes() for each in issued.cert_chain_pems), issued.private_key_pem.bytes()

    def build(
        self, seconds: float, satellite: str = SATELLITE, ca: Path | None = None, name: str = "localhost"
    ) -> subprocess.Popen[str]:
        """Begin a build of so many seconds. The client trusts `ca`, and expects a certificate for `name`."""
        client = [sys.executable, "-P", build_client.__file__, "8372", str(ca or self.ca), name, satellite]
        return subprocess.Popen(
            [*self.host.network, *client, str(seconds)],
            env={**os.environ, "EARTHLY_TOKEN": self.token},
            stdout=subprocess.PIPE,
            text=True,
        )

    def show(self, what: str, unit: str = "bentpipe.service") -> str:
        """A property of a unit."""
        return self.host.run("systemctl show -P $1 $2", what, unit).strip()

    def shown_serial(self, ca: Path | None = None, name: str = "localhost") -> str:
        """The serial number of the certificate that a client sees, which it has verified by `ca`, for `name`."""
        command = [*self.host.network, sys.executable, "-c", SHOWN, str(ca or self.ca), name]
        return subprocess.check_output(command, text=True, timeout=DEADLINE_S).strip()

    def program_of(self, unit: str) -> str:
        """What differs as soon as the unit's process has become another program by execve(2): its addresses are random."""
        return self.host.run("sha256sum </proc/$1/auxv", self.show("MainPID", unit)).strip()

    def wait_other_program(self, unit: str, before: str) -> None:
        """Wait until the unit's process is another program than `before`, as `program_of` has shown it."""
        script = 'while [ "$(sha256sum </proc/$1/auxv)" = "$2" ]; do sleep 0.2; done'
        self.host.run(script, self.show("MainPID", unit), before, deadline_s=DEADLINE_S)

    def wait_other_process(self, before: str, unit: str = "bentpipe.service") -> None:
        """Wait until systemd has started the unit anew."""
        script = 'while pid=$(systemctl show -P MainPID $2); [ "$pid" = $1 ] || [ "$pid" = 0 ]; do sleep 0.2; done'
        self.host.run(script, before, unit, deadline_s=DEADLINE_S)


def begun(build: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """Wait until the build runs."""
    assert build.stdout is not None
    assert build.stdout.readline() == "begun\n"
    return build


def ended(build: subprocess.Popen[str]) -> str:
    """Wait for the end. Returns the last line."""
    output, _ = build.communicate(timeout=LONGEST_S)
    return output.splitlines()[-1]
