"""What `bentpipe doctor` says of OpenSSL and of the certificates of a configuration."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from beds.issued import DAY, Issued, Key
from beds.revocation import RevokingAuthority
from beds.utc import now
from bentpipe.daemon.image.programs.findings import Finding, Severity
from bentpipe.daemon.service.doctor import judge_greeting, judge_openssl, run_doctor
from bentpipe.daemon.service.doctor_tls import configured_findings

SATELLITE = '[[satellite]]\norg = "acme"\nname = "builder"\n[satellite.process]\ncommand = ["true", "{port}"]\n'


def look(folder: Path, leaf: Issued, *, key: bytes | None = None, more: str = "") -> list[Finding]:
    """What doctor says of a listener with this certificate."""
    (folder / "chain.pem").write_bytes(leaf.pem())
    (folder / "key.pem").write_bytes(key or leaf.key_pem())
    config = folder / "bentpipe.toml"
    config.write_text(
        f'[[listener]]\naddress = "127.0.0.1:0"\n[listener.tls]\ncertificate = "{folder}/chain.pem"\n'
        f'key = "{folder}/key.pem"\n{more}{SATELLITE}'
    )
    return list(configured_findings(config))


def issued(days: float = 90, key: Key | None = None) -> Issued:
    return Issued("edge", begins=now() - DAY, ends=now() + days * DAY, key=key)


@pytest.mark.parametrize(
    ("version", "severity"),
    [
        ("OpenSSL 3.0.19 27 Jan 2026", Severity.WARN),
        ("OpenSSL 3.1.0 1 Jan 2024", Severity.WARN),
        ("OpenSSL 3.2.0 1 Jan 2024", Severity.OK),
        ("OpenSSL 3.5.9 1 Jan 2026", Severity.OK),
        ("OpenSSL 4.0.0 1 Jan 2027", Severity.OK),
        ("AWS-LC 1.40.0", Severity.OK),
    ],
)
def test_a_slow_openssl_is_named(version: str, severity: Severity) -> None:
    found = judge_openssl(version)
    assert (found.severity, found.seen) == (severity, version)
    assert ("1.4 times" in found.remedy) is (severity is Severity.WARN)


def test_a_build_without_nghttp2_is_named() -> None:
    assert judge_greeting("1.64.0").severity is Severity.OK
    found = judge_greeting(None)
    assert found.severity is Severity.WARN
    assert "libnghttp2-dev" in found.remedy


def test_a_good_certificate_says_when_it_ends(tmp_path: Path) -> None:
    [found] = look(tmp_path, issued())
    assert found.severity is Severity.OK
    assert found.seen.startswith(f"1 files; the first to end is {tmp_path}/chain.pem, at 20")


def test_an_rsa_key_costs(tmp_path: Path) -> None:
    leaf = issued(key=rsa.generate_private_key(public_exponent=65537, key_size=2048))
    good, slow = look(tmp_path, leaf)
    assert (good.severity, slow.severity, slow.subject) == (Severity.OK, Severity.WARN, "server key")
    assert f"{tmp_path}/chain.pem is for an RSA key" in slow.seen
    assert "ecdsa" in slow.remedy


def test_an_expired_certificate_and_a_key_of_another_one(tmp_path: Path) -> None:
    found = look(tmp_path, issued(days=-0.5), key=issued().key_pem())
    assert [each.severity for each in found] == [Severity.FAIL, Severity.WARN]
    assert "is not the key of" in found[0].seen
    assert "expired on" in found[1].seen


def test_a_revocation_list_that_has_ended(tmp_path: Path) -> None:
    authority = RevokingAuthority(tmp_path)
    crl = authority.revoke(age=7 * DAY, life=6 * DAY)
    [found] = look(tmp_path, issued(), more=f'client_ca = "{authority.file}"\nclient_crl = "{crl}"\n')
    assert (found.severity, found.subject) == (Severity.WARN, "certificates")
    assert "has ended at" in found.seen


def test_a_configuration_that_cannot_be_read_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bentpipe.toml").write_text("[listener\n")
    assert run_doctor(tmp_path / "bentpipe.toml") == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("FAIL configuration")
    assert f"bentpipe check {tmp_path}/bentpipe.toml says why" in line


def test_a_configuration_without_tls(tmp_path: Path) -> None:
    config = tmp_path / "bentpipe.toml"
    config.write_text(f'[[listener]]\naddress = "127.0.0.1:0"\n{SATELLITE}')
    [found] = configured_findings(config)
    assert (found.severity, found.seen) == (Severity.OK, "the configuration names none")
