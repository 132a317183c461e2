"""kill -9 of the data plane at random moments under load: what was cut is said, and everybody who comes then is served."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from beds.contracts.ledger import check_laws
from beds.hosts.two_planes import PLAIN, TLS, TwoPlanes, admitting_by, check_admitted, read_intervals, two_planes
from beds.peers.clients import CallError
from beds.peers.control_storm import PATIENCE_S, Storm, start_all

KILLS, SOAK_KILLS = 2, int(os.environ.get("BENTPIPE_TEST_PLANE_KILLS", "30"))
"""In `make test`, and in `make soak`."""
LONGEST_S = 1.5
"""Between the moment at which clients are served again and the next kill."""


def wait_served(host: TwoPlanes, port: int) -> None:
    """Wait until a new client is answered."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with contextlib.closing(host.client(port)) as client:
                assert client.unary("Echo", b"again", timeout_s=PATIENCE_S) == b"again"
            return
        except CallError:
            if time.monotonic() > deadline:
                raise


def kill_and_wait(host: TwoPlanes) -> None:
    """Kill the data plane, and wait for the next one."""
    before = set(host.plane_pids())
    host.kill_plane()
    host.wait(lambda: set(host.plane_pids()) > before, "no data plane is started again")


@pytest.mark.parametrize(
    ("admission", "kills"),
    [
        ("snapshot", KILLS),
        pytest.param("snapshot", SOAK_KILLS, marks=pytest.mark.slow),
        pytest.param("asked", SOAK_KILLS, marks=pytest.mark.slow),
    ],
)
def test_what_was_cut_is_said_and_everybody_is_served_again(tmp_path: Path, admission: str, kills: int) -> None:
    chance = random.Random()
    with two_planes(tmp_path, **admitting_by(admission)) as host:
        assert host.control is not None
        storm = Storm(host, may_be_cut=True)
        start_all(storm)
        try:
            for _ in range(kills):
                time.sleep(chance.uniform(0.2, LONGEST_S))
                kill_and_wait(host)
                for port in (PLAIN, TLS):
                    wait_served(host, port)
            host.wait(lambda: all(storm.done.values()), "a kind of client was never served")
        finally:
            storm.stop()
        assert storm.failures == []
        check_admitted(host, admission)
        assert all(storm.done.values()), storm.done
        gone = [record for record in host.records() if record["message"] == "a data plane is gone"]
        assert len(gone) == kills
        # The two connections that are spliced all the while, at least. One that was made anew may be under way just then.
        assert sum(int(str(record["cut"])) for record in gone) >= kills
        assert storm.cut > 0
        host.wait(lambda: host.states()[-1:] == ["sleep"], "it does not sleep after its last client: a lease is left")
        children = psutil.Process(host.control.pid).children()
        assert [child.pid for child in children if "dataplane" in child.cmdline()] == [host.plane_pids()[-1]]
        assert not [child for child in children if child.status() == psutil.STATUS_ZOMBIE]
        assert host.end_control(signal.SIGTERM) in (0, 3)
    check_laws(read_intervals(host.ledger))
