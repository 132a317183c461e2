"""systemd's own tools on the units: no complaint, and an exposure of at most 2.0."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
EXPOSURE_TIMES_TEN = 20

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with a program that exists here in place of /usr/bin/bentpipe."""
    for name in ("bentpipe.socket", "bentpipe.service"):
        (tmp_path / name).write_text((UNITS / name).read_text().replace("/usr/bin/bentpipe", "/bin/true"))
    return tmp_path


def analyze(units: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_verify(units: Path) -> None:
    verified = analyze(units, "verify", str(units / "bentpipe.service"), str(units / "bentpipe.socket"))
    complaints = [line for line in verified.stderr.splitlines() if "bentpipe" in line]
    assert not complaints
    assert verified.returncode == 0, verified.stderr


def test_exposure(units: Path) -> None:
    answer = analyze(
        units, "security", "--offline=true", f"--threshold={EXPOSURE_TIMES_TEN}", str(units / "bentpipe.service")
    )
    assert answer.returncode == 0, answer.stdout


def test_every_directive_of_the_sandbox_has_a_reason_above() -> None:
    text = (UNITS / "bentpipe.service").read_text()
    blocks = [block for block in text.split("\n\n") if "[" not in block[:1]]
    assert all(block.lstrip().startswith("#") for block in blocks)
