"""Makes the authority, the server's and a client's certificate of a new installation, in memory. It writes no file.

The extensions are those that strict verifiers ask for (RFC 5280 §4.2): Python 3.13's default context, Go and OpenSSL.
"""

import dataclasses
import datetime
import ipaddress
import re

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bentpipe.daemon.pki.authority import key_usage, private_pem_of

AUTHORITY_LIFE = datetime.timedelta(days=3650)
CERTIFICATE_LIFE = datetime.timedelta(days=825)
"""Apple's verifiers refuse a server certificate that lasts longer (support.apple.com/HT210176)."""
CLOCK_SKEW = datetime.timedelta(minutes=5)
"""Certificates are valid from that long ago, for clients whose clocks are behind."""

HOST_PATTERN = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*")
"""A DNS name (RFC 1035 §2.3.4), and the underscores that names of machines have in practice."""


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """Certificates and their keys as PEM."""

    authority: bytes
    authority_key: bytes
    certificate: bytes
    key: bytes
    client_certificate: bytes
    client_key: bytes
    ends: datetime.datetime
    """When the server's certificate and the client's end."""


def is_host(text: str) -> bool:
    """Whether a certificate can name it: a DNS name or an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return HOST_PATTERN.fullmatch(text) is not None
    return True


def make_certificates(hosts: tuple[str, ...], client: str) -> Made:
    """Make an authority, and two certificates that it signs: the server's for `hosts`, and one for the client `client`.

    A host is a DNS name, which may begin with `*.`, or an IP address. The client is a URI.
    """
    now = datetime.datetime.now(datetime.UTC)
    authority_key, key, client_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    authority_name = _name(f"bentpipe CA {now:%Y-%m-%d}")
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())

    def sign(
        public_key: ec.EllipticCurvePublicKey, use: x509.ObjectIdentifier, names: list[x509.GeneralName]
    ) -> x509.Certificate:
        return (
            _builder(_name("bentpipe"), authority_name, public_key, now, CERTIFICATE_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(issuer_id, critical=False)
            .sign(authority_key, hashes.SHA256())
        )

    host_names = [_general_name(host) for host in hosts]
    certificate = sign(key.public_key(), ExtendedKeyUsageOID.SERVER_AUTH, host_names)
    client_names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(client)]
    client_certificate = sign(client_key.public_key(), ExtendedKeyUsageOID.CLIENT_AUTH, client_names)
    return Made(
        authority=authority.public_bytes(serialization.Encoding.PEM),
        authority_key=private_pem_of(authority_key).encode(),
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=private_pem_of(key).encode(),
        client_certificate=client_certificate.public_bytes(serialization.Encoding.PEM),
        client_key=private_pem_of(client_key).encode(),
        ends=certificate.not_valid_after_utc,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    life: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
