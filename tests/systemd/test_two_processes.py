"""Control plane and data plane in their units, on an installed host that goes over to them as docs/data-plane.md says."""

from collections.abc import Iterator

import pytest

from beds.booted.machine import Booted
from beds.booted.package import installed_root
from beds.booted.root import SUITES
from beds.booted.story import DEADLINE_S, Story, begun, ended
from beds.pages.list import installed_blocks
from beds.peers.builds import Missing

pytestmark = [pytest.mark.slow, pytest.mark.untraced]

BUILD_S = 30.0
"""Longer than a restart and a start take."""


@pytest.fixture(scope="module", params=SUITES)
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    try:
        root = installed_root(request.param)
    except Missing as exc:
        pytest.skip(str(exc))
    with Booted(root) as host:
        story = Story(host, root, tmp_path_factory.mktemp("story"))
        story.configure()
        host.run("systemctl enable --now bentpipe.socket bentpipe.service", deadline_s=DEADLINE_S)
        assert ended(story.build(0)) == "awake"
        [goes_over] = [each for each in installed_blocks("data-plane.md") if "enable" in each.text]
        host.run(goes_over.text, deadline_s=DEADLINE_S)
        yield story


def test_restarts_of_both_cut_no_build(story: Story) -> None:
    """A build goes on while the control plane restarts and the data plane is replaced; the satellite is the same process."""
    host = story.host
    satellite = host.run("pgrep --full [t]estbed.satellite")
    running = begun(story.build(BUILD_S))
    before = story.show("MainPID")
    host.run("systemctl restart bentpipe.service", deadline_s=DEADLINE_S)
    assert story.show("MainPID") not in {before, "0"}
    host.run("systemctl start bentpipe-dataplane@b.service", deadline_s=DEADLINE_S)
    assert ended(story.build(0)) == "awake"
    assert ended(running) == "awake"
    gone = "while systemctl --quiet is-active bentpipe-dataplane@a.service; do sleep 0.2; done"
    host.run(gone, deadline_s=DEADLINE_S)
    assert host.run("pgrep --full [t]estbed.satellite") == satellite


def test_a_killed_control_plane_cuts_no_build(story: Story) -> None:
    host = story.host
    running = begun(story.build(BUILD_S))
    host.run("systemctl kill --signal=KILL --kill-whom=main bentpipe.service")
    assert ended(story.build(0)) == "awake"
    assert ended(running) == "awake"
