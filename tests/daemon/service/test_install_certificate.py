"""A certificate and its key as one file, which the daemon's TLS and `check` read; and what is refused."""

import os
import subprocess
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization

from bentpipe.daemon.service.cli import main
from bentpipe.daemon.service.read_chain import read_chain
from bentpipe.native.tls import TlsServerContext

HOOK = Path(__file__).parents[3] / "systemd" / "certbot-deploy-hook"


@pytest.fixture
def lineage(tmp_path: Path) -> Path:
    """A folder as certbot keeps one."""
    folder = tmp_path / "live"
    folder.mkdir()
    issued = trustme.CA().issue_cert("localhost")
    (folder / "fullchain.pem").write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    (folder / "privkey.pem").write_bytes(issued.private_key_pem.bytes())
    return folder


def install(lineage: Path, to: Path, *more: str) -> tuple[int, str]:
    pair = ["--certificate", str(lineage / "fullchain.pem"), "--key", str(lineage / "privkey.pem")]
    done = CliRunner().invoke(main, ["install-certificate", *pair, "--to", str(to), *more])
    return done.exit_code, done.output


def test_the_file_has_both(lineage: Path, tmp_path: Path) -> None:
    to = tmp_path / "tls.pem"
    code, said = install(lineage, to)
    assert (code, "until " in said) == (0, True)
    assert to.stat().st_mode & 0o777 == 0o600
    TlsServerContext(to, to)
    assert read_chain(to) == read_chain(lineage / "fullchain.pem")


def test_a_pair_that_does_not_fit_changes_nothing(lineage: Path, tmp_path: Path) -> None:
    to = tmp_path / "tls.pem"
    install(lineage, to)
    before = to.read_bytes()
    (lineage / "privkey.pem").write_bytes(trustme.CA().issue_cert("other").private_key_pem.bytes())
    code, said = install(lineage, to)
    assert code == 2
    assert "is not the key of" in said
    (lineage / "privkey.pem").unlink()
    assert install(lineage, to)[0] == 2
    assert to.read_bytes() == before


def test_an_encrypted_key_and_a_chain_of_its_own(lineage: Path, tmp_path: Path) -> None:
    key = serialization.load_pem_private_key((lineage / "privkey.pem").read_bytes(), None)
    wrapped = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (lineage / "privkey.pem").write_bytes(wrapped)
    (lineage / "chain.pem").write_bytes(trustme.CA().cert_pem.bytes())
    (lineage / "pass").write_text("secret\n")
    to = tmp_path / "tls.pem"
    assert "--passphrase-file" in install(lineage, to)[1]
    more = ["--certificate", str(lineage / "chain.pem"), "--passphrase-file", str(lineage / "pass")]
    assert install(lineage, to, *more)[0] == 0
    assert len(read_chain(to)) == 2
    TlsServerContext(to, to)
    (lineage / "pass").write_text("wrong")
    assert install(lineage, to, *more)[0] == 2


@pytest.mark.parametrize(
    ("states", "planes", "reloads"),
    [
        (["active"], "", True),
        (["activating", "deactivating", "reloading", "active"], "", True),
        (["inactive"], "bentpipe-dataplane@a.service", True),
        (["inactive"], "", False),
        (["failed"], "", True),
    ],
    ids=["active", "it starts", "a data plane goes on", "it is stopped", "it has failed"],
)
def test_the_hook_installs_and_reloads(
    states: list[str], planes: str, reloads: bool, lineage: Path, tmp_path: Path
) -> None:
    """With programs that note how they were called: the reload comes after the file is there."""
    programs, to = tmp_path / "bin", tmp_path / "tls.pem"
    programs.mkdir()
    # Each `show` tells the next state, and the last one again and again.
    show = 'head -n 1 "$STATES"; test "$(wc -l < "$STATES")" -lt 2 || sed -i 1d "$STATES"'
    systemctl = f'case $1 in show) {show};; list-units) printf %s "$PLANES";; *) echo "$@" >> "$NOTES";; esac'
    for name, text in (
        ("bentpipe", 'echo "$@" >> "$NOTES"; touch "$BENTPIPE_TLS"'),
        ("systemctl", systemctl),
        ("sleep", "exit"),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RENEWED_LINEAGE": str(lineage),
        "BENTPIPE_TLS": str(to),
        "NOTES": str(tmp_path / "notes"),
        "STATES": str(tmp_path / "states"),
        "PLANES": planes,
    }
    subprocess.run([HOOK], env=environment, check=True)
    installed, *further = (tmp_path / "notes").read_text().splitlines()
    assert installed == (
        f"install-certificate --certificate {lineage}/fullchain.pem --key {lineage}/privkey.pem --to {to}"
    )
    assert further == ["reload bentpipe.service"] * reloads
