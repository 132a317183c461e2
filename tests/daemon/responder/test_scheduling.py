"""The responder's real-time priority: all its threads have it, nothing that it starts does, and it goes on without."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from beds.peers.responder_process import ResponderProcess, oldest_python
from bentpipe.daemon.responder.scheduling import DEFAULT_PRIORITY

WITHOUT = "--bounding-set=-sys_nice"
"""setpriv(1): without CAP_SYS_NICE and with RLIMIT_RTPRIO 0 the kernel refuses, as it does in a container."""
FORKS = """
import os, sys, subprocess, threading
from bentpipe.daemon.responder.scheduling import real_time
refused = real_time.begin(20)
seen = [os.sched_getscheduler(0)]
thread = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(0)))
thread.start()
thread.join()
ask = "import os; print(os.sched_getscheduler(0))"
seen.append(int(subprocess.check_output([sys.executable, "-c", ask])))
print(seen, refused)
"""


def policies(pid: int) -> set[tuple[str, str]]:
    """Policy and priority of each thread (proc_pid_stat(5): 41 and 40)."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found.add((fields[38], fields[37]))
    return found


@pytest.fixture
def permitted() -> None:
    try:
        subprocess.run(["chrt", "--rr", str(DEFAULT_PRIORITY), "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"this host permits no real-time priority: {exc}")


@pytest.mark.usefixtures("permitted")
def test_all_threads_have_it() -> None:
    with ResponderProcess({"real_time_priority": DEFAULT_PRIORITY}) as responder:
        responder.wait_status("machine", "disk")
        assert policies(responder.process.pid) == {(str(os.SCHED_RR), str(DEFAULT_PRIORITY))}
        assert "real-time" not in responder.log


@pytest.mark.usefixtures("permitted")
def test_what_it_starts_does_not_inherit_it() -> None:
    """A thread has it only because it asks, and a process does not ask."""
    done = subprocess.run([sys.executable, "-P", "-c", FORKS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[{os.SCHED_RR | os.SCHED_RESET_ON_FORK}, {os.SCHED_OTHER}, {os.SCHED_OTHER}]"


def test_without_permission_it_warns_and_serves(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv(1), of util-linux, is not here")
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec setpriv {WITHOUT} {oldest_python() or sys.executable} "$@"\n')
        python.chmod(0o755)
    else:
        python = Path(oldest_python() or sys.executable)
    with ResponderProcess({"real_time_priority": DEFAULT_PRIORITY}, python=str(python)) as responder:
        responder.wait_status("machine")
        assert "<4>there is no real-time priority" in responder.log
        assert "LimitRTPRIO=" in responder.log
        assert policies(responder.process.pid) == {(str(os.SCHED_OTHER), "0")}
