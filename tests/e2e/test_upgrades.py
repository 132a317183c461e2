"""Upgrades of the control plane and of the data plane under load, to a neighbouring version and back.

No connection is refused, reset or cut: not one that is spliced, held, greeted, new, or says nothing.
"""

import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.contracts.ledger import check_laws
from beds.hosts.two_planes import (
    DEADLINE_S,
    LATER_VERSION,
    THIS_VERSION,
    TwoPlanes,
    admitting_by,
    check_admitted,
    read_intervals,
    two_planes,
)
from beds.peers.control_storm import Storm, start_all

UPGRADES = int(os.environ.get("BENTPIPE_TEST_UPGRADES", "50"))
PLANE_UPGRADES = 10
LONGEST_S = 1.0
"""Between two upgrades."""

# A start that takes over PARKED_S lets new clients hear words, so they are for a machine that does nothing else.
pytestmark = pytest.mark.slow


def versions() -> Iterator[tuple[str, ...]]:
    """Which version comes next: each kind of step comes, to the other version and to the same one again."""
    return itertools.cycle((LATER_VERSION, THIS_VERSION, THIS_VERSION, LATER_VERSION, LATER_VERSION, THIS_VERSION))


def wait_slept(host: TwoPlanes) -> None:
    host.wait(lambda: host.states()[-1:] == ["sleep"], "it does not sleep after its last client")


@pytest.mark.parametrize("admission", ["snapshot", "asked"])
def test_upgrades_of_the_control_plane(tmp_path: Path, admission: str) -> None:
    chance = random.Random()
    took: list[float] = []
    with two_planes(tmp_path, **admitting_by(admission)) as host:
        storm = Storm(host)
        start_all(storm, polite=True)
        (plane,) = set(host.plane_pids())
        try:
            for program in itertools.islice(versions(), UPGRADES):
                time.sleep(chance.uniform(0.2, LONGEST_S))
                since = time.monotonic()
                assert host.end_control(signal.SIGUSR2) == 0
                host.start(program)
                took.append(time.monotonic() - since)
            time.sleep(LONGEST_S)
        finally:
            storm.stop()
        took.sort()
        print(f"{UPGRADES} upgrades, {took[len(took) // 2]:.1f} s each, {took[-1]:.1f} s at most; {storm.done}")
        assert storm.failures == []
        check_admitted(host, admission)
        assert all(storm.done.values()), storm.done
        assert set(host.plane_pids()) == {plane}
        wait_slept(host)
        assert host.end_control(signal.SIGTERM) == 0, "connections were cut"
    check_laws(read_intervals(host.ledger))


@pytest.mark.parametrize("admission", ["snapshot", "asked"])
def test_upgrades_of_the_data_plane(tmp_path: Path, admission: str) -> None:
    chance = random.Random()
    with two_planes(tmp_path, **admitting_by(admission)) as host:
        storm = Storm(host)
        start_all(storm, polite=True)
        newer = []
        try:
            for program in itertools.islice(versions(), PLANE_UPGRADES):
                time.sleep(chance.uniform(0.2, LONGEST_S))
                newer.append(host.start_plane(program))
                assert newer[-1].poll() is None, host.log_path.read_text()[-3000:]
            time.sleep(LONGEST_S)
        finally:
            storm.stop()
            last = newer.pop() if newer else None
        print(f"{PLANE_UPGRADES} upgrades; {storm.done}")
        assert storm.failures == []
        check_admitted(host, admission)
        assert all(storm.done.values()), storm.done
        assert [each.wait(DEADLINE_S) for each in newer] == [0] * len(newer), "connections were cut"
        assert len(set(host.plane_pids())) == PLANE_UPGRADES + 1
        wait_slept(host)
        assert host.end_control(signal.SIGTERM) == 0, "connections were cut"
        assert last is not None
        assert last.wait(DEADLINE_S) == 0
    check_laws(read_intervals(host.ledger))
