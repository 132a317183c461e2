"""CONTRIBUTING.md names files, make targets and names that are there; the hook and the matrix can run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


def scripts_beside(folder: Path, python: str) -> Path:
    """`.ci` in a folder whose `.venv` has this program as its Python."""
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    path = folder / ".venv" / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{python}\n")
    path.chmod(0o755)
    return folder / ".ci"


def run_script(script: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(script)], env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_matrix_says_which_python_is_missing(tmp_path: Path) -> None:
    """With a build that does nothing, and a version that nobody has."""
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    done = run_script(scripts_beside(tmp_path, "") / "test-matrix", MATRIX_VERSIONS="3.99", PYENV_ROOT=str(tmp_path))
    assert done.returncode == 1
    assert "Python 3.99: MISSING" in done.stderr
    assert done.stderr.endswith("Python 3.99 is missing\n")


@pytest.mark.parametrize(("floor", "passes"), [(60, True), (90, False)])
def test_a_part_that_is_covered_less_than_its_floor_fails(tmp_path: Path, floor: int, passes: bool) -> None:
    """With a part of four lines and two branches, whose tests miss a line and a branch."""
    ci = scripts_beside(tmp_path, f'exec "{sys.executable}" "$@"')
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "half.py").write_text("def pick(x: int) -> int:\n    if x:\n        return 1\n    return 2\n")
    (tmp_path / "test_half.py").write_text("from part.half import pick\n\n\ndef test_it():\n    assert pick(1) == 1\n")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.coverage.run]\nbranch = true\nsource = ["part"]\ndata_file = "build/coverage/data"\n'
        '[tool.pytest.ini_options]\npythonpath = ["."]\nmarkers = ["slow", "untraced"]\n'
    )
    (ci / "coverage-floors").write_text(f"# Comment.\npart/* {floor}\n\ntests: test_half.py\n")
    (tmp_path / "conftest.py").write_text("from hypothesis import settings\nsettings.register_profile('coverage')\n")
    done = run_script(ci / "coverage")
    assert (done.returncode == 0) is passes, done.stderr
    assert ("below its floor of 90 %" in done.stderr) is not passes


def test_every_pure_package_has_a_floor() -> None:
    """Those of which DESIGN says that they decide and do nothing else."""
    floors = (ROOT / ".ci" / "coverage-floors").read_text()
    for path in ("config", "proto", "daemon/fleet/machine", "daemon/report"):
        found = re.search(rf"^{path}/\* (\d+)$", floors, re.MULTILINE)
        assert found is not None, path
        assert int(found[1]) >= 90
