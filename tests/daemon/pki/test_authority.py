"""The certificates between real TLS peers: who is accepted as what, before and after a rotation. The authority's file."""

import datetime
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from beds.tls_pairs import daemon, machine, shake_hands
from beds.utc import now
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki.authority import (
    CertificateAuthority,
    MachineName,
    new_authority,
    new_key,
    pem_of,
    private_pem_of,
    rotated,
)
from bentpipe.daemon.pki.authority_file import AuthorityError, keep_authority, read_authority
from bentpipe.daemon.responder.enrol import DAEMON_NAME

DAY = datetime.timedelta(days=1)
LIFE_S = 900.0
FLEET = "fleet"
MINE = MachineName(FLEET, SatelliteKey("acme", "one"), "1" * 64)
OTHERS = {
    "an earlier launch": MachineName(FLEET, SatelliteKey("acme", "one"), "2" * 64),
    "the same tenant's": MachineName(FLEET, SatelliteKey("acme", "two"), "1" * 64),
    "another tenant's": MachineName(FLEET, SatelliteKey("rival", "one"), "1" * 64),
    "another fleet's": MachineName("other", SatelliteKey("acme", "one"), "1" * 64),
}


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return new_authority(FLEET, now())


def test_daemon_and_machine_know_each_other(authority: CertificateAuthority, tmp_path: Path) -> None:
    mine = machine(tmp_path, authority, MINE, now())
    shake_hands(daemon(tmp_path, authority, now()).client(), mine.server(), MINE.dns)


@pytest.mark.parametrize("whose", OTHERS)
def test_another_machine_is_refused(authority: CertificateAuthority, tmp_path: Path, whose: str) -> None:
    other = machine(tmp_path, authority, OTHERS[whose], now())
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(daemon(tmp_path, authority, now()).client(), other.server(), MINE.dns)


def test_a_machine_is_nobodys_client(authority: CertificateAuthority, tmp_path: Path) -> None:
    """buildkitd takes every client certificate of its authority: a machine's must not be one."""
    mine, other = (
        machine(tmp_path, authority, MINE, now()),
        machine(tmp_path, authority, OTHERS["another tenant's"], now()),
    )
    with pytest.raises(ssl.SSLError, match=r"(?i)unsupported certificate|unsuitable"):
        shake_hands(mine.client(), other.server(), OTHERS["another tenant's"].dns)


def test_a_machine_is_not_the_daemon_nor_the_daemon_a_machine(authority: CertificateAuthority, tmp_path: Path) -> None:
    mine, edge = machine(tmp_path, authority, MINE, now()), daemon(tmp_path, authority, now())
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.load_verify_locations(cadata=mine.trusted)
    for server, name in ((mine, DAEMON_NAME), (edge, MINE.dns)):
        context = server.server()
        context.verify_mode = ssl.CERT_NONE
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            shake_hands(trusting, context, name)


def test_another_authority_is_refused_either_way(authority: CertificateAuthority, tmp_path: Path) -> None:
    foreign = new_authority(FLEET, now())
    with pytest.raises(ssl.SSLCertVerificationError, match=r"self-signed|issuer certificate"):
        shake_hands(
            daemon(tmp_path, authority, now()).client(), machine(tmp_path, foreign, MINE, now()).server(), MINE.dns
        )
    edge = daemon(tmp_path, foreign, now()).client()
    edge.load_verify_locations(cadata=pem_of([authority.certificate]))
    with pytest.raises(ssl.SSLError, match=r"(?i)unknown ca|self-signed|issuer certificate"):
        shake_hands(edge, machine(tmp_path, authority, MINE, now()).server(), MINE.dns)


def test_a_certificate_that_has_ended_is_refused(authority: CertificateAuthority, tmp_path: Path) -> None:
    ended = machine(tmp_path, authority, MINE, now(), made_at=now() - DAY)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(daemon(tmp_path, authority, now()).client(), ended.server(), MINE.dns)


def test_clocks_may_differ(authority: CertificateAuthority, tmp_path: Path) -> None:
    """A host whose clock is late accepts a new machine; a machine that slept for 60 days accepts the daemon."""
    early = machine(tmp_path, authority, MINE, now(), 7200.0, made_at=now() + datetime.timedelta(minutes=50))
    shake_hands(daemon(tmp_path, authority, now()).client(), early.server(), MINE.dns)
    made = authority.issue_daemon(new_key().public_key(), now())
    assert made.not_valid_before_utc < now() - 60 * DAY


def test_hosts_and_machines_change_over_to_another_authority_one_by_one(tmp_path: Path) -> None:
    """The host may have the old file or the new one, and so may the host that gave the machine its certificate."""
    old = new_authority(FLEET, now() - 30 * DAY)
    new = rotated(old, FLEET, now())
    for hosts in (old, new):
        for machines in (old, new):
            peer = machine(tmp_path, machines, MINE, now())
            shake_hands(daemon(tmp_path, hosts, now()).client(), peer.server(), MINE.dns)


def test_the_old_authority_counts_until_its_last_certificate_has_ended(tmp_path: Path) -> None:
    old = new_authority(FLEET, now() - 30 * DAY)
    new = rotated(old, FLEET, now() - datetime.timedelta(seconds=LIFE_S - 60))
    assert new.trusted(now(), LIFE_S) == (new.certificate, old.certificate)
    later = rotated(old, FLEET, now() - datetime.timedelta(seconds=LIFE_S + 60))
    assert later.trusted(now(), LIFE_S) == (later.certificate,)
    forged = machine(tmp_path, old, MINE, now())
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(daemon(tmp_path, later, now()).client(), forged.server(), MINE.dns)


def test_a_machine_that_slept_through_two_rotations_still_trusts_the_daemon(tmp_path: Path) -> None:
    first = new_authority(FLEET, now() - 90 * DAY)
    asleep = machine(tmp_path, first, MINE, now())
    third = rotated(rotated(first, FLEET, now() - 40 * DAY), FLEET, now())
    edge = daemon(tmp_path, third, now()).client()
    edge.load_verify_locations(cadata=pem_of([first.certificate]))  # its own certificate is not the question here
    shake_hands(edge, asleep.server(), MINE.dns)
    assert len(third.chain) == 2


def test_a_clock_that_stood_still_while_the_machine_slept_accepts_the_daemon(tmp_path: Path) -> None:
    """At the time that it believes, neither the daemon's certificate nor the authority that made it was there."""
    openssl = shutil.which("openssl")
    assert openssl is not None
    first = new_authority(FLEET, now() - 90 * DAY)
    third = rotated(rotated(first, FLEET, now() - 40 * DAY), FLEET, now())
    leaf = third.issue_daemon(new_key().public_key(), now())
    for name, certificates in (("leaf", [leaf]), ("chain", third.chain), ("root", [first.certificate])):
        (tmp_path / name).write_text(pem_of(certificates))
    asleep = int((now() - 60 * DAY).timestamp())
    command = (openssl, "verify", "-purpose", "sslclient", "-CAfile", "root", "-untrusted", "chain", "-attime")
    subprocess.run((*command, str(asleep), "leaf"), cwd=tmp_path, check=True, capture_output=True)
    too_early = int((now() - 95 * DAY).timestamp())
    done = subprocess.run((*command, str(too_early), "leaf"), cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode != 0


def test_an_intermediate_authority(tmp_path: Path) -> None:
    """Each host may have a key of its own that one root has signed."""
    root = new_authority(FLEET, now())
    host = rotated(root, FLEET, now())
    (cross,) = host.chain
    file = tmp_path / "host.pem"
    file.write_text(private_pem_of(host.key) + pem_of([cross, root.certificate]))
    file.chmod(0o600)
    intermediate = read_authority(file)
    assert intermediate.trusted(now(), LIFE_S) == (root.certificate,)
    peer = machine(tmp_path, intermediate, MINE, now())
    shake_hands(daemon(tmp_path, root, now()).client(), peer.server(), MINE.dns)
    shake_hands(daemon(tmp_path, intermediate, now()).client(), peer.server(), MINE.dns)


def test_openssls_own_check_of_the_whole_chain(authority: CertificateAuthority, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    assert openssl is not None
    new = rotated(authority, FLEET, now())
    leaf = new.issue_machine(new_key().public_key(), MINE, now(), LIFE_S)
    for name, certificates in (
        ("leaf", [leaf]),
        ("chain", new.chain),
        ("old", authority.roots),
        ("new", new.roots[:1]),
    ):
        (tmp_path / name).write_text(pem_of(certificates))
    for root in ("old", "new"):
        strict = ("-x509_strict", "-purpose", "sslserver", "-verify_hostname", MINE.dns)
        command = (openssl, "verify", *strict, "-CAfile", root, "-untrusted", "chain", "leaf")
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


# -- the file ----------------------------------------------------------------------------------------------------------


def test_the_file_gives_back_what_was_kept(authority: CertificateAuthority, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "authority.pem"
    for each in (authority, rotated(authority, FLEET, now()), rotated(rotated(authority, FLEET, now()), FLEET, now())):
        keep_authority(path, each)
        assert path.stat().st_mode & 0o777 == 0o600
        found = read_authority(path)
        assert (found.certificate, found.chain, found.roots) == (each.certificate, each.chain, each.roots)
        assert found.secret("one") == each.secret("one") != each.secret("two")
    assert list(path.parent.iterdir()) == [path]


def _authority_text(authority: CertificateAuthority, key: str | None = None, *certificates: x509.Certificate) -> str:
    return (private_pem_of(authority.key) if key is None else key) + pem_of(certificates or [authority.certificate])


def _password_key() -> str:
    encryption = serialization.BestAvailableEncryption(b"secret")
    kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return new_key().private_bytes(*kind, encryption).decode()


def _rsa_key() -> str:
    kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return rsa.generate_private_key(65537, 2048).private_bytes(*kind).decode()


WRONG = {
    "empty": ("", "PEM"),
    "no key": (_authority_text(new_authority(FLEET, now()), ""), "key"),
    "no certificate": (private_pem_of(new_key()), "."),
    "another key": (_authority_text(new_authority(FLEET, now()), private_pem_of(new_key())), "not the private key's"),
    "another curve": (
        _authority_text(new_authority(FLEET, now()), private_pem_of(ec.generate_private_key(ec.SECP384R1()))),
        "P-256",
    ),
    "RSA": (_authority_text(new_authority(FLEET, now()), _rsa_key()), "P-256"),
    "a password": (_authority_text(new_authority(FLEET, now()), _password_key()), "(?i)password"),
    "ended": (_authority_text(new_authority(FLEET, now() - 4000 * DAY)), "ended at"),
    "too long": ("x" * (257 << 10), "larger than"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    text, words = WRONG[kind]
    path = tmp_path / "authority.pem"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(AuthorityError, match=words) as caught:
        read_authority(path)
    assert str(path) in str(caught.value)
    assert "PRIVATE KEY" not in str(caught.value)


def test_an_intermediate_without_its_root_and_a_machines_certificate_are_refused(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    host = rotated(authority, FLEET, now())
    leaf = authority.issue_machine(authority.key.public_key(), MINE, now(), LIFE_S)
    path = tmp_path / "authority.pem"
    path.touch(0o600)
    for text, words in (
        (_authority_text(host, None, *host.chain), "root is missing"),
        (_authority_text(authority, None, leaf, authority.certificate), "may not sign others"),
    ):
        path.write_text(text)
        with pytest.raises(AuthorityError, match=words):
            read_authority(path)


def test_a_file_that_others_may_read_or_that_is_missing_is_refused(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    path = tmp_path / "authority.pem"
    with pytest.raises(AuthorityError, match="No such file"):
        read_authority(path)
    keep_authority(path, authority)
    for mode in (0o604, 0o620, 0o601):
        path.chmod(mode)
        with pytest.raises(AuthorityError, match="chmod 600"):
            read_authority(path)
