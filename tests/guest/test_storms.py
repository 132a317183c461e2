"""Storms of minutes each against a satellite: no build takes its machine down by accident.

How the responder's answers slow down is printed, as a ratio to idle; a test fails if one does not come. BENTPIPE_STORM_S is
the least length of a storm: shorter ones are built again and again.
"""

import os

import pytest

from beds.guest.satellite import Answers, GuestSatellite
from beds.guest.storms import NO_MEMORY, NO_SPACE, Storm, survive

LENGTH_S = float(os.environ.get("BENTPIPE_STORM_S", "120"))
STORMS = (
    Storm("fork bomb", ("fork", "60"), "fork: Resource temporarily unavailable"),
    Storm("anonymous memory", ("memory", "200"), NO_MEMORY),
    Storm("anonymous memory, --cgroup-parent=/", ("memory", "200"), NO_MEMORY, parent="/"),
    Storm("anonymous memory, --cgroup-parent=system.slice", ("memory", "200"), NO_MEMORY, parent="system.slice"),
    Storm("page cache", ("cache", "60", "/", "700"), None),
    Storm("tmpfs", ("large", "200", "/t"), NO_MEMORY, tmpfs="/t"),
    Storm("one large file", ("large", "200", "/"), NO_SPACE),
    Storm("small files", ("files", "100", "/", "100000", "4096"), None),
    Storm("empty files", ("files", "60", "/", "1000000", "0"), None),
    Storm("CPU at nice -20", ("burn", "60", "/", "8"), None, says="SCHED_FIFO: Operation not permitted"),
    Storm("CPU at nice -20 and SCHED_FIFO, security.insecure", ("burn", "60", "/", "8"), None, insecure=True),
    Storm("fork bomb, security.insecure", ("fork", "60"), "fork: Resource temporarily unavailable", insecure=True),
    Storm("writes and fsync", ("io", "60", "/", "8"), None),
)


@pytest.mark.slow
@pytest.mark.parametrize("storm", STORMS, ids=lambda storm: storm.name)
def test_minutes(
    satellite: GuestSatellite, idle: Answers, computing: Answers, storm: Storm, capsys: pytest.CaptureFixture[str]
) -> None:
    survived = survive(satellite, storm, LENGTH_S)
    ratio = survived.answers.percentile_s(99) / computing.percentile_s(99)
    with capsys.disabled():
        print(f"\n{storm.name}: {survived.words(idle)}; ratio to cores that only compute {ratio:.1f}")
