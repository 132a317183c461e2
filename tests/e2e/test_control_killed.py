"""kill -9 of the control plane at random moments under load: nothing is lost, and nobody notices but by a delay."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from beds.contracts.ledger import check_laws
from beds.hosts.one_satellite import KEY
from beds.hosts.two_planes import admitting_by, check_admitted, read_intervals, two_planes
from beds.peers.control_storm import Storm, start_all
from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.planes.bounds import PARKED_S

KILLS, SOAK_KILLS = 2, int(os.environ.get("BENTPIPE_TEST_KILLS", "100"))
"""In `make test`, and in `make soak`."""
LONGEST_S = 1.5
"""Between a start and the next kill; the start itself is a moment at which it may die too."""


@pytest.mark.parametrize(
    ("admission", "kills"),
    [
        ("snapshot", KILLS),
        pytest.param("snapshot", SOAK_KILLS, marks=pytest.mark.slow),
        pytest.param("asked", SOAK_KILLS, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_lost_when_the_control_plane_is_killed(tmp_path: Path, admission: str, kills: int) -> None:
    chance = random.Random()
    with two_planes(tmp_path, **admitting_by(admission)) as host:
        storm = Storm(host)
        start_all(storm)
        (plane,) = set(host.plane_pids())
        try:
            start_s = 0.0
            for number in range(kills):
                time.sleep(chance.uniform(0.3, LONGEST_S))
                assert host.end_control(signal.SIGKILL) == -signal.SIGKILL
                since = time.monotonic()
                host.start_again()
                # Else it is killed before it serves: not on a slow machine, since clients wait for PARKED_S alone.
                if number % 3 != 2 or 2 * start_s + LONGEST_S > PARKED_S / 2:
                    host.wait_serving()
                    start_s = time.monotonic() - since
            host.wait_serving()
            time.sleep(1.0)
        finally:
            storm.stop()
        assert storm.failures == []
        check_admitted(host, admission)
        assert all(storm.done.values()), storm.done
        assert set(host.plane_pids()) == {plane}
        host.wait(lambda: host.states()[-1:] == ["sleep"], "it does not sleep after its last client")
        fds = len(os.listdir(f"/proc/{plane}/fd"))
        assert host.end_control(signal.SIGTERM) in (0, 3)
        assert fds < 80, "descriptors of connections are left"
        host.wait(lambda: not Path(f"/proc/{plane}").exists(), "the data plane does not end")
    found = read_intervals(host.ledger)
    check_laws(found)
    used = [each for each in found if each.key == KEY]
    first = next(at for at, each in enumerate(used) if each.state is SatelliteState.OPERATIONAL)
    last = max(at for at, each in enumerate(used) if each.state is SatelliteState.OPERATIONAL)
    # It was used from the first client to the last: it neither slept nor was it unknown while control planes came and went.
    assert {each.state for each in used[first : last + 1]} <= {SatelliteState.OPERATIONAL, SatelliteState.STARTING}
