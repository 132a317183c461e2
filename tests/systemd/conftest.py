"""What stories of the installed service begin with."""

from collections.abc import Iterator

import pytest

from beds.booted.machine import Booted
from beds.booted.package import built_package, installed_root
from beds.booted.root import SUITES
from beds.booted.story import Story, ended
from beds.booted.two_processes import GO_OVER, follow
from beds.peers.builds import Missing


@pytest.fixture(scope="module", params=SUITES)
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A host of each suite on which the package is installed and configured, and its service runs."""
    try:
        root, package = installed_root(request.param), built_package(request.param)
    except Missing as exc:
        pytest.skip(str(exc))
    with Booted(root) as host:
        story = Story(host, package, tmp_path_factory.mktemp("story"))
        story.configure()
        story.start()
        yield story


@pytest.fixture(scope="module")
def over(story: Story) -> Story:
    """The host after it has gone over to two processes."""
    assert ended(story.build(0)) == "awake"
    follow(story, GO_OVER)
    assert ended(story.build(0)) == "awake"
    return story
