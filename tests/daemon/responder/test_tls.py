"""TLS with the daemon's own authority: who may ask, and what follows when the files change or are wrong."""

import contextlib
import datetime
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beds.peers.responder_process import CALL_DEADLINE_S, POLL_S, WAIT_DEADLINE_S, ResponderProcess
from beds.tls_pairs import Party, daemon, machine
from beds.utc import now
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki.authority import CertificateAuthority, MachineName, new_authority
from bentpipe.daemon.responder.enrol import DAEMON_NAME

NAME = MachineName("fleet", SatelliteKey("acme", "one"), "1" * 64)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return new_authority("fleet", now())


class Satellite:
    """The files of a machine, in a folder that stands for its disk."""

    def __init__(self, folder: Path, party: Party) -> None:
        self.identity, self.trusted = folder / "identity.pem", folder / "ca.pem"
        self.become(party)

    def become(self, party: Party) -> None:
        """As enrol.py does: whole files take the place of whole files."""
        for path, text in ((self.identity, party.file.read_text()), (self.trusted, party.trusted)):
            new = path.with_suffix(".new")
            new.write_text(text)
            os.replace(new, path)

    @property
    def settings(self) -> dict[str, str | int]:
        identity = str(self.identity)
        files = {"certificate": identity, "key": identity, "client_ca": str(self.trusted)}
        return {**files, "client_name": DAEMON_NAME}


@pytest.fixture
def mine(authority: CertificateAuthority, tmp_path: Path) -> Satellite:
    return Satellite(tmp_path, machine(tmp_path / "made", authority, NAME, now()))


def greeted(responder: ResponderProcess, context: ssl.SSLContext, name: str = NAME.dns) -> bool:
    """Whether the responder sends SETTINGS after the handshake, which a client that it refuses never gets."""
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(("127.0.0.1", responder.port), CALL_DEADLINE_S) as sock,
            context.wrap_socket(sock, server_hostname=name) as tls,
        ):
            tls.sendall(PREFACE)
            return tls.recv(9)[3:4] == b"\x04"
    except (ssl.SSLError, ConnectionError):
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


@pytest.fixture
def responder(mine: Satellite) -> Iterator[ResponderProcess]:
    with ResponderProcess(mine.settings) as running:
        yield running


def test_the_daemon_is_served(responder: ResponderProcess, authority: CertificateAuthority, tmp_path: Path) -> None:
    context = daemon(tmp_path / "d", authority, now()).client()
    assert greeted(responder, context)
    assert not greeted(responder, context, "other.example")


def test_others_are_not(responder: ResponderProcess, authority: CertificateAuthority, tmp_path: Path) -> None:
    other = new_authority("fleet", now())
    bare = ssl.create_default_context(cadata=daemon(tmp_path / "a", authority, now()).trusted)
    strange = daemon(tmp_path / "b", other, now()).client()
    strange.check_hostname, strange.verify_mode = False, ssl.CERT_NONE
    fellow = machine(
        tmp_path / "c", authority, MachineName("fleet", SatelliteKey("rival", "one"), "2" * 64), now()
    ).client()
    ended = daemon(tmp_path / "d", authority, now() - datetime.timedelta(days=400)).client()
    for context in (bare, strange, fellow, ended):
        assert not greeted(responder, context)
    assert greeted(responder, daemon(tmp_path / "e", authority, now()).client())


def test_a_name_that_is_not_the_daemon_s(mine: Satellite, authority: CertificateAuthority, tmp_path: Path) -> None:
    """The certificate is good for a client, and of the right authority."""
    with ResponderProcess(mine.settings | {"client_name": "other.example"}) as responder:
        assert not greeted(responder, daemon(tmp_path / "d", authority, now()).client())
        responder.wait_said("has a certificate of another name")


def test_plaintext_gets_no_frame(responder: ResponderProcess) -> None:
    with socket.create_connection(("127.0.0.1", responder.port), CALL_DEADLINE_S) as sock:
        sock.sendall(PREFACE)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100)[:1] in (b"", b"\x15")  # nothing, or an alert of TLS


def test_tls_1_2_is_enough(responder: ResponderProcess, authority: CertificateAuthority, tmp_path: Path) -> None:
    context = daemon(tmp_path / "d", authority, now()).client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert greeted(responder, context)


def test_files_that_change_are_read_again(
    responder: ResponderProcess, mine: Satellite, authority: CertificateAuthority, tmp_path: Path
) -> None:
    new = new_authority("fleet", now())
    before, after = daemon(tmp_path / "d1", authority, now()), daemon(tmp_path / "d2", new, now())
    assert greeted(responder, before.client())
    assert not greeted(responder, after.client())
    mine.become(machine(tmp_path / "m2", new, NAME, now()))
    wait_until(lambda: greeted(responder, after.client()))
    assert not greeted(responder, before.client())


def test_files_that_are_wrong_leave_the_last_ones_in_use(
    responder: ResponderProcess, mine: Satellite, authority: CertificateAuthority, tmp_path: Path
) -> None:
    context = daemon(tmp_path / "d", authority, now()).client()
    mine.identity.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    wait_until(lambda: "tls: SSLError" in responder.log)
    assert greeted(responder, context)
    mine.identity.unlink()
    wait_until(lambda: "tls: FileNotFoundError" in responder.log)
    assert greeted(responder, context)


def test_it_starts_before_it_has_a_certificate(
    mine: Satellite, authority: CertificateAuthority, tmp_path: Path
) -> None:
    kept = mine.identity.read_text()
    mine.identity.unlink()
    context = daemon(tmp_path / "d", authority, now()).client()
    with ResponderProcess(mine.settings) as responder:
        assert not greeted(responder, context)
        responder.wait_said("tls: FileNotFoundError")
        mine.identity.write_text(kept)
        wait_until(lambda: greeted(responder, context))


def test_slow_handshakes_do_not_hold_up_the_daemon(
    responder: ResponderProcess, authority: CertificateAuthority, tmp_path: Path
) -> None:
    """More connections than the responder keeps say nothing; the daemon's gets its place among them."""
    context = daemon(tmp_path / "d", authority, now()).client()
    silent = [socket.create_connection(("127.0.0.1", responder.port), CALL_DEADLINE_S) for _ in range(100)]
    try:
        assert greeted(responder, context)
    finally:
        for sock in silent:
            sock.close()
