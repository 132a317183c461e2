"""Whether a nice value counts among a process's own threads alone: only then do threads give way to the engine's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bentpipe.daemon.service.engine_priority import has_own_group

LEADER = """
import sys
from pathlib import Path
from bentpipe.daemon.service.engine_priority import has_own_group
print(has_own_group({}, Path(sys.argv[1]), Path(sys.argv[2])))
"""
V1 = "3:cpuset:/a\n2:cpu,cpuacct:{path}\n"
V2 = "0::{path}\n"


def asked(folder: Path, *, leader: bool = True) -> str:
    """Ask in a process that leads a session, or does not."""
    command = [sys.executable, "-P", "-c", LEADER, str(folder / "proc"), str(folder / "cgroup")]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, start_new_session=leader
    ).stdout.strip()


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """What a kernel says that makes a group of each session."""
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "cgroup/limited").mkdir(parents=True)
    (tmp_path / "cgroup/limited/cpu.weight").write_text("100\n")
    (tmp_path / "proc/sys/kernel/sched_autogroup_enabled").write_text("1\n")
    (tmp_path / "proc/self/cgroup").write_text(V2.format(path="/"))
    return tmp_path


@pytest.mark.parametrize(
    ("memberships", "alone"),
    [
        (V2.format(path="/"), "True"),
        (V2.format(path="/unlimited"), "True"),
        (V2.format(path="/limited"), "False"),
        (V1.format(path="/"), "True"),
        (V1.format(path="/build"), "False"),
        (V1.format(path="/") + V2.format(path="/limited"), "False"),
    ],
)
def test_a_session_is_a_group_outside_of_cgroups_that_divide_the_cores(
    kernel: Path, memberships: str, alone: str
) -> None:
    (kernel / "proc/self/cgroup").write_text(memberships)
    assert asked(kernel) == alone


def test_a_process_in_somebody_elses_session_has_no_group(kernel: Path) -> None:
    assert asked(kernel, leader=False) == "False"


def test_a_kernel_without_groups_of_sessions_has_none(kernel: Path) -> None:
    (kernel / "proc/sys/kernel/sched_autogroup_enabled").write_text("0\n")
    assert asked(kernel) == "False"
    (kernel / "proc/sys/kernel/sched_autogroup_enabled").unlink()
    assert asked(kernel) == "False"


def test_the_main_process_of_a_unit_has_the_units_cgroup(tmp_path: Path) -> None:
    assert has_own_group({"SYSTEMD_EXEC_PID": str(os.getpid())}, tmp_path, tmp_path)
    assert not has_own_group({"SYSTEMD_EXEC_PID": str(os.getppid())}, tmp_path, tmp_path)
