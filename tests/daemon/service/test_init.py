"""What `bentpipe init` writes and chooses, without running a daemon."""

import dataclasses
import datetime
import ipaddress
import os
import shutil
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from bentpipe.config.load import load_config
from bentpipe.daemon.service.init_certificates import is_host, make_certificates
from bentpipe.daemon.service.init_files import Installation, config_text, unit_text, write_installation
from bentpipe.daemon.service.init_satellite import LIST_WORKERS, InitError, Program, choose_program
from bentpipe.daemon.service.token import hash_token, new_token

HOSTS = ("builds.example.com", "10.0.0.7", "::1", "localhost")
PRIVATE = {"bentpipe.toml", "ca-key.pem", "key.pem"}
PUBLIC = {"bentpipe.service", "ca.pem", "cert.pem"}


def installation(folder: Path, **changes: object) -> Installation:
    program = Program(("/bin/true", "{port}"), "a program", "/a/b", known=True)
    certificates = make_certificates(HOSTS, "bentpipe:admin")
    made = Installation(folder, 8372, 8373, "acme", "builder", hash_token("t"), program, certificates)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def handshake(folder: Path, host: str) -> None:
    """A TLS handshake in memory, with the strictest checks that OpenSSL has. Raises ssl.SSLError."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    client = ssl.create_default_context(cafile=folder / "ca.pem")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname=host), server.wrap_bio(up, down, server_side=True)]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass


@pytest.mark.parametrize("host", HOSTS)
def test_a_strict_client_that_trusts_the_authority_accepts_each_host(tmp_path: Path, host: str) -> None:
    write_installation(installation(tmp_path / "new"))
    handshake(tmp_path / "new", host)


@pytest.mark.parametrize("host", ["example.com", "other.example.com", "10.0.0.8"])
def test_it_accepts_no_other_host(tmp_path: Path, host: str) -> None:
    write_installation(installation(tmp_path / "new"))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "new", host)


def test_it_accepts_no_other_authority(tmp_path: Path) -> None:
    write_installation(installation(tmp_path / "new"))
    write_installation(installation(tmp_path / "other"))
    shutil.copy(tmp_path / "other/ca.pem", tmp_path / "new/ca.pem")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "new", "localhost")


def test_what_the_certificates_may_be_used_for() -> None:
    made = make_certificates(HOSTS, "bentpipe:admin")
    authority, leaf = (x509.load_pem_x509_certificate(pem) for pem in (made.authority, made.certificate))
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["builds.example.com", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(each) for each in ("10.0.0.7", "::1")]
    assert leaf.not_valid_after_utc == made.ends
    assert made.ends - datetime.datetime.now(datetime.UTC) <= datetime.timedelta(days=825)
    assert authority.not_valid_after_utc > leaf.not_valid_after_utc


@pytest.mark.parametrize("text", ["a", "builds.example.com", "my_host", "x" * 63, "10.0.0.1", "fd00::1"])
def test_hosts(text: str) -> None:
    assert is_host(text)


@pytest.mark.parametrize("text", ["", "a b", "a..b", ".a", "a.", "-a", "x" * 64, "a/b", "https://a", "a:1", "ä", "a\n"])
def test_not_hosts(text: str) -> None:
    assert not is_host(text)


@pytest.fixture
def lax_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("lax_umask")
def test_only_its_owner_can_read_what_is_private(tmp_path: Path) -> None:
    write_installation(installation(tmp_path / "new"))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    assert modes == {**dict.fromkeys(PRIVATE, 0o600), **dict.fromkeys(PUBLIC, 0o644)}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["plain", "with space", 'a "quote"', "back\\slash", "50%", "$HOME", "ü"])
def test_the_configuration_is_read_back_whatever_the_folder_is_called(tmp_path: Path, name: str) -> None:
    made = installation(tmp_path / name)
    config = write_installation(made)
    assert config == load_config(made.config_path)
    assert config.listener[0].address == ("", 8372)
    assert config.listener[0].api
    assert config.store.path == tmp_path / name / "ledger.sqlite"
    process = config.satellite[0].process
    assert process is not None
    assert process.command == ("/bin/true", "{port}")
    assert (config.token[0].grants, config.token[0].scopes) == (("acme/*",), ("manage",))


def test_buildkit_gets_a_listener_for_clients_with_a_certificate(tmp_path: Path) -> None:
    program = Program(("/bin/true", "{port}"), "BuildKit", LIST_WORKERS, known=True)
    made = installation(tmp_path / "new", program=program)
    config = write_installation(made)
    assert [each.address for each in config.listener] == [("", 8372), ("", 8373)]
    tls = config.listener[1].tls
    assert tls is not None
    assert (tls.client_ca, tls.satellite_domain) == (made.ca_path, "sat.internal")
    assert not config.listener[1].api
    [certificate] = config.certificate
    assert (certificate.san, certificate.grants, certificate.scopes) == ("URI:bentpipe:admin", ("acme/*",), ("use",))
    assert stat.S_IMODE((made.folder / "client-key.pem").stat().st_mode) == 0o600
    leaf = x509.load_pem_x509_certificate((made.folder / "client.pem").read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["bentpipe:admin"]
    uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_what_is_there_is_never_touched(tmp_path: Path) -> None:
    write_installation(installation(tmp_path / "new"))
    before = {path: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    with pytest.raises(InitError, match="is there already, and nothing in it was changed"):
        write_installation(installation(tmp_path / "new"))
    assert {path: path.read_bytes() for path in (tmp_path / "new").iterdir()} == before


def test_nothing_is_left_of_a_folder_that_could_not_be_finished(tmp_path: Path) -> None:
    for changes in ({"org": "not valid"}, {"satellite": "\udcff"}):
        with pytest.raises(InitError, match="which was removed again"):
            write_installation(installation(tmp_path / "new", **changes))
        assert not (tmp_path / "new").exists()


def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o500)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may write everywhere
    try:
        with pytest.raises(InitError, match="Permission denied: name a folder inside one that you may write"):
            write_installation(installation(tmp_path / "mine/new"))
    finally:
        os.seteuid(user)
    assert not (tmp_path / "mine/new").exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", ["plain", "with space and 50% of $HOME"])
def test_systemd_accepts_the_unit(tmp_path: Path, name: str) -> None:
    made = installation(tmp_path / name)
    unit = tmp_path / "bentpipe-test.service"
    unit.write_text(unit_text(made))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "bentpipe-test" in line]) == (0, [])
    [line] = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    assert line.endswith(f'serve --config "{made.config_path}"'.replace("%", "%%").replace("$", "$$"))


def test_the_token_is_written_nowhere(tmp_path: Path) -> None:
    token = new_token()
    made = installation(tmp_path / "new", token_hash=hash_token(token))
    write_installation(made)
    assert not any(token.encode() in path.read_bytes() for path in made.folder.iterdir())
    assert hash_token(token) in config_text(made)


def programs(folder: Path, *names: str) -> dict[str, str]:
    """An environment in which these programs are all that is installed."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


def test_buildkit_is_taken_if_it_is_there(tmp_path: Path) -> None:
    environment = programs(tmp_path / "bin", "buildkitd", "unshare", "runc")
    chosen = choose_program(None, tmp_path / "new", demo=False, environment=environment, root=True)
    assert chosen.command[0] == str(tmp_path / "bin/unshare")
    assert str(tmp_path / "bin/buildkitd") in chosen.command
    assert str(tmp_path / "new/buildkit") in chosen.command
    asked = choose_program(None, tmp_path / "new", demo=True, environment=environment, root=True)
    assert "bentpipe.daemon.testbed.satellite" in asked.command
    assert "as asked" in asked.words


def test_containerd_runs_containers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bentpipe.daemon.service.init_satellite.CONTAINERD", tmp_path)
    environment = programs(tmp_path / "bin", "buildkitd", "unshare")
    assert choose_program(None, tmp_path / "new", demo=False, environment=environment, root=True).is_buildkit


def test_the_demo_s_server_is_taken_if_there_is_no_buildkit_and_the_user_is_told(tmp_path: Path) -> None:
    chosen = choose_program(None, tmp_path, demo=False, environment=programs(tmp_path / "bin"), root=False)
    assert "bentpipe.daemon.testbed.satellite" in chosen.command
    assert "buildkitd is not on PATH" in chosen.words


def test_a_program_of_the_user_s_own(tmp_path: Path) -> None:
    environment = programs(tmp_path / "bin", "server", "buildkitd")
    chosen = choose_program("server -p '{port} x'", tmp_path, demo=False, environment=environment, root=False)
    assert chosen.command == (str(tmp_path / "bin/server"), "-p", "{port} x")
    assert not chosen.known


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("nothing {port}", "'nothing' is not a program that can be run here"),
        ("server", "no argument has {port}"),
        ("", "empty"),
        ("server '{port}", "No closing quotation"),
    ],
)
def test_a_program_that_cannot_be_a_satellite(tmp_path: Path, command: str, words: str) -> None:
    with pytest.raises(InitError, match=words):
        choose_program(command, tmp_path, demo=False, environment=programs(tmp_path / "bin", "server"), root=True)


@pytest.mark.parametrize(
    ("installed", "root", "words"),
    [
        (("buildkitd", "unshare", "runc"), False, "needs root"),
        (("buildkitd", "runc"), True, "unshare is not installed"),
        (("buildkitd", "unshare"), True, "needs runc, which is not on PATH"),
    ],
)
def test_buildkit_that_cannot_run_is_told_and_nothing_else_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], root: bool, words: str
) -> None:
    monkeypatch.setattr("bentpipe.daemon.service.init_satellite.CONTAINERD", tmp_path / "no containerd")
    with pytest.raises(InitError, match=words):
        choose_program(None, tmp_path, demo=False, environment=programs(tmp_path / "bin", *installed), root=root)


@pytest.mark.parametrize(("demo", "words"), [(False, "no satellite program"), (True, "needs grpcio")])
def test_no_satellite_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: bool, words: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(InitError, match=rf"{words}.*--command.*bentpipe\[demo\]"):
        choose_program(None, tmp_path, demo=demo, environment=programs(tmp_path / "bin"), root=True)
