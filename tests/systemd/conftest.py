"""What stories of the installed service begin with."""

from collections.abc import Iterator

import pytest

from beds.booted.machine import Booted
from beds.booted.package import built_package, installed_root
from beds.booted.root import SUITES
from beds.booted.story import Story, ended
from beds.booted.two_processes import PLANE_A
from beds.peers.builds import Missing


@pytest.fixture(scope="module", params=SUITES)
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A host of each suite on which the package is installed and configured, and its service runs.

    It runs as the package does, in two processes, unless the module says `ONE_PROCESS = True`.
    """
    try:
        root, package = installed_root(request.param), built_package(request.param)
    except Missing as exc:
        pytest.skip(str(exc))
    with Booted(root) as host:
        story = Story(host, package, tmp_path_factory.mktemp("story"))
        story.configure()
        if getattr(request.module, "ONE_PROCESS", False):
            story.choose_one_process()
        story.start()
        yield story


@pytest.fixture(scope="module")
def over(story: Story) -> Story:
    """The host, seen to serve by two processes."""
    assert ended(story.build(0)) == "awake"
    assert story.show("ActiveState", PLANE_A) == "active"
    return story
