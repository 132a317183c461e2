"""Counts the TCP connections that builds and buildkitd have opened to other machines, by their ages.

No address leaves this module, and no payload is read: /proc/PID/net/tcp and tcp6 of one process for each network namespace.
"""

from __future__ import annotations

import itertools
import os

from bentpipe.daemon.responder.looks import Look, uptime_s
from bentpipe.daemon.responder.machine import MAX_CGROUPS, read_text
from bentpipe.daemon.responder.wire import Fields

MAX_CONNECTIONS = 4096
MAX_NAMESPACES = 64
MAX_PROCESSES = 4096
"""Processes of builds that are looked at for their network namespaces."""
ESTABLISHED, LISTENING = "01", "0A"
AGES_S = (60.0, 600.0, 3600.0)
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
"""127.0.0.1, ::1 and ::ffff:127.0.0.1, as the kernel writes them on a little-endian machine."""

Connection = tuple[str, str, str]
"""Network namespace, local and remote address."""


def find_outgoing(namespace: str, text: str) -> tuple[list[Connection], set[str]]:
    """Read net/tcp: established connections to other machines, and the ports on which this one listens."""
    found, ports = [], set()
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 4:
            continue
        local, remote, state = words[1:4]
        if state == LISTENING:
            ports.add(local.rpartition(":")[2])
        elif state == ESTABLISHED and remote.rpartition(":")[0] not in LOOPBACK:
            found.append((namespace, local, remote))
    return found, ports


class NetworkLook(Look[Fields]):
    """Counts connections, and remembers since when it has seen each."""

    name = "network"
    period_s = 20.0

    def __init__(self, root: str, cgroup: str) -> None:
        super().__init__()
        self._proc = os.path.join(root, "proc")
        self._cgroup = cgroup
        self._since: dict[Connection, float] = {}

    def read(self) -> Fields:
        """Raises OSError."""
        now = uptime_s()
        seen: dict[Connection, float] = {}
        namespaces = self._namespaces()
        more = len(namespaces) > MAX_NAMESPACES
        for namespace, process in list(namespaces.items())[:MAX_NAMESPACES]:
            for each in self._connections(namespace, process):
                if len(seen) >= MAX_CONNECTIONS:
                    more = True
                    break
                seen[each] = self._since.get(each, now)
        self._since = seen
        ages = [now - since for since in seen.values()]
        counts = [sum(age < limit for age in ages) for limit in AGES_S]
        by_age = [high - low for low, high in zip([0, *counts], [*counts, len(ages)])]
        return [*enumerate(by_age, 2), (6, more)]

    def fields(self, result: Fields, _now: float) -> Fields:
        """Network."""
        return result

    def _connections(self, namespace: str, process: str) -> list[Connection]:
        found, ports = [], set()
        for name in ("tcp", "tcp6"):
            try:
                text = read_text(os.path.join(self._proc, process, "net", name))
            except OSError:
                continue  # the process has ended, or there is no IPv6
            more_found, more_ports = find_outgoing(namespace, text)
            found += more_found
            ports |= more_ports
        return [each for each in found if each[1].rpartition(":")[2] not in ports]

    def _namespaces(self) -> dict[str, str]:
        """One process for each network namespace: our own, which is buildkitd's, and those of steps."""
        found: dict[str, str] = {}
        for process in ["self", *self._processes()]:
            try:
                namespace = os.readlink(os.path.join(self._proc, process, "ns", "net"))
            except OSError:
                continue
            found.setdefault(namespace, process)
        return found

    def _processes(self) -> list[str]:
        found: list[str] = []
        for folder, _, _ in itertools.islice(os.walk(self._cgroup), MAX_CGROUPS):
            try:
                found += read_text(os.path.join(folder, "cgroup.procs")).split()
            except OSError:
                continue
            if len(found) >= MAX_PROCESSES:
                break
        return found[:MAX_PROCESSES]
