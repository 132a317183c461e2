"""CRLs of client certificates: revoked, good, expired, and missing for an authority."""

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trustme

from beds.revocation import DAY, RevokingAuthority
from bentpipe.native.tls import TlsConnection, TlsError, TlsServerContext

DEADLINE_S = 20.0


class Bed:
    """A listener's files, and clients of one authority."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        server = trustme.CA()
        issued = server.issue_cert("localhost")
        self.pair = folder / "server.pem", folder / "server.key"
        issued.cert_chain_pems[0].write_to_path(self.pair[0])
        issued.private_key_pem.write_to_path(self.pair[1])
        self.server = server
        self.authority = RevokingAuthority(folder)
        self.clients = {name: self.authority.issue(name) for name in ("good", "bad")}

    def context(self, crls: Sequence[Path], *, authorities: Path | None = None) -> TlsServerContext:
        made = TlsServerContext(*self.pair, client_ca=authorities or self.authority.file)
        for each in crls:
            made.add_crls(each)
        return made

    def connect(self, context: TlsServerContext, client: str) -> None:
        """Raises TlsError if the server refuses the client."""
        near, far = socket.socketpair()
        near.settimeout(DEADLINE_S)
        trusting = ssl.create_default_context(cadata=self.server.cert_pem.bytes().decode())
        trusting.load_cert_chain(*self.clients[client])

        def speak() -> None:
            with contextlib.suppress(OSError), near, trusting.wrap_socket(near, server_hostname="localhost") as tls:
                tls.recv(1)

        thread = threading.Thread(target=speak)
        thread.start()
        try:
            TlsConnection(context, far.fileno()).do_handshake()
        finally:
            far.close()
            thread.join(DEADLINE_S)


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def test_a_revoked_certificate_is_refused_and_another_is_not(bed: Bed) -> None:
    context = bed.context([bed.authority.revoke(["bad"])])
    bed.connect(context, "good")
    with pytest.raises(TlsError, match="certificate revoked"):
        bed.connect(context, "bad")
    bed.connect(bed.context([bed.authority.revoke()]), "bad")


def test_past_its_next_update_every_client_is_refused(bed: Bed) -> None:
    context = bed.context([bed.authority.revoke(age=8 * DAY)])
    with pytest.raises(TlsError, match="CRL has expired"):
        bed.connect(context, "good")


def test_an_authority_without_a_crl(bed: Bed, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    crl = RevokingAuthority(other, "other").revoke()
    with pytest.raises(TlsError, match="unable to get certificate CRL"):
        bed.connect(bed.context([crl]), "good")
    bed.connect(bed.context([crl, bed.authority.revoke()]), "good")


@pytest.mark.parametrize("data", [b"", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", None])
def test_a_file_that_is_not_a_crl_is_named(bed: Bed, data: bytes | None) -> None:
    path = bed.folder / "no-crl.pem"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(TlsError, match=r"no-crl\.pem"):
        bed.context([path])


def test_a_young_crl_of_the_future_is_refused_too(bed: Bed) -> None:
    context = bed.context([bed.authority.revoke(age=-DAY, life=datetime.timedelta(days=3))])
    with pytest.raises(TlsError, match="CRL is not yet valid"):
        bed.connect(context, "good")
