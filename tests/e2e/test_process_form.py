"""The tests of this folder, run once more with the data plane as a process: some in `make test`, all in `make soak`.

In `make soak` they run twice, since the data plane may admit clients itself, or ask the control plane for each.

Each file is a run of pytest. `beds/hosts/form.py` has the tests that say nothing about that form, with the reasons.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ASKED, SNAPSHOT = "asked", "snapshot"
"""How clients are admitted, as the configuration has it."""
CHOSEN = {
    "test_ec2.py": ASKED,
    "test_health.py": ASKED,
    "test_identity.py": SNAPSHOT,
    "test_rfc9113.py": SNAPSHOT,
}
"""A wake, health, identities and refusals, in some 40 s on a busy machine."""
OF_THEIR_OWN = {
    "test_process_form.py",
    "test_control_killed.py",
    "test_data_plane_killed.py",
    "test_default_form.py",
    "test_take_over.py",
    "test_two_planes.py",
    "test_two_planes_shared.py",
    "test_two_planes_told.py",
    "test_upgrades.py",
}
"""These choose the form themselves."""
ALL = sorted(path.name for path in FOLDER.glob("test_*.py") if path.name not in OF_THEIR_OWN)
NONE_COLLECTED = 5
"""pytest's exit code for a file with slow tests alone."""


def run_in_form(file: str, admission: str) -> None:
    """Run a file's tests. Fails with what pytest says."""
    own = ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID", "PYTEST_CURRENT_TEST")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / file)],
        env={**environment, "BENTPIPE_TESTBED_DATA_PLANE": "process", "BENTPIPE_TESTBED_ADMISSION": admission},
        cwd=FOLDER.parents[1],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode in (0, NONE_COLLECTED), done.stdout[-8000:]


@pytest.mark.untraced
@pytest.mark.parametrize(("file", "admission"), CHOSEN.items())
def test_chosen_files(file: str, admission: str) -> None:
    run_in_form(file, admission)


@pytest.mark.slow
@pytest.mark.parametrize("admission", [ASKED, SNAPSHOT])
@pytest.mark.parametrize("file", ALL)
def test_every_file(file: str, admission: str) -> None:
    run_in_form(file, admission)
