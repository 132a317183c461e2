"""docs/troubleshooting.md against the real program: each mistake is made, and what the page says of it is what is said."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.cloud_mistakes import MISTAKES, cloud_edge
from beds.mistakes import BEFORE, DURING, Edge, Folder, edge
from beds.pages.troubleshooting import pattern_of, rows

LOW_PORT, LOWER_THAN = "a port below 1024", 1024
NO_UNITS = "the units are not there, after an installation of the wheel"
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
    "`init` without buildkitd, and without the demo's extra": ("test_installed_wheel.py", "init"),
    "a satellite's program makes namespaces, under the units": ("systemd/test_service.py", "makes namespaces"),
    "a satellite's program changes its user, under the units": ("systemd/test_service.py", "changes its user"),
    "a region is misspelt, and the daemon runs": ("daemon/providers/ec2/test_errors.py", "there is no host"),
    "the file of a unit's credential is missing": ("daemon/service/test_installed.py", "whose_file_is_missing"),
    "a credential is in the wrong unit of two": (
        "daemon/service/test_installed.py",
        "the_unit_that_has_no_connections",
    ),
    "the file and the unit mean different forms": ("daemon/service/test_installed.py", "runs the control plane alone"),
}
"""Rows whose mistake another test makes: its file, and a word of it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("mistakes"))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with edge(Folder(tmp_path_factory.mktemp("edge"))) as running:
        yield running


@pytest.mark.parametrize("mistake", BEFORE)
def test_what_a_command_says(mistake: str, folder: Folder) -> None:
    if mistake == LOW_PORT and int(UNPRIVILEGED.read_text()) < LOWER_THAN:
        pytest.skip("any user may listen on low ports here")
    if mistake == NO_UNITS and shutil.which("systemctl") is None:
        pytest.skip("this machine has no systemctl")
    assert pattern_of(mistake).search(BEFORE[mistake](folder))


@pytest.mark.parametrize("mistake", DURING)
def test_what_a_client_is_told(mistake: str, host: Edge) -> None:
    assert pattern_of(mistake).search(DURING[mistake](host))


def test_what_a_client_is_told_of_the_cloud(tmp_path: Path) -> None:
    """Each is told by the daemon, and not by the client's own deadline."""
    with cloud_edge(tmp_path) as running:
        for mistake in MISTAKES:
            assert pattern_of(mistake).search(said := running.make(mistake)), (mistake, said)


def test_every_mistake_has_its_row_and_every_row_its_test() -> None:
    found = rows()
    assert sorted(found) == sorted([*BEFORE, *DURING, *MISTAKES, *ELSEWHERE])
    assert len(found) >= 30
    assert all(said and remedy for said, remedy in found.values())


def test_the_other_tests_are_there() -> None:
    for mistake, (path, word) in ELSEWHERE.items():
        assert word in (TESTS / path).read_text(), mistake
