"""docs/troubleshooting.md against the real program: each mistake is made, and what the page says of it is what is said."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.mistakes import BEFORE, DURING, Edge, Folder, edge

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
LOW_PORT, LOWER_THAN = "a port below 1024", 1024
UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
TESTS = Path(__file__).parents[1]
ELSEWHERE = {
    "`token add` beside the installed service": ("daemon/service/test_installed.py", "token add"),
    "a signal before the daemon has started": ("e2e/test_early_signals.py", "SIGHUP"),
    "a mistake, and a restart of the service": ("e2e/test_last_good.py", "MISTAKES"),
    "`docker buildx ls` wakes satellites": ("e2e/test_buildx.py", '("ls",)'),
    "OTLP without its extra": ("daemon/service/test_preflight.py", "traces"),
    "a CRL has ended": ("daemon/service/test_preflight.py", "crl_concerns"),
    "the demo without its extra": ("test_installed_wheel.py", "demo"),
}
"""Rows whose mistake another test makes: its file, and a word of it."""


def rows() -> dict[str, tuple[str, str]]:
    """What the page says, and what it tells to do, by the mistake."""
    found = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if (
            line.startswith("| ")
            and len(cells) == len(("mistake", "said", "to do"))
            and cells[0] not in ("mistake", "---")
        ):
            found[cells[0]] = cells[1], cells[2]
    return found


def pattern_of(cell: str) -> re.Pattern[str]:
    """The words of code, one after the other; `…` in them stands for anything."""
    words = [one or other for one, other in re.findall(r"``(.+?)``|`([^`]+)`", cell)]
    assert words, cell
    return re.compile(".*".join(".*".join(map(re.escape, each.split("…"))) for each in words), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("mistakes"))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with edge(Folder(tmp_path_factory.mktemp("edge"))) as running:
        yield running


@pytest.mark.parametrize("mistake", BEFORE)
def test_what_a_command_says(mistake: str, folder: Folder) -> None:
    said, _ = rows()[mistake]
    if mistake == LOW_PORT and int(UNPRIVILEGED.read_text()) < LOWER_THAN:
        pytest.skip("any user may listen on low ports here")
    assert pattern_of(said).search(BEFORE[mistake](folder))


@pytest.mark.parametrize("mistake", DURING)
def test_what_a_client_is_told(mistake: str, host: Edge) -> None:
    said, _ = rows()[mistake]
    assert pattern_of(said).search(DURING[mistake](host))


def test_every_mistake_has_its_row_and_every_row_its_test() -> None:
    found = rows()
    assert sorted(found) == sorted([*BEFORE, *DURING, *ELSEWHERE])
    assert len(found) >= 30
    assert all(said and remedy for said, remedy in found.values())


def test_the_other_tests_are_there() -> None:
    for mistake, (path, word) in ELSEWHERE.items():
        assert word in (TESTS / path).read_text(), mistake
