"""CONTRIBUTING.md names files, make targets and names that are there; the hook and the matrix can run."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from bentpipe.config.model import SatelliteSection

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
NAMED = re.findall(r"`([^`]+)`", TEXT)
KINDS = {"a provider of machines", "a metric", "a configuration key", "a refusal", "a fact of the ledger", "a package"}


def test_every_file_that_it_names_is_there() -> None:
    paths = [each for each in NAMED if re.fullmatch(r"[\w./-]+(/|\.(py|toml|md|lock))", each)]
    assert len(paths) > 20
    assert [each for each in paths if not (ROOT / each).exists()] == []


def test_every_target_that_it_names_is_one() -> None:
    phony = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    targets = {each.removeprefix("make ") for each in NAMED if each.startswith("make ")}
    assert len(targets) > 8
    assert targets - set(phony[1].split()) == set()


def test_it_says_how_to_add_each_kind() -> None:
    assert set(re.findall(r"^### (.*)$", TEXT, re.MULTILINE)) == KINDS
    assert "provider" in SatelliteSection.model_fields


def test_the_hook_refuses_what_check_refuses(tmp_path: Path) -> None:
    """With a check of its own, that fails until a file says otherwise."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "MAKE"))}

    def git(*arguments: str) -> int:
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.com")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False
        ).returncode

    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    recipe = (ROOT / "Makefile").read_text().partition("\nhooks:\n")[2].partition("\n\n")[0]
    (tmp_path / "Makefile").write_text(f"hooks:\n{recipe}\ncheck:\n\ttest -e good\n")
    assert git("init", "-q") == 0
    assert (
        subprocess.run(["make", "hooks"], cwd=tmp_path, env=environment, capture_output=True, check=False).returncode
        == 0
    )
    assert git("add", ".") == 0
    assert git("commit", "-qm", "one") != 0
    (tmp_path / "good").touch()
    assert git("commit", "-qm", "one") == 0


def test_the_matrix_says_which_python_is_missing(tmp_path: Path) -> None:
    """With a build that does nothing, and a version that nobody has."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    environment = os.environ | {"MATRIX_VERSIONS": "3.99", "PYENV_ROOT": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(tmp_path / ".ci" / "test-matrix")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Python 3.99: MISSING" in done.stderr
    assert done.stderr.endswith("Python 3.99 is missing\n")
