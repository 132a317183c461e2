"""A run of the tests that leaves a process or a mount behind fails, and says which."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LEAVING = """
import subprocess, sys

def test_that_leaves_a_process():
    subprocess.Popen([sys.executable, "-ISc", "import time; time.sleep(600)", "left by a test"], start_new_session=True)
"""
ORPHANING = """
import subprocess, sys

def test_that_leaves_the_child_of_one_that_has_ended():
    child = [sys.executable, "-ISc", "import time; time.sleep(600)", "left by a test"]
    text = f"import subprocess; subprocess.Popen({child!r}, env={{}}, start_new_session=True)"
    subprocess.run([sys.executable, "-ISc", text], check=True)
"""
"""As the keeper of local satellites: with nothing of its starter's environment, in a session of its own."""


def run_tests(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of one file, with the tests' own conftest.py."""
    # Under CI pytest says an error twice: its summary is not cut to one line.
    inherited = {name: value for name, value in os.environ.items() if name not in {"CI", "BUILD_NUMBER"}}
    (folder / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (folder / "test_one.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\n")  # else pytest takes one of a folder above
    return subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, str(folder)],
        env={**inherited, "PYTHONPATH": str(TESTS)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("text", [LEAVING, ORPHANING], ids=["a child", "an orphan without environment"])
def test_a_process_that_is_left_behind_is_told_and_ended(tmp_path: Path, text: str) -> None:
    done = run_tests(tmp_path, text)
    assert done.returncode == 1, done.stdout
    assert "1 passed, 1 error" in done.stdout
    [line] = [line for line in done.stdout.splitlines() if line.startswith("process ")]
    assert "left by a test" in line
    pid = line.split()[1].rstrip(":")
    with contextlib.suppress(FileNotFoundError):
        assert Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}


def test_a_run_that_leaves_nothing_passes(tmp_path: Path) -> None:
    done = run_tests(tmp_path, "def test_nothing(): pass\n")
    assert done.returncode == 0, done.stdout + done.stderr
