"""`bentpipe check` on files whose form is right: what would keep `serve` from starting here, and what clients would see."""

import contextlib
import datetime
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from beds.issued import DAY, NOW, Issued
from beds.programs import BENTPIPE
from beds.revocation import RevokingAuthority
from bentpipe.config.load import ConfigErrors, load_config
from bentpipe.daemon.service.command_line import EXIT_CONFIG
from bentpipe.daemon.service.preflight import find_concerns
from bentpipe.daemon.service.preflight_crl import crl_concerns, crls_end

PROCESS = '[satellite.process]\ncommand = ["true", "{port}"]\nuser = "daemon"\n'
SATELLITE = f'[[satellite]]\norg = "acme"\nname = "builder"\n{PROCESS}'
NO_CREDENTIALS = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_CONFIG_FILE": "/dev/null",
}
ROOT = Issued("Root", names=(), authority=True, ends=NOW + 3650 * DAY)
GOOD = Issued("edge", issuer=ROOT)
OTHER = Issued("other", issuer=ROOT)


class Bed:
    """A folder with a configuration and the files that it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "bentpipe.toml"

    def put(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def check(self, text: str) -> tuple[int, list[str]]:
        """Do what `bentpipe check` does. Returns its exit code and its lines without the path."""
        self.config.write_text(text)
        try:
            concerns = find_concerns(load_config(self.config))
        except ConfigErrors as exc:
            return EXIT_CONFIG, [str(problem) for problem in exc.problems]
        return EXIT_CONFIG if any(each.fatal for each in concerns) else 0, list(map(str, concerns))

    def tls(self, chain: bytes, key: bytes, more: str = "") -> tuple[int, list[str]]:
        """Check a listener with these files."""
        certificate, key_path = self.put("chain.pem", chain), self.put("key.pem", key)
        return self.check(
            f'[[listener]]\naddress = "127.0.0.1:0"\n[listener.tls]\ncertificate = "{certificate}"\nkey = "{key_path}"\n'
            f"{more}{SATELLITE}"
        )


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def test_a_good_pair_has_nothing_to_say(bed: Bed) -> None:
    assert bed.tls(GOOD.pem() + ROOT.pem(), GOOD.key_pem()) == (0, [])


@pytest.mark.parametrize(
    ("chain", "key", "code", "words"),
    [
        (GOOD.pem(), OTHER.key_pem(), 2, "listener[0].tls.key: {key} is not the key of {chain}"),
        (GOOD.pem(), b"", 2, "{key}: has no private key in PEM form"),
        (GOOD.pem(), GOOD.key_pem(b"secret"), 2, "{key}: the key is encrypted; bentpipe cannot ask for its passphrase"),
        (GOOD.pem(), GOOD.pem(), 2, "{key}: has no private key in PEM form"),
        (b"hello", GOOD.key_pem(), 2, "{chain}: has no certificate in PEM form"),
        (GOOD.key_pem(), GOOD.key_pem(), 2, "{chain}: has no certificate in PEM form"),
        (GOOD.pem() + OTHER.pem(), GOOD.key_pem(), 0, "'CN=other' follows certificate 'CN=edge' and did not sign it"),
        (ROOT.pem() + GOOD.pem(), GOOD.key_pem(), 2, "{key} is not the key of {chain}"),
    ],
    ids=["foreign", "empty key", "encrypted", "certificate as key", "no PEM", "key as certificate", "chain", "order"],
)
def test_a_pair_that_clients_or_the_engine_refuse(bed: Bed, chain: bytes, key: bytes, code: int, words: str) -> None:
    seen, lines = bed.tls(chain, key)
    expected = words.format(chain=bed.folder / "chain.pem", key=bed.folder / "key.pem")
    assert (seen, [expected in line for line in lines if "expires" not in line][:1]) == (code, [True]), lines


@pytest.mark.parametrize(
    ("begins", "ends", "words"),
    [
        (NOW - 400 * DAY, NOW - 2 * DAY, f"expired on {NOW - 2 * DAY:%Y-%m-%d}"),
        (NOW + 2 * DAY, NOW + 90 * DAY, "holds only from"),
        (NOW - 80 * DAY, NOW + 10 * DAY, "in 9 days; renew it"),
        (NOW - 50 * DAY, NOW + 40 * DAY, None),
        (NOW - datetime.timedelta(hours=1), NOW + datetime.timedelta(hours=23), None),
        (NOW - datetime.timedelta(hours=20), NOW + datetime.timedelta(hours=4), "in 0 days; renew it"),
    ],
)
def test_dates_by_the_share_of_a_life(
    bed: Bed, begins: datetime.datetime, ends: datetime.datetime, words: str | None
) -> None:
    issued = Issued("edge", begins=begins, ends=ends)
    code, lines = bed.tls(issued.pem(), issued.key_pem())
    assert code == 0
    assert [words in line if words else line for line in lines] == ([True] if words else [])


@pytest.mark.parametrize(
    ("issued", "words"),
    [
        (Issued("edge", names=()), "no subject alternative name"),
        (Issued("edge", usage=ExtendedKeyUsageOID.CLIENT_AUTH), "not for servers"),
        (Issued("edge", usage=ExtendedKeyUsageOID.SERVER_AUTH), None),
    ],
)
def test_what_makes_clients_refuse(bed: Bed, issued: Issued, words: str | None) -> None:
    code, lines = bed.tls(issued.pem(), issued.key_pem())
    assert (code, [words in line if words else line for line in lines]) == (0, [True] if words else [])


def test_names_that_no_certificate_covers(bed: Bed) -> None:
    domain = 'satellite_domain = "sat.example"\n'
    code, lines = bed.tls(GOOD.pem(), GOOD.key_pem(), domain)
    assert code == 0
    assert [line for line in lines if "no certificate is for builder.acme.sat.example" in line] == lines != []
    for name in ("*.acme.sat.example", "builder.acme.sat.example", "Builder.ACME.sat.example"):
        covering = Issued("edge", names=(name,))
        assert bed.tls(covering.pem(), covering.key_pem(), domain) == (0, []), name


def test_an_authority_that_is_not_one(bed: Bed) -> None:
    leaf = bed.put("ca.pem", GOOD.pem())
    code, lines = bed.tls(GOOD.pem(), GOOD.key_pem(), f'client_ca = "{leaf}"\n')
    assert code == 0
    assert ["is not a certificate authority" in line for line in lines] == [True]
    empty = bed.put("ca.pem", b"")
    code, lines = bed.tls(GOOD.pem(), GOOD.key_pem(), f'client_ca = "{empty}"\n')
    assert (code, ["listener[0].tls.client_ca" in line for line in lines]) == (2, [True])


def plain(address: str, more: str = "") -> str:
    return f'[[listener]]\naddress = "{address}"\n{more}{SATELLITE}'


def test_a_port_that_another_process_has(bed: Bed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, lines = bed.check(plain(f"127.0.0.1:{port}"))
        metrics = bed.check(plain("127.0.0.1:0", f'[metrics]\naddress = "127.0.0.1:{port}"\n'))
    words = f"process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()}) listens on port {port} already"
    assert (code, lines) == (2, [f"listener[0].address: {words}"])
    assert metrics == (2, [f"metrics.address: {words}"])
    assert bed.check(plain(f"127.0.0.1:{port}")) == (0, [])


OURS = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as sock:
    print(sock.getsockname()[1], flush=True)
    sys.stdin.read()
"""


def test_a_port_of_the_running_daemon_is_accepted(bed: Bed) -> None:
    """The command line of the process is what tells: `bentpipe serve --config F`, as under the unit."""
    with subprocess.Popen(
        [sys.executable, "-c", OURS, "bentpipe", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        assert bed.check(plain(f"127.0.0.1:{daemon.stdout.readline().strip()}")) == (0, [])
        daemon.communicate()


def test_an_address_that_this_host_does_not_have(bed: Bed) -> None:
    code, lines = bed.check(plain("192.0.2.1:0"))
    assert (code, len(lines)) == (2, 1)
    assert "listener[0].address: " in lines[0]
    assert "Cannot assign requested address" in lines[0]


def store(path: Path) -> str:
    return plain("127.0.0.1:0", f'[store]\npath = "{path}"\n')


def test_a_store_that_cannot_be_written(bed: Bed) -> None:
    assert bed.check(store(bed.folder / "new.sqlite")) == (0, [])
    assert not (bed.folder / "new.sqlite").exists()
    code, lines = bed.check(store(bed.folder / "absent" / "ledger.sqlite"))
    assert (code, lines) == (
        2,
        [f"store.path: there is no folder {bed.folder}/absent; make it, owned by the user that runs the daemon"],
    )
    text = bed.put("text.sqlite", b"hello, this is not a database" * 100)
    code, lines = bed.check(store(text))
    assert (code, [f"{text} is not a SQLite file" in line for line in lines]) == (2, [True])


def test_a_store_that_is_in_use_is_fine(bed: Bed) -> None:
    path = bed.folder / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE t (x)")
        other.execute("BEGIN IMMEDIATE")
        assert bed.check(store(path)) == (0, [])
        other.execute("ROLLBACK")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_store_of_another_user() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bed = Bed(Path(folder))
        path = bed.put("ledger.sqlite", b"")
        bed.config.write_text(store(path))
        for each, mode in ((path, 0o644), (bed.config, 0o644), (bed.folder, 0o755)):
            each.chmod(mode)
        as_nobody = ["setpriv", "--reuid", "65534", "--clear-groups", str(BENTPIPE)]
        if subprocess.run([*as_nobody, "--version"], capture_output=True, check=False).returncode != 0:
            pytest.skip("the program itself is closed to other users")
        done = subprocess.run([*as_nobody, "check", str(bed.config)], capture_output=True, text=True, check=False)
    assert (done.returncode, f"{path} cannot be written" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("grant", "words"),
    [
        ("acme/bilder", "'acme/bilder' fits no satellite of this file; did you mean acme/builder?"),
        ("acme/x*", "'acme/x*' fits no satellite of this file"),
        ("acme/builder", None),
        ("acme/b*", None),
        ("acme/*", None),
    ],
)
def test_grants_that_fit_nothing(bed: Bed, grant: str, words: str | None) -> None:
    token = f'[[token]]\nname = "ci"\nhash = "sha256:{"0" * 64}"\ngrants = ["{grant}"]\n'
    code, lines = bed.check(plain("127.0.0.1:0", token))
    assert (code, lines) == (0, [f"warning: token[0].grants: {words}"] if words else [])


EC2 = (
    '[[satellite]]\norg = "acme"\nname = "vm"\nprovider = "ec2"\n[satellite.ec2]\ninstance_id = "i-0123456789abcdef0"\n'
)


@pytest.mark.parametrize(
    ("region", "code", "words"),
    [
        ('region = "eu-centrl-1"', 0, ["'eu-centrl-1' is not a region of AWS", "did you mean eu-central-1?"]),
        ('region = "eu-central-1"', 0, []),
        ("", 2, ["ec2.region: no region"]),
        ('region = "moon-1"\nendpoint = "http://127.0.0.1:1"', 0, []),
    ],
)
def test_regions(bed: Bed, monkeypatch: pytest.MonkeyPatch, region: str, code: int, words: list[str]) -> None:
    text = f'[[listener]]\naddress = "127.0.0.1:0"\n[ec2]\n{region}\n{EC2}'
    environment = {**NO_CREDENTIALS, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    seen, lines = bed.check(text)
    assert seen == code, lines
    assert all(word in lines[0] for word in words) if words else lines == []


def test_no_credentials(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f'[[listener]]\naddress = "127.0.0.1:0"\n[ec2]\nregion = "eu-central-1"\n{EC2}'
    for name, value in {**NO_CREDENTIALS, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}.items():
        monkeypatch.setenv(name, value)
    code, lines = bed.check(text)
    assert (code, ["no AWS credentials are found" in line for line in lines]) == (0, [True])


@pytest.fixture
def programs(tmp_path: Path) -> Callable[[str], str]:
    closed = tmp_path / "closed"
    closed.write_text("#!/bin/sh\n")
    return {
        "closed": f"{closed}",
        "folder": f"{tmp_path}",
        "absent": "/absent/x",
        "unknown": "bentpipe-absent",
    }.__getitem__


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("closed", "is not executable by this user"),
        ("folder", "is a directory"),
        ("absent", "there is no such file"),
        ("unknown", "is in no folder of PATH: install it"),
    ],
)
def test_programs(bed: Bed, programs: Callable[[str], str], kind: str, words: str) -> None:
    code, lines = bed.check(plain("127.0.0.1:0").replace('"true"', f'"{programs(kind)}"'))
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("satellite[0].process.command: ")
    assert words in lines[0]


def test_the_command_prints_what_was_found_and_ends_with_its_code(bed: Bed) -> None:
    token = f'[[token]]\nname = "ci"\nhash = "sha256:{"0" * 64}"\ngrants = ["acme/bilder"]\n'
    for more, code in (("", 0), (f'[store]\npath = "{bed.folder}/absent/ledger.sqlite"\n', EXIT_CONFIG)):
        _, lines = bed.check(plain("127.0.0.1:0", more + token))
        done = subprocess.run([BENTPIPE, "check", bed.config], capture_output=True, text=True, check=False)
        assert done.returncode == code
        line_of_the_token = bed.config.read_text().splitlines().index("[[token]]") + 1
        places = {True: f"{bed.config}:{line_of_the_token}", False: str(bed.config)}
        assert done.stderr.splitlines() == [f"{places['token[' in line]}: {line}" for line in lines]
        assert ("fine" in done.stdout) is (code == 0)


def test_the_file_is_given_once_in_either_way(bed: Bed) -> None:
    bed.config.write_text(plain("127.0.0.1:0"))
    for arguments in ([str(bed.config)], ["--config", str(bed.config)]):
        assert subprocess.run([BENTPIPE, "check", *arguments], capture_output=True, check=False).returncode == 0
    for arguments in ([], [str(bed.config), "--config", str(bed.config)]):
        done = subprocess.run([BENTPIPE, "check", *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, "give the configuration" in done.stderr) == (2, True)


def test_crls_are_watched_like_certificates(bed: Bed) -> None:
    authority = RevokingAuthority(bed.folder)
    other = RevokingAuthority(bed.folder, "other")
    crl = authority.revoke()
    assert list(crl_concerns("here", crl, authority.file)) == []
    for age, life, words in (
        (7 * DAY, 6 * DAY, "has ended at"),
        (9.5 * DAY, 10 * DAY, "ends at"),
        (-DAY, DAY, "is this host's clock right?"),
    ):
        (told,) = crl_concerns("here", authority.revoke(age=age, life=life), authority.file)
        assert words in told.message
        assert not told.fatal
    (told,) = crl_concerns("here", authority.revoke(), other.file)
    assert "has no CRL of 'CN=other'" in told.message
    assert crls_end(crl) == pytest.approx(time.time() + 6 * 86_400, abs=60)
    crl.write_text("nothing")
    (told,) = crl_concerns("here", crl, authority.file)
    assert told.fatal
    assert "has no CRL in PEM form" in told.message


@pytest.mark.parametrize("installed", [True, False])
def test_traces_need_an_extra(bed: Bed, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    if not installed:
        monkeypatch.setattr("bentpipe.daemon.service.preflight_host.find_spec", lambda name: None)
    path = bed.folder / "traces.toml"
    path.write_text(plain("127.0.0.1:0", '[traces]\nendpoint = "http://127.0.0.1:4318/v1/traces"\n'))
    found = [each.message for each in find_concerns(load_config(path)) if each.where == "traces.endpoint"]
    assert found == ([] if installed else ["OpenTelemetry is not installed: pip install 'bentpipe[traces]'"])
