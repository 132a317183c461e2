"""No build takes its machine down by accident: real builds misuse a satellite that runs what bentpipe renders.

The short storms are one build each. The long ones (`make soak`) last minutes each. How the responder's answers slow down is
printed, as a ratio to idle; a test fails if one does not come.
"""

import os
import threading
import time

import pytest

from beds.guest.satellite import Answers, GuestSatellite
from beds.guest.storms import Storm, survive
from bentpipe.daemon.image.programs.runtime import STEP_SCORE
from bentpipe.daemon.image.programs.settings import BUILDS_CGROUP

IDLE_S = 5.0
LOOK = 'for p in $(pidof storm); do echo "$(cut -d: -f3 /proc/$p/cgroup) $(cat /proc/$p/oom_score_adj)"; done'
"""The cgroup and the oom_score_adj of each process of a step. A process may end meanwhile."""
LOOK_S = 0.5
LONG_S = float(os.environ.get("BENTPIPE_STORM_S", "120"))
NO_MEMORY = "cannot allocate memory"
NO_SPACE = "[Nn]o space left on device"
SHORT = (
    Storm("fork bomb", ("fork", "3"), "fork: Resource temporarily unavailable"),
    Storm("memory, in a cgroup of the client's choice", ("memory", "60"), NO_MEMORY, parent="system.slice"),
    Storm("one large file", ("large", "200", "/"), NO_SPACE),
)
LONG = (
    Storm("fork bomb", ("fork", "60"), "fork: Resource temporarily unavailable"),
    Storm("anonymous memory", ("memory", "200"), NO_MEMORY),
    Storm("anonymous memory, --cgroup-parent=/", ("memory", "200"), NO_MEMORY, parent="/"),
    Storm("anonymous memory, --cgroup-parent=system.slice", ("memory", "200"), NO_MEMORY, parent="system.slice"),
    Storm("page cache", ("cache", "60", "/", "700"), None),
    Storm("tmpfs", ("large", "200", "/t"), NO_MEMORY, tmpfs="/t"),
    Storm("one large file", ("large", "200", "/"), NO_SPACE),
    Storm("small files", ("files", "230", "/", "1000000", "4096"), None),
    Storm("a million empty files", ("files", "230", "/", "1000000", "0"), None),
    Storm("CPU at nice -20", ("burn", "60", "/", "8"), None),
    Storm("CPU at nice -20 and SCHED_FIFO, security.insecure", ("burn", "60", "/", "8"), None, insecure=True),
    Storm("fork bomb, security.insecure", ("fork", "60"), "fork: Resource temporarily unavailable", insecure=True),
    Storm("writes and fsync", ("io", "60", "/", "8"), None),
)


@pytest.fixture(scope="module")
def idle(satellite: GuestSatellite) -> Answers:
    """How the responder answers when nothing else runs."""
    with satellite.asked() as answers:
        time.sleep(IDLE_S)
    assert answers[0].failed == ()
    return answers[0]


def run(
    satellite: GuestSatellite, idle: Answers, storm: Storm, length_s: float, capsys: pytest.CaptureFixture[str]
) -> None:
    survived = survive(satellite, storm, length_s)
    with capsys.disabled():
        print(f"\n{storm.name}: {survived.words(idle)}")


@pytest.mark.parametrize("storm", SHORT, ids=lambda storm: storm.name)
def test_one_build(satellite: GuestSatellite, idle: Answers, storm: Storm, capsys: pytest.CaptureFixture[str]) -> None:
    run(satellite, idle, storm, 0.0, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("storm", LONG, ids=lambda storm: storm.name)
def test_minutes(satellite: GuestSatellite, idle: Answers, storm: Storm, capsys: pytest.CaptureFixture[str]) -> None:
    run(satellite, idle, storm, LONG_S, capsys)


def test_no_parent_leaves_the_limits(satellite: GuestSatellite) -> None:
    """A client chooses its steps' cgroup freely, but only below ours; and a step has no protection of BuildKit's."""
    parents = ("/", "../../..", "responder.slice/bentpipe-responder.service")
    builds = [
        threading.Thread(target=satellite.build, args=("burn", "8", "/", "1"), kwargs={"parent": parent})
        for parent in parents
    ]
    for build in builds:
        build.start()
    places: set[tuple[str, str]] = set()
    while any(build.is_alive() for build in builds):
        lines = [line.split() for line in satellite.guest.run(LOOK).splitlines()]
        places |= {(line[0], line[1]) for line in lines if len(line) == 2}
        time.sleep(LOOK_S)
    for build in builds:
        build.join()
    roots = {place.rpartition("/buildkit/")[0] for place, _ in places}
    assert roots == {f"/{BUILDS_CGROUP}", f"/{BUILDS_CGROUP}/responder.slice/bentpipe-responder.service"}
    assert {score for _, score in places} == {str(STEP_SCORE)}
