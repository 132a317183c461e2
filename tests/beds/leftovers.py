"""What the tests that one process ran have left on the host: processes, and mounts in their folders.

A process is theirs if it has the mark, a limit that nothing here uses: the kernel hands limits on to every child, also to
those that get a new environment or another parent, as the keeper of local satellites does. tests/conftest.py registers this
module as a plugin of pytest.
"""

import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

MARK = resource.RLIMIT_MSGQUEUE
"""Bytes in POSIX message queues (getrlimit(2)). The mark is the soft limit."""
LINE = "Max msgqueue size"
"""How /proc/PID/limits calls it (proc_pid_limits(5))."""
FIRST_MARK = 1 << 16
"""Marks are above it, and below the default of 819,200: no other process has such a limit."""
GRACE_S = 5.0
"""For what is ending when the last test has ended."""
POLL_S = 0.05


def mark_this_process() -> int:
    """Mark what this process will start, and return the mark. Each worker of pytest-xdist has a mark of its own."""
    _, hard = resource.getrlimit(MARK)
    # Process ids above 2^19 are rare, and two runs at once that share a mark would have to be 2^19 apart.
    mark = FIRST_MARK + os.getpid() % (1 << 19)
    resource.setrlimit(MARK, (mark, hard))
    return mark


def _mark_of(process: Path) -> int | None:
    """The mark of a process in /proc; None if it has none."""
    for line in (process / "limits").read_text().splitlines():
        if line.startswith(LINE):
            soft = line.removeprefix(LINE).split()[0]
            return int(soft) if soft.isdigit() else None
    return None


def _marked(mark: int) -> dict[int, str]:
    """The command lines of the living processes with this mark, without this process, by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if _mark_of(entry) == mark and (command := (entry / "cmdline").read_bytes()):  # a zombie has none
                    found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def left_processes(mark: int, grace_s: float = GRACE_S) -> dict[int, str]:
    """The processes with this mark that have not ended after `grace_s`, by process id."""
    end = time.monotonic() + grace_s
    while (found := _marked(mark)) and time.monotonic() < end:
        time.sleep(POLL_S)
    return found


def left_mounts(folder: Path) -> list[str]:
    """Where something is mounted below a folder."""
    # proc_pid_mountinfo(5): the fifth field is the mount point.
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if Path(point).is_relative_to(folder)]


def end_processes(found: dict[int, str], mark: int) -> None:
    """Kill what `left_processes` has found, if it is still there."""
    for pid in found.keys() & _marked(mark).keys():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session", autouse=True)
def nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the last test of this process if something is left. The first fixture to begin is the last to end."""
    mark = mark_this_process()
    yield
    processes, mounts = left_processes(mark), left_mounts(tmp_path_factory.getbasetemp())
    end_processes(processes, mark)
    left = [f"process {pid}: {command}" for pid, command in processes.items()]
    left += [f"mount {point}" for point in mounts]
    if left:
        pytest.fail("the tests have left behind:\n" + "\n".join(left), pytrace=False)
