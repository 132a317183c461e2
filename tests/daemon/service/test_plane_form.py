"""Where connections live, and why: every way in which a daemon is started, and folders that cannot be used."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bentpipe.config.load import ConfigErrors, load_config
from bentpipe.config.model import Config
from bentpipe.daemon.image.programs.findings import Severity
from bentpipe.daemon.service import plane_form
from bentpipe.daemon.service.form_here import form_findings, judge_sock_diag, why_no_sock_diag
from bentpipe.daemon.service.plane_form import (
    BY_ITSELF,
    GIVEN,
    NO_FILE,
    ONE_UNIT,
    PASSED_SOCKETS,
    WRITTEN,
    choose_form,
    planes_folder,
    remove_own,
    why_unusable,
)

ADDRESS = '[[listener]]\naddress = "127.0.0.1:0"\n'
PASSED = '[[listener]]\nsystemd = "clients"\n'
SHELL: dict[str, str] = {}


def config_of(folder: Path, keys: str = "", listeners: str = ADDRESS) -> tuple[Config, Path]:
    path = folder / "bentpipe.toml"
    path.write_text(f'[daemon]\n{keys}\n[store]\nkind = "none"\n{listeners}')
    return load_config(path), path


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of this test stands for /run and /tmp. Its path is short, as theirs are: those of sockets have a limit."""
    with tempfile.TemporaryDirectory(prefix="bp-", dir="/tmp") as folder:
        monkeypatch.setattr(plane_form, "ROOTS_FOLDER", Path(folder))
        monkeypatch.setattr(plane_form, "USERS_FOLDER", Path(folder))
        yield Path(folder)


def test_a_shell_gets_two_processes_in_a_folder_of_this_file(tmp_path: Path, own_folders: Path) -> None:
    config, path = config_of(tmp_path)
    form = choose_form(config, path, None, SHELL)
    assert (form.why, form.is_external, form.warning) == (BY_ITSELF, False, "")
    assert form.folder is not None
    assert form.folder.parent == own_folders
    assert not form.folder.exists()  # the choice changes nothing
    other = tmp_path / "other"
    other.mkdir()
    assert choose_form(*config_of(other), None, SHELL).folder != form.folder


def test_a_file_has_one_folder_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = config_of(tmp_path)
    monkeypatch.chdir(tmp_path)
    folders = {
        planes_folder(config, each, None, SHELL)
        for each in (path, Path("bentpipe.toml"), Path("../" + tmp_path.name + "/bentpipe.toml"))
    }
    assert len(folders) == 1


@pytest.mark.parametrize("environment", [{"NOTIFY_SOCKET": "/run/notify"}, {"SYSTEMD_EXEC_PID": str(os.getpid())}])
def test_a_unit_without_planes_is_one_process(tmp_path: Path, environment: dict[str, str]) -> None:
    form = choose_form(*config_of(tmp_path), None, environment)
    assert (form.folder, form.why, form.warning) == (None, ONE_UNIT, "")


@pytest.mark.parametrize("environment", [{"SYSTEMD_EXEC_PID": "1"}, {"INVOCATION_ID": "0" * 32}, {"NOTIFY_SOCKET": ""}])
def test_a_shell_below_a_unit_is_a_shell(tmp_path: Path, environment: dict[str, str]) -> None:
    assert choose_form(*config_of(tmp_path), None, environment).why == BY_ITSELF


@pytest.mark.parametrize("listeners", [ADDRESS, PASSED])
def test_planes_that_are_given_are_waited_for(tmp_path: Path, listeners: str) -> None:
    config, path = config_of(tmp_path, listeners=listeners)
    form = choose_form(config, path, tmp_path / "planes", {"NOTIFY_SOCKET": "/run/notify"})
    assert (form.folder, form.why, form.is_external) == (tmp_path / "planes", GIVEN, True)


def test_the_file_names_the_folder_for_all(tmp_path: Path) -> None:
    config, path = config_of(tmp_path, f'planes = "{tmp_path}/named"')
    for given in (None, tmp_path / "planes"):
        assert choose_form(config, path, given, SHELL).folder == tmp_path / "named"


@pytest.mark.parametrize("is_service", [False, True])
def test_what_the_file_says_outright_holds(tmp_path: Path, *, is_service: bool) -> None:
    config, path = config_of(tmp_path, 'data_plane = "process"')
    form = choose_form(config, path, None, SHELL, is_service=is_service)
    assert (form.folder is not None, form.why, form.is_external) == (True, WRITTEN, is_service)
    config, path = config_of(tmp_path, 'data_plane = "inside"')
    assert choose_form(config, path, None, SHELL, is_service=is_service).folder is None


def test_contradictions_are_errors(tmp_path: Path) -> None:
    config, path = config_of(tmp_path, 'data_plane = "inside"')
    with pytest.raises(OSError, match="--planes"):
        choose_form(config, path, tmp_path / "planes", SHELL)
    config, _ = config_of(tmp_path, 'data_plane = "process"')
    with pytest.raises(OSError, match="reads the configuration from a file"):
        choose_form(config, None, None, SHELL)
    with pytest.raises(ConfigErrors, match="data_plane is"):
        config_of(tmp_path, 'data_plane = "inside"\nadmission = "snapshot"')


def test_sockets_that_are_passed_and_files_that_are_none(tmp_path: Path) -> None:
    assert choose_form(*config_of(tmp_path, listeners=PASSED), None, SHELL).why == PASSED_SOCKETS
    config, _ = config_of(tmp_path)
    reading, writing = os.pipe()
    try:
        for path in (None, Path(f"/dev/fd/{reading}")):
            assert choose_form(config, path, None, SHELL).why == NO_FILE
    finally:
        os.close(reading)
        os.close(writing)


def test_snapshots_without_a_process_are_warned_of(tmp_path: Path) -> None:
    config, path = config_of(tmp_path, 'admission = "snapshot"')
    assert choose_form(config, path, None, SHELL).warning == ""
    assert "has no effect" in choose_form(config, path, None, SHELL, is_service=True).warning


def spoil(folder: Path, how: str) -> None:
    if how == "file":
        folder.touch()
    elif how == "link":
        (folder.parent / "there").mkdir(mode=0o700)
        folder.symlink_to(folder.parent / "there")
    else:
        folder.mkdir(mode=0o700)
        folder.chmod(0o755)


@pytest.mark.parametrize("how", ["file", "link", "open"])
def test_a_folder_that_is_not_private_is_not_used(tmp_path: Path, how: str) -> None:
    """Anybody may make something of that name in /tmp. The daemon serves, and says what it lacks."""
    config, path = config_of(tmp_path)
    spoil(planes_folder(config, path, None, SHELL), how)
    form = choose_form(config, path, None, SHELL)
    assert form.folder is None
    assert "mode 0700" in form.warning
    assert "[daemon] planes" in form.warning
    [finding] = [each for each in form_findings(path) if each.subject == "connections"]
    assert finding.severity is Severity.WARN


def test_folders_that_nobody_can_make(tmp_path: Path) -> None:
    assert "at most" in why_unusable(tmp_path / ("x" * 120))
    assert why_unusable(Path("/proc/self/planes"))
    (tmp_path / "file").touch()
    assert why_unusable(tmp_path / "file/planes")
    assert why_unusable(tmp_path / "a/b/c") == ""


def test_a_folder_goes_with_the_last_data_plane(tmp_path: Path) -> None:
    folder = planes_folder(*config_of(tmp_path), None, SHELL)
    (folder / "handover").mkdir(parents=True)
    (folder / "0123abcd").touch()
    remove_own(folder)
    assert folder.exists()  # of another data plane
    (folder / "0123abcd").unlink()
    (folder / "handover").mkdir(exist_ok=True)
    remove_own(folder)
    assert not folder.exists()
    named = tmp_path / "named"
    named.mkdir()
    remove_own(named)
    assert named.exists()


def test_doctor_says_where_and_how(tmp_path: Path) -> None:
    _, path = config_of(tmp_path)
    assert {each.subject for each in form_findings(path)} == {"connections", "admission"}
    local = '[[satellite]]\norg = "acme"\nname = "ci"\n[satellite.process]\ncommand = ["true", "{port}"]\n'
    _, path = config_of(tmp_path, listeners=ADDRESS + local)
    assert {each.subject for each in form_findings(path)} == {"connections", "admission", "sock_diag"}
    assert why_no_sock_diag() == ""
    assert judge_sock_diag("Permission denied").severity is Severity.WARN
    path.write_text("mistake")
    assert list(form_findings(path)) == []
