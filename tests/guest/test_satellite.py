"""A satellite that runs what bentpipe renders, with real BuildKit: its limits hold, and it goes on after a sleep.

The storms here are one build each; test_storms.py has those of minutes.
"""

import threading
import time

import pytest

from beds.guest.satellite import Answers, GuestSatellite
from beds.guest.storms import NO_MEMORY, NO_SPACE, Storm, survive
from bentpipe.daemon.image.programs.runtime import STEP_SCORE
from bentpipe.daemon.image.programs.settings import BUILDS_CGROUP

pytestmark = pytest.mark.slow

LOOK = 'for p in $(pidof storm); do echo "$(cut -d: -f3 /proc/$p/cgroup) $(cat /proc/$p/oom_score_adj)"; done'
"""The cgroup and the oom_score_adj of each process of a step. A process may end meanwhile."""
LOOK_S = 0.5
STORMS = (
    Storm("fork bomb", ("fork", "3"), "fork: Resource temporarily unavailable"),
    Storm("memory, in a cgroup of the client's choice", ("memory", "60"), NO_MEMORY, parent="system.slice"),
    Storm("one large file", ("large", "200", "/"), NO_SPACE),
)


def test_the_doctor_finds_nothing_wrong(satellite: GuestSatellite) -> None:
    """It exits with 1 if the machine is not what was rendered. What it only warns of is the guest's own: no TLS."""
    assert " FAIL" not in satellite.guest.run("bentpipe-doctor")


@pytest.mark.parametrize("storm", STORMS, ids=lambda storm: storm.name)
def test_a_storm(satellite: GuestSatellite, idle: Answers, storm: Storm, capsys: pytest.CaptureFixture[str]) -> None:
    survived = survive(satellite, storm, 0.0)
    with capsys.disabled():
        print(f"\n{storm.name}: {survived.words(idle)}")


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


def test_it_goes_on_after_a_sleep(satellite: GuestSatellite) -> None:
    """The boot id shows that it is the same boot, and BuildKit is the same process, which builds at once."""
    before, life = satellite.status(), satellite.life()
    satellite.guest.sleep()
    satellite.guest.wake()
    after = satellite.status()
    assert after.boot_id == before.boot_id
    assert after.uptime_ms > before.uptime_ms
    built = satellite.small_build()
    assert built.code == 0, built.progress[-3000:]
    assert satellite.life() == life
