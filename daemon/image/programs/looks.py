"""How a check looks at the satellite: its files, and the answers of its programs. It must never change anything."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

from bentpipe.daemon.image.programs.settings import SatelliteSettings

COMMAND_S = 20.0
"""On a machine that is starved, systemd takes seconds to answer."""
MOUNT = re.compile(
    r"\S+ \S+ (?P<device>\S+) (?P<root>\S+) (?P<point>\S+) (?P<options>\S+) (?:\S+ )*"
    r"- (?P<kind>\S+) (?P<source>\S+) (?P<super>\S+)"
)
"""A line of mountinfo, in the words of proc(5)."""


@dataclasses.dataclass(frozen=True)
class SatelliteLook:
    """The machine. `root` is another folder in tests."""

    settings: SatelliteSettings
    root: Path = Path("/")

    def path(self, absolute: str) -> Path:
        """Where a file of the machine is."""
        return self.root / absolute.lstrip("/")

    def cgroup(self, name: str) -> Path:
        """A cgroup's folder."""
        return self.path("/sys/fs/cgroup") / name

    def text(self, absolute: str) -> str | None:
        """A file's content without the last line end; None if it cannot be read."""
        try:
            return self.path(absolute).read_text().rstrip("\n")
        except OSError:
            return None

    def value(self, cgroup: str, name: str) -> str | None:
        """The content of a cgroup's file; None if it is not there."""
        return self.text(f"/sys/fs/cgroup/{cgroup}/{name}")

    def run(self, *command: str) -> str | None:
        """What a program prints; None if it is not there, fails, or does not end in time."""
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    def unit(self, name: str) -> dict[str, str]:
        """What systemd says of a unit; nothing if it does not answer."""
        wanted = "ActiveState,SubState,Result,MainPID,IPAddressDeny,UnitFileState"
        text = self.run("systemctl", "show", name, f"--property={wanted}") or ""
        return dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)

    def mounts(self, pid: str = "self") -> list[dict[str, str]]:
        """The mounts that a process sees, by the names in MOUNT."""
        found = []
        for line in (self.text(f"/proc/{pid}/mountinfo") or "").splitlines():
            match = MOUNT.match(line)
            if match:
                found.append(match.groupdict())
        return found

    def mount_of(self, point: str, pid: str = "self") -> dict[str, str] | None:
        """The newest mount at a path; None if there is none."""
        return next((each for each in reversed(self.mounts(pid)) if each["point"] == point), None)
