"""A data plane is suspended (SIGSTOP) while its control plane dies: nobody may act as if its clients were not there."""

import os
import signal
from pathlib import Path

import pytest

from beds.contracts.ledger import check_laws
from beds.hosts.two_planes import TwoPlanes, read_intervals, two_planes
from beds.suspended import suspended
from bentpipe.daemon.edge.gatekeeper import UNHEARD


def refused(host: TwoPlanes) -> int:
    """How often the satellite was not put to sleep, since a data plane had not said whom it has."""
    return sum(each["message"] == "sleep refused" and each["error"] == UNHEARD for each in host.records())


@pytest.mark.parametrize("admission", ["snapshot", pytest.param("asked", marks=pytest.mark.slow)])
def test_no_satellite_sleeps_under_a_data_plane_that_does_not_answer(tmp_path: Path, admission: str) -> None:
    """The next control plane cannot know of its splices. It waits for them, and takes them over."""
    with two_planes(tmp_path, satellite='sleep_after = "300ms"', daemon=f'admission = "{admission}"') as host:
        client = host.client()
        assert client.unary("Echo", b"before") == b"before"
        (pid,) = set(host.plane_pids())
        with suspended(pid):
            host.end_control(signal.SIGKILL)
            host.start_again()
            host.wait(lambda: refused(host) >= 2, "it does not try to put the satellite to sleep")
        host.wait(lambda: host.count("data plane seated") == 2, "the data plane is not found again")
        assert client.unary("Echo", b"after") == b"after"
        assert host.emulator.control.calls(action="StopInstances") == []
        client.close()
        host.wait(lambda: host.states()[-1:] == ["sleep"], "it does not sleep after its last client")
        assert host.end_control(signal.SIGTERM) in (0, 3)
    check_laws(read_intervals(host.ledger))


@pytest.mark.slow  # half a minute on a busy machine
def test_one_that_dies_without_a_word_is_not_waited_for(tmp_path: Path) -> None:
    with two_planes(tmp_path, satellite='sleep_after = "300ms"') as host:
        client = host.client()
        assert client.unary("Echo", b"before") == b"before"
        (pid,) = set(host.plane_pids())
        with suspended(pid):
            host.end_control(signal.SIGKILL)
            host.start_again()
            host.wait(lambda: refused(host) >= 1, "it does not try to put the satellite to sleep")
            os.kill(pid, signal.SIGKILL)
            host.wait(lambda: host.states()[-1:] == ["sleep"], "it does not sleep, though nobody can use it")
        client.close()
