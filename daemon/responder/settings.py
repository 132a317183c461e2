"""The responder's settings: one flat object of JSON, in which everything but `listen` has a default."""

from __future__ import annotations

import dataclasses
import json

from bentpipe.daemon.responder.scheduling import DEFAULT_PRIORITY, MAX_PRIORITY

MAX_SETTINGS_BYTES = 65536


class SettingsError(Exception):
    """The settings cannot be used; `str()` says all that is wrong with them."""


@dataclasses.dataclass(frozen=True)
class ResponderSettings:
    """As in the file. An empty path, a percentage of 0 and a size of 0 turn off what they are for."""

    listen: str = ""
    """HOST:PORT; an IPv6 address in brackets."""
    certificate: str = ""
    """PEM, with its chain. Without it the port is plaintext."""
    key: str = ""
    client_ca: str = ""
    """PEM. With it a client must show a certificate of this CA."""
    client_name: str = ""
    """A DNS name or URI that the client's certificate must have. The CA gives satellites certificates too."""
    builds_cgroup: str = ""
    """Path below /sys/fs/cgroup, of the cgroup that has the limits of all builds and no other process."""
    buildkit_socket: str = "/run/buildkit/buildkitd.sock"
    buildkit_flavor: str = "moby"
    """`moby` or `earthly`: how a client is told that a step ran out of memory."""
    cache: str = "/var/lib/buildkit"
    """A directory on the file system of BuildKit's cache."""
    prune_below_percent: int = 10
    """If less of the file system's bytes or inodes is available, the responder prunes."""
    prune_until_percent: int = 20
    ballast_bytes: int = 256 << 20
    ballast_inodes: int = 256
    memory_stall_percent: int = 60
    """Share of `memory_stall_s` in which all tasks of the builds waited for memory, from which a step is ended."""
    memory_stall_s: int = 20
    real_time_priority: int = DEFAULT_PRIORITY
    """Of SCHED_RR; 0 for none. If the kernel refuses it, the responder says so in its log and goes on without."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    def problems(self) -> str:
        """What is wrong with values that have the right types, in words."""
        found = []
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            found.append("listen must be HOST:PORT, for example [::]:9571")
        if bool(self.certificate) != bool(self.key):
            found.append("certificate and key go together")
        if self.client_ca and not self.certificate:
            found.append("client_ca needs certificate and key")
        if self.client_name and not self.client_ca:
            found.append("client_name needs client_ca")
        if self.buildkit_flavor not in ("moby", "earthly"):
            found.append("buildkit_flavor must be moby or earthly")
        if ".." in self.builds_cgroup.split("/"):
            found.append("builds_cgroup must not contain ..")
        if not 0 <= self.prune_below_percent <= self.prune_until_percent <= 100:
            found.append("0 <= prune_below_percent <= prune_until_percent <= 100 must hold")
        if not 0 <= self.memory_stall_percent <= 100 or not 1 <= self.memory_stall_s <= 3600:
            found.append("memory_stall_percent must be 0 to 100, and memory_stall_s 1 to 3600")
        if not 0 <= self.real_time_priority <= MAX_PRIORITY:
            found.append(f"real_time_priority must be 0 to {MAX_PRIORITY}")
        if self.ballast_bytes < 0 or not 0 <= self.ballast_inodes <= 65536:
            found.append("ballast_bytes must not be negative, and ballast_inodes must be 0 to 65536")
        return "; ".join(found)


def load_settings(path: str) -> ResponderSettings:
    """Read the file. Raises SettingsError."""
    try:
        with open(path, "rb") as file:
            given = json.loads(file.read(MAX_SETTINGS_BYTES))
    except (OSError, ValueError, RecursionError) as exc:
        raise SettingsError(f"cannot be read: {exc}") from exc
    if not isinstance(given, dict):
        raise SettingsError("must be one JSON object")
    known: dict[str, object] = {each.name: each.default for each in dataclasses.fields(ResponderSettings)}
    problems = []
    for name, value in given.items():
        if name not in known:
            problems.append(f"{name} is not a setting")
        elif type(value) is not type(known[name]):
            problems.append(f"{name} must be a {'number' if isinstance(known[name], int) else 'string'}")
    if not problems:
        settings = ResponderSettings(**given)
        if not settings.problems():
            return settings
        problems = [settings.problems()]
    raise SettingsError("; ".join(problems))
