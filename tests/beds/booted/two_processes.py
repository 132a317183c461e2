"""A host that goes over to two processes and back, by the commands of docs/two-processes.md."""

from beds.booted.story import DEADLINE_S, Story
from beds.pages.list import installed_blocks

PLANE_A, PLANE_B = "bentpipe-dataplane@a.service", "bentpipe-dataplane@b.service"
KEEPER = "bentpipe-keeper.service"
GO_OVER, GO_BACK = "Go over to two processes", "Go back to one process"
"""Sections of the page."""


def follow(story: Story, section: str) -> None:
    """Run the commands of a section."""
    blocks = [each for each in installed_blocks("two-processes.md") if each.section == section]
    assert blocks, section
    for each in blocks:
        story.host.run(each.text, deadline_s=DEADLINE_S)
