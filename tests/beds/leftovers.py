"""What the tests that one process ran have left on the host: processes, and mounts in their folders.

A process is theirs if its environment has the mark. All that tests start inherits it, except what gets a new environment.
tests/conftest.py registers this module as a plugin of pytest.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

MARK = "BENTPIPE_TEST_RUN"
"""The variable's name."""
GRACE_S = 5.0
"""For what is ending when the last test has ended."""
POLL_S = 0.05


def mark_this_process() -> str:
    """Mark what this process will start, and return the mark. Each worker of pytest-xdist has a mark of its own."""
    os.environ[MARK] = f"{os.getpid()}-{time.monotonic_ns()}"
    return os.environ[MARK]


def _marked(mark: str) -> dict[int, str]:
    """The command lines of the living processes with this mark, without this process, by process id."""
    found = {}
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            # Another user's process is not one of them. A zombie has no environment.
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = command.decode(errors="replace").strip()
    return found


def left_processes(mark: str, grace_s: float = GRACE_S) -> dict[int, str]:
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


def end_processes(found: dict[int, str], mark: str) -> None:
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
