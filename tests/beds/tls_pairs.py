"""TLS contexts from an authority, and handshakes between two of them in memory: OpenSSL checks, no socket is needed."""

import datetime
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from bentpipe.daemon.pki.authority import CertificateAuthority, MachineName, new_key, pem_of, private_pem_of

ROUNDS = 20


class Party:
    """One side: what it shows, and whom it trusts."""

    def __init__(
        self,
        folder: Path,
        authority: CertificateAuthority,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        trusted: tuple[x509.Certificate, ...],
    ) -> None:
        folder.mkdir(exist_ok=True)
        serial = f"{certificate.serial_number:x}"
        self.file = folder / f"{serial}.pem"
        self.file.write_text(private_pem_of(key) + pem_of([certificate, *authority.chain]))
        self.trusted = pem_of(trusted)

    def server(self) -> ssl.SSLContext:
        """As buildkitd: each client must show a certificate of the authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file)
        context.load_verify_locations(cadata=self.trusted)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(self.file)
        context.load_verify_locations(cadata=self.trusted)
        return context


def machine(
    folder: Path,
    authority: CertificateAuthority,
    name: MachineName,
    now: datetime.datetime,
    life_s: float = 900.0,
    *,
    made_at: datetime.datetime | None = None,
) -> Party:
    key = new_key()
    made = authority.issue_machine(key.public_key(), name, made_at or now, life_s)
    return Party(folder, authority, made, key, authority.trusted(now, life_s))


def daemon(folder: Path, authority: CertificateAuthority, now: datetime.datetime, life_s: float = 900.0) -> Party:
    key = new_key()
    return Party(folder, authority, authority.issue_daemon(key.public_key(), now), key, authority.trusted(now, life_s))


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """Complete a handshake, and send a byte either way. Raises SSLError if either side refuses."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(down, up, server_hostname=name)
    two = server.wrap_bio(up, down, server_side=True)
    done: set[ssl.SSLObject] = set()
    for _ in range(ROUNDS):
        for side in (one, two):
            if side in done:
                continue
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            done.add(side)
    for sender, receiver in ((two, one), (one, two)):
        sender.write(b"x")
        assert receiver.read(1) == b"x"
