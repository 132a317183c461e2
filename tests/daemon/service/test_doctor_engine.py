"""What `bentpipe doctor` says of the engine's options and of the kernel's settings for new connections."""

from pathlib import Path

import pytest

from bentpipe.config.engine import EngineSection
from bentpipe.daemon.image.programs.findings import Severity
from bentpipe.daemon.service.doctor import findings
from bentpipe.daemon.service.doctor_engine import check_syncookies, configured_engine, engine_findings


@pytest.mark.parametrize(("value", "severity"), [("0", Severity.WARN), ("1", Severity.OK), ("2", Severity.OK)])
def test_syncookies(tmp_path: Path, value: str, severity: Severity) -> None:
    folder = tmp_path / "sys" / "net" / "ipv4"
    folder.mkdir(parents=True)
    (folder / "tcp_syncookies").write_text(f"{value}\n")
    found = check_syncookies(tmp_path)
    assert found.severity is severity
    assert bool(found.remedy) is (severity is Severity.WARN)


@pytest.mark.parametrize(
    ("threads", "cores", "severity"),
    [(1, 2, Severity.OK), (2, 2, Severity.WARN), (0, 8, Severity.WARN), (7, 8, Severity.OK)],
)
def test_polling_needs_a_core_to_spare(threads: int, cores: int, severity: Severity) -> None:
    engine = EngineSection.model_validate({"threads": threads, "busy_poll": "200us"})
    polling, _ = engine_findings(engine, cores)
    assert (polling.subject, polling.severity) == ("busy_poll", severity)
    assert polling.seen.startswith("200 us; ")


def test_options_that_are_off_are_named() -> None:
    polling, unsent = engine_findings(EngineSection())
    assert (polling.severity, polling.seen) == (Severity.OK, "off")
    assert unsent.seen.startswith("the system's, ")


def test_a_configuration_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bentpipe.toml"
    path.write_text('[engine]\nnotsent_lowat = "128KiB"\n[[listener]]\naddress = "127.0.0.1:0"\n')
    assert [found.seen for found in configured_engine(path)] == ["off", "131072 bytes"]
    assert {"busy_poll", "notsent_lowat", "tcp_syncookies"} <= {found.subject for found in findings(path)}


def test_a_file_that_cannot_be_read_is_somebody_elses_finding(tmp_path: Path) -> None:
    assert list(configured_engine(tmp_path / "missing.toml")) == []
