"""Reads the machine's and the builds' state from /proc and cgroup v2 (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator

from bentpipe.daemon.responder.looks import Look
from bentpipe.daemon.responder.wire import Fields, encode_fields

MAX_FILE_BYTES = 1 << 20
"""Of a file in /proc or /sys, read at once."""
MAX_CGROUPS = 4096
"""Directories that one search for steps reads."""
MAX_STEPS = 1024
RESOURCES = ("cpu", "memory", "io")
NO_LIMIT = "max"


def read_text(path: str, limit: int = MAX_FILE_BYTES) -> str:
    """Read the beginning of a file. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        parts = []
        while limit > 0:
            part = file.read(limit)
            if not part:
                break
            parts.append(part)
            limit -= len(part)
    return b"".join(parts).decode("ascii", "replace")


def read_table(path: str) -> dict[str, int]:
    """Read a file of lines `NAME VALUE`, as memory.events and /proc/meminfo are; of other lines nothing. Raises OSError."""
    found = {}
    for line in read_text(path).splitlines():
        words = line.replace(":", " ").split()
        if len(words) > 1 and words[1].isdigit():
            found[words[0]] = int(words[1])
    return found


def read_number(path: str) -> int | None:
    """Read a file of one number; None if there is no such file, or no limit in it."""
    try:
        text = read_text(path).strip()
    except FileNotFoundError:
        return None
    return int(text) if text != NO_LIMIT else None


def read_pressures(paths: list[str]) -> bytes | None:
    """Encode Pressures of three files of PSI; None if this kernel has none."""
    found: Fields = []
    for at, path in enumerate(paths, 1):
        try:
            text = read_text(path)
        except OSError:  # no such file, or that is turned off (EOPNOTSUPP)
            continue
        found.append((at, encode_fields(_stalls(text))))
    return encode_fields(found) if found else None


def _stalls(text: str) -> Fields:
    found: Fields = []
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        values = dict(word.partition("=")[::2] for word in rest.split())
        stall = encode_fields([(1, float(values["avg10"])), (2, int(values["total"]))])
        found.append((("some", "full").index(kind) + 1, stall))
    return found


def read_stall_us(path: str) -> int | None:
    """The total of `full` in a file of PSI; None if there is none."""
    try:
        lines = read_text(path).splitlines()
    except OSError:
        return None
    return next((int(line.rpartition("=")[2]) for line in lines if line.startswith("full ")), None)


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a build: its cgroup, the memory that it holds, and how many of its processes were killed for memory."""

    path: str
    memory_bytes: int
    oom_kills: int

    @property
    def name(self) -> str:
        """The container's id."""
        return os.path.basename(self.path)


def find_steps(cgroup: str) -> Iterator[str]:
    """Find the cgroups of steps: BuildKit makes them as PARENT/buildkit/ID, and a client chooses PARENT."""
    unread, left, found = [cgroup], MAX_CGROUPS, 0
    while unread and left:
        folder = unread.pop(0)
        left -= 1
        try:
            with os.scandir(folder) as entries:
                some = itertools.islice(entries, MAX_CGROUPS)
                names = [entry.name for entry in some if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue  # it has ended
        for name in names:
            path = os.path.join(folder, name)
            if os.path.basename(folder) != "buildkit":
                unread.append(path)
            elif found < MAX_STEPS:
                found += 1
                yield path
        del unread[left:]


def read_held_bytes(cgroup: str) -> int:
    """Memory that the kernel cannot take from a cgroup: all but the page cache of files. Raises OSError."""
    memory = read_number(os.path.join(cgroup, "memory.current")) or 0
    table = read_table(os.path.join(cgroup, "memory.stat"))
    return max(0, memory - table.get("active_file", 0) - table.get("inactive_file", 0))


def read_step(path: str) -> Step | None:
    """Read a step; None if it has ended."""
    try:
        held = read_held_bytes(path)
        kills = read_table(os.path.join(path, "memory.events")).get("oom_kill", 0)
    except OSError:
        return None
    return Step(path, held, kills)


class MachineLook(Look[Fields]):
    """The whole machine."""

    name = "machine"

    def __init__(self, root: str) -> None:
        super().__init__()
        self._proc = os.path.join(root, "proc")

    def read(self) -> Fields:
        """Raises OSError, ValueError."""
        memory = read_table(os.path.join(self._proc, "meminfo"))
        pressures = read_pressures([os.path.join(self._proc, "pressure", each) for each in RESOURCES])
        load1 = float(read_text(os.path.join(self._proc, "loadavg")).split()[0])
        sizes = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
        found: Fields = [(at, memory[name] << 10) for at, name in enumerate(sizes, 3)]
        return [(2, pressures), *found, (7, load1)]

    def fields(self, result: Fields, _now: float) -> Fields:
        """Machine."""
        return result


class BuildsLook(Look[Fields]):
    """The cgroup of all builds."""

    name = "builds"

    def __init__(self, cgroup: str) -> None:
        super().__init__()
        self.cgroup = cgroup

    def read(self) -> Fields:
        """Raises OSError, ValueError."""
        cpu = read_table(self._path("cpu.stat"))
        return [
            (2, read_pressures([self._path(f"{each}.pressure") for each in RESOURCES])),
            (3, cpu["usage_usec"]),
            (4, cpu.get("nr_throttled")),
            (5, cpu.get("throttled_usec")),
            (6, self._cpu_limit_percent()),
            (7, read_number(self._path("memory.current"))),
            (8, read_number(self._path("memory.max"))),
            (9, read_number(self._path("pids.current"))),
            (10, read_number(self._path("pids.max"))),
            (11, sum(1 for _ in find_steps(self.cgroup))),
        ]

    def fields(self, result: Fields, _now: float) -> Fields:
        """Builds."""
        return result

    def _path(self, name: str) -> str:
        return os.path.join(self.cgroup, name)

    def _cpu_limit_percent(self) -> int | None:
        try:
            quota, period = read_text(self._path("cpu.max")).split()
        except FileNotFoundError:
            return None
        return None if quota == NO_LIMIT else int(quota) * 100 // int(period)
