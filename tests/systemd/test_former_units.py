"""Hosts that were set up when the package's unit was the one of one process: an upgrade changes the form of none of them.

The tests of a suite are one story on one host, in their order.
"""

from collections.abc import Iterator

import pytest

from beds.booted.machine import Booted
from beds.booted.package import built_package, former_package, next_version
from beds.booted.root import SUITES, booted_root
from beds.booted.story import DEADLINE_S, Story, ended
from beds.booted.two_processes import GO_OVER, PLANE_A, follow
from beds.peers.builds import Missing

pytestmark = [pytest.mark.slow, pytest.mark.untraced]

OVERRIDE = "/etc/systemd/system/bentpipe.service"
KEPT = "this host goes on with one process"


@pytest.fixture(scope="module", params=SUITES)
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A host with the former package, whose service runs as its README said then."""
    try:
        root, package = booted_root(request.param), built_package(request.param)
    except Missing as exc:
        pytest.skip(str(exc))
    with Booted(root) as host:
        story = Story(host, package, tmp_path_factory.mktemp("story"), "bentpipe.socket bentpipe.service")
        story.install(former_package(package, story.folder))
        story.configure()
        story.start()
        yield story


def test_a_host_with_one_process_keeps_it(story: Story) -> None:
    assert ended(story.build(0)) == "awake"
    before = story.show("MainPID")
    assert KEPT in story.install(story.package)
    assert story.show("FragmentPath") == OVERRIDE
    assert story.show("MainPID") not in {before, "0"}
    assert story.show("ActiveState", PLANE_A) == "inactive"
    assert ended(story.build(0)) == "awake"
    assert "connections live inside the daemon" in story.host.run("bentpipe check 2>&1")


def test_it_goes_over_and_stays_over(story: Story) -> None:
    follow(story, GO_OVER)
    for package in (None, next_version(story.package, story.folder)):
        assert package is None or KEPT not in story.install(package)
        assert story.show("FragmentPath").endswith("/lib/systemd/system/bentpipe.service")
        assert story.show("ActiveState", PLANE_A) == "active"
        assert ended(story.build(0)) == "awake"
    assert "connections live in a process of their own" in story.host.run("bentpipe check 2>&1")


def test_a_host_that_had_linked_the_unit_of_two_processes_works_on(story: Story) -> None:
    """Its link stays, and its configuration says what was needed then."""
    host = story.host
    host.run("systemctl link /usr/share/bentpipe/systemd/process/bentpipe.service")
    keys = 's#^\\[daemon\\]#&\\ndata_plane = "process"\\nplanes = "/run/bentpipe-planes"#'
    host.run('sed -i "$1" /etc/bentpipe/bentpipe.toml; systemctl restart bentpipe.service', keys, deadline_s=DEADLINE_S)
    assert ended(story.build(0)) == "awake"
    assert KEPT not in story.install(story.package)
    assert story.show("FragmentPath") == OVERRIDE
    assert ended(story.build(0)) == "awake"
    assert "data_plane" not in host.run("bentpipe check 2>&1")
