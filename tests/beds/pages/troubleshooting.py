"""The tables of docs/troubleshooting.md: what is said of each mistake, as a pattern."""

import re

from beds.pages.list import DOCS

HEAD = ("mistake", "---")


def rows() -> dict[str, tuple[str, str]]:
    """What the page says, and what it tells to do, by the mistake."""
    found = {}
    for line in (DOCS / "troubleshooting.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == len(("mistake", "said", "to do")) and cells[0] not in HEAD:
            found[cells[0]] = cells[1], cells[2]
    return found


def pattern_of(mistake: str) -> re.Pattern[str]:
    """The words of code that are said of it, one after the other; `…` in them stands for anything."""
    said, _ = rows()[mistake]
    words = [one or other for one, other in re.findall(r"``(.+?)``|`([^`]+)`", said)]
    assert words, said
    return re.compile(".*".join(".*".join(map(re.escape, each.split("…"))) for each in words), re.DOTALL)
