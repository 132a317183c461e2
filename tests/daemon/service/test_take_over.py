"""Which control planes are ended by another one: those that hang, and nothing else."""

import errno
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.planes.scripted import PlaneBed, ScriptedControl, plane_bed
from bentpipe.daemon.service import take_over
from bentpipe.daemon.service.take_over import CannotTakeOver, end_hung_control_planes

HUNG_S = 1.0


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlaneBed]:
    monkeypatch.setattr(take_over, "HUNG_S", HUNG_S)
    with plane_bed(tmp_path) as bed:
        yield bed


def silent_control(bed: PlaneBed) -> ScriptedControl:
    """One that has the seat and answers nothing for long."""
    control = bed.control()
    time.sleep(1.5 * HUNG_S)
    return control


def speaks_at_each_pause(control: ScriptedControl, monkeypatch: pytest.MonkeyPatch) -> None:
    """The looks' own clock: other threads of this process sleep as ever."""
    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=lambda _seconds: control.ping())
    monkeypatch.setattr(take_over, "time", clock)


def test_nobody_is_ended_where_nobody_sits_or_listens(bed: PlaneBed, tmp_path: Path) -> None:
    end_hung_control_planes(bed.folder)
    end_hung_control_planes(tmp_path / "nowhere")
    bed.process.kill()
    bed.process.wait()
    end_hung_control_planes(bed.folder)


def test_a_process_that_is_not_a_control_plane_is_not_ended(bed: PlaneBed) -> None:
    """The scripted control plane is this very process."""
    control = silent_control(bed)
    with pytest.raises(CannotTakeOver, match="it is not `bentpipe serve`") as raised:
        end_hung_control_planes(bed.folder)
    assert raised.value.errno == errno.EPERM
    control.close()


def test_one_that_answers_stays(bed: PlaneBed, monkeypatch: pytest.MonkeyPatch) -> None:
    control = bed.control()
    monkeypatch.setattr(take_over, "_is_control_plane", lambda pid: pytest.fail("it would be ended"))
    speaks_at_each_pause(control, monkeypatch)
    for _ in range(3):
        end_hung_control_planes(bed.folder)


def test_one_that_hangs_since_a_moment_is_watched_until_it_is_known(bed: PlaneBed) -> None:
    """It may have spoken just before it hung: nobody can tell it yet from one that is well."""
    control = bed.control()
    control.ping()
    time.sleep(HUNG_S / 10)  # until the data plane has heard it
    with pytest.raises(CannotTakeOver, match="has hung for 1 s"):
        end_hung_control_planes(bed.folder)
    control.close()


def test_one_that_was_silent_and_answers_again_stays(bed: PlaneBed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(take_over, "HUNG_S", 60.0)
    control = silent_control(bed)
    monkeypatch.setattr(take_over, "_is_control_plane", lambda pid: pytest.fail("it would be ended"))
    speaks_at_each_pause(control, monkeypatch)
    end_hung_control_planes(bed.folder)


def test_another_users_process_is_not_a_control_plane_of_ours() -> None:
    code = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, "serve"], stdin=subprocess.PIPE) as other:
        try:
            while not Path(f"/proc/{other.pid}/cmdline").read_bytes():
                time.sleep(0.001)  # exec(2) has closed the descriptors, and has not set the arguments yet
            assert take_over._is_control_plane(other.pid, lambda: os.geteuid())
            assert not take_over._is_control_plane(other.pid, lambda: os.geteuid() + 1)
        finally:
            other.kill()
    assert not take_over._is_control_plane(os.getpid())
    assert not take_over._is_control_plane(2**22 - 1)
