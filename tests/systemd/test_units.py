"""systemd's own tools on the units: no complaint, and a bound on each one's exposure."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
PROCESS = UNITS / "process"
"""The units of a daemon whose data plane is a process of its own."""
SETS = {
    UNITS: ("bentpipe.socket", "bentpipe.service", "bentpipe-keeper.service"),
    PROCESS: ("bentpipe-dataplane.socket", "bentpipe-dataplane@.service", "bentpipe.service", "bentpipe.target"),
}
EXPOSURE_TIMES_TEN = 15
KEEPER_TIMES_TEN = 20
"""The keeper may become satellites' users, and signal them."""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture(params=SETS, ids=["one process", "two processes"])
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture
def units(tmp_path: Path, folder: Path) -> Path:
    """The units with a program that exists here in place of /usr/bin/bentpipe."""
    for name in SETS[folder]:
        (tmp_path / name).write_text((folder / name).read_text().replace("/usr/bin/bentpipe", "/bin/true"))
    return tmp_path


def analyze(units: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_unit_is_in_a_set() -> None:
    for folder, names in SETS.items():
        assert {path.name for path in folder.iterdir() if path.name.startswith("bentpipe")} == set(names)


def test_verify(units: Path, folder: Path) -> None:
    names = [name.replace("@.", "@a.") for name in SETS[folder]]
    verified = analyze(units, "verify", *(str(units / name) for name in names))
    complaints = [line for line in verified.stderr.splitlines() if "bentpipe" in line]
    assert not complaints
    assert verified.returncode == 0, verified.stderr


def test_exposure(units: Path, folder: Path) -> None:
    for name in SETS[folder]:
        if name.endswith(".service"):
            unit = str(units / name)
            most = KEEPER_TIMES_TEN if "keeper" in name else EXPOSURE_TIMES_TEN
            answer = analyze(units, "security", "--offline=true", f"--threshold={most}", unit)
            assert answer.returncode == 0, answer.stdout


def test_every_directive_of_the_sandbox_has_a_reason_above(folder: Path) -> None:
    for name in SETS[folder]:
        if name.endswith(".service"):
            blocks = [block for block in (folder / name).read_text().split("\n\n") if "[" not in block[:1]]
            assert all(block.lstrip().startswith("#") for block in blocks)


def test_no_unit_lets_systemd_compare_the_mode_of_the_configurations_folder() -> None:
    """The package gives it 0750, and an administrator may give it another one; systemd would warn of each but its own."""
    for folder, names in SETS.items():
        assert not [name for name in names if "ConfigurationDirectory=b" in (folder / name).read_text()]


def test_a_restart_of_the_control_plane_starts_no_data_plane() -> None:
    """The instance that it would start has perhaps given its sockets to the other one."""
    text = (PROCESS / "bentpipe.service").read_text()
    assert not [line for line in text.splitlines() if line.startswith(("Wants=", "Requires=")) and "dataplane" in line]


def test_only_the_data_plane_gets_the_key_and_the_port() -> None:
    control, data = ((PROCESS / name).read_text() for name in ("bentpipe.service", "bentpipe-dataplane@.service"))
    assert "LoadCredential=" not in control
    assert "Sockets=" not in control
    assert "LoadCredential=tls.key" in data
    assert "Delegate=" not in data
