"""Which pages there are, and which of their blocks run where."""

from pathlib import Path

from beds.pages.blocks import Block, read_blocks

DOCS = Path(__file__).parents[3] / "docs"
README = "../README.md"
PAGES = (README, *sorted(path.name for path in DOCS.glob("*.md")))
"""All pages that users and operators read, as paths below docs/."""

BEFORE = {
    "clients.md": (("quick-start.md", "A first build"),),
    "api.md": (("quick-start.md", "A first build"), ("quick-start.md", "Ask the daemon")),
}
"""What a page says that it goes on from: sections of other pages."""


def blocks_of(page: str) -> list[Block]:
    """All blocks of a page."""
    return read_blocks(DOCS / page)


def host_blocks(page: str) -> list[Block]:
    """The blocks that a test runs in namespaces, with those of the sections before."""
    before = [
        block
        for other, section in BEFORE.get(page, ())
        for block in blocks_of(other)
        if block.section == section and block.runs_in_namespaces
    ]
    return [*before, *(block for block in blocks_of(page) if block.runs_in_namespaces)]


def installed_blocks(page: str) -> list[Block]:
    """The blocks that a test runs on a host with the package and systemd."""
    return [block for block in blocks_of(page) if block.runs_on_a_host]


HOST_PAGES = tuple(page for page in PAGES if any(each.runs_in_namespaces for each in blocks_of(page)))
INSTALLED_PAGES = tuple(page for page in PAGES if installed_blocks(page))
