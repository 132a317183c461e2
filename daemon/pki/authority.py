"""The certificate authority: its key, its certificates, and what it issues. In memory; `authority_file` reads and writes.

Certificates are of two kinds, and neither can be used as the other (RFC 5280 §4.2.1.12, extended key usage):

- a machine's: a server, known by the name of its satellite and launch;
- the daemon's: a client to machines, and the server where machines enrol. buildkitd takes each client certificate that its
  authority has signed. So a machine's certificate must never be a client's, or one tenant's machine could use another's.

A rotation makes another key, and lets the old key sign the new one too (a cross certificate). Everything that is issued
carries the cross certificate along. So a machine that trusts only the old key, because it slept meanwhile, still trusts the
daemon, and each host of a fleet may get the new file when it suits. The daemon trusts the old key for as long as a
certificate by it may be valid.
"""

import dataclasses
import datetime
import hashlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bentpipe.daemon.ids import machine_dns_name, machine_uri
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.responder.enrol import DAEMON_NAME

SKEW_S = 3_600.0
"""A certificate begins to be valid this much before it is made: clocks of two machines differ."""
SLEEP_S = 61 * 86_400.0
"""The daemon's own certificates begin this much before: a machine's clock stands still while the machine is hibernated, for
60 days at most on EC2, and the first client may come before the clock is set."""
AUTHORITY_LIFE_S = 10 * 365 * 86_400.0
DAEMON_LIFE_S = 7 * 86_400.0
"""Of the daemon's own certificates, which it makes in memory and renews each day."""
SECRET_BYTES = 32


@dataclasses.dataclass(frozen=True, slots=True)
class MachineName:
    """One machine of a satellite: `launch` is the token of its launch, so that no two machines have one name."""

    fleet: str
    key: SatelliteKey
    launch: str

    @property
    def dns(self) -> str:
        """What the daemon verifies at each dial."""
        return machine_dns_name(self.fleet, self.key, self.launch)

    @property
    def uri(self) -> str:
        """The same for people: it stands in the certificate too."""
        return machine_uri(self.fleet, self.key, self.launch)


@dataclasses.dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """A key that signs, with its certificates."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    """Of `key`. Its own issuer is itself, or an authority whose certificate is in `chain`."""
    chain: tuple[x509.Certificate, ...] = ()
    """Sent after each certificate that is issued: intermediate and cross certificates."""
    roots: tuple[x509.Certificate, ...] = ()
    """Certificates that are their own issuers: `certificate` if it is one, then those that it has replaced, newest first."""

    @property
    def fleet(self) -> str:
        """The fleet that it was made for; "" if its certificate does not say."""
        names = self.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        return str(names[0].value) if names else ""

    def trusted(self, now: datetime.datetime, machine_life_s: float) -> tuple[x509.Certificate, ...]:
        """The roots that count now: a replaced one until the last certificate that it has signed has ended."""
        found = list(self.roots[:1])
        for replaced, by in zip(self.roots[1:], self.roots, strict=False):
            ends = by.not_valid_before_utc + datetime.timedelta(seconds=SKEW_S + machine_life_s)
            if now < ends:
                found.append(replaced)
        return tuple(found)

    def secret(self, purpose: str) -> bytes:
        """32 bytes that only those who have the key can compute (HKDF, RFC 5869); other bytes for each purpose."""
        private = self.key.private_numbers().private_value.to_bytes((self.key.curve.key_size + 7) // 8, "big")
        return HKDF(hashes.SHA256(), SECRET_BYTES, salt=None, info=purpose.encode()).derive(private)

    def issue_machine(
        self, public: ec.EllipticCurvePublicKey, name: MachineName, now: datetime.datetime, life_s: float
    ) -> x509.Certificate:
        """A server's certificate for one machine."""
        names = x509.SubjectAlternativeName([x509.DNSName(name.dns), x509.UniformResourceIdentifier(name.uri)])
        valid = (now - datetime.timedelta(seconds=SKEW_S), now + datetime.timedelta(seconds=life_s))
        return self._issue(public, names, [ExtendedKeyUsageOID.SERVER_AUTH], valid)

    def issue_daemon(self, public: ec.EllipticCurvePublicKey, now: datetime.datetime) -> x509.Certificate:
        """The daemon's certificate, for both of its roles."""
        names = x509.SubjectAlternativeName([x509.DNSName(DAEMON_NAME)])
        valid = (now - datetime.timedelta(seconds=SLEEP_S), now + datetime.timedelta(seconds=DAEMON_LIFE_S))
        return self._issue(public, names, [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH], valid)

    def _issue(
        self,
        public: ec.EllipticCurvePublicKey,
        names: x509.SubjectAlternativeName,
        usages: Sequence[x509.ObjectIdentifier],
        valid: tuple[datetime.datetime, datetime.datetime],
    ) -> x509.Certificate:
        # RFC 5280 §4.2.1.6: without a subject, the alternative names are critical.
        return (
            _begun(x509.Name([]), self.certificate.subject, public, valid)
            .add_extension(names, critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key on P-256, which every TLS library knows."""
    return ec.generate_private_key(ec.SECP256R1())


def new_authority(fleet: str, now: datetime.datetime) -> CertificateAuthority:
    """Make an authority."""
    key = new_key()
    root = _authority_certificate(key, _authority_name(fleet, now), key, _authority_name(fleet, now), now)
    return CertificateAuthority(key, root, (), (root,))


def rotated(old: CertificateAuthority, fleet: str, now: datetime.datetime) -> CertificateAuthority:
    """Make an authority that replaces `old`, and is trusted by all that trust `old`."""
    key, name = new_key(), _authority_name(fleet, now)
    root = _authority_certificate(key, name, key, name, now)
    asleep = now - datetime.timedelta(seconds=SLEEP_S)
    cross = _authority_certificate(key, name, old.key, old.certificate.subject, asleep, old.certificate)
    return CertificateAuthority(key, root, (cross, *old.chain), (root, *old.roots))


def key_hash_of(public: ec.EllipticCurvePublicKey) -> str:
    """A public key's SHA-256 in hex, of its SubjectPublicKeyInfo in DER."""
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def pem_of(certificates: Sequence[x509.Certificate]) -> str:
    """Certificates one after the other, in PEM."""
    return "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in certificates)


def private_pem_of(key: ec.EllipticCurvePrivateKey) -> str:
    """A private key in PEM (PKCS #8), without a password."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode()


def _authority_name(fleet: str, now: datetime.datetime) -> x509.Name:
    named = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet)] if fleet else []
    return x509.Name([*named, x509.NameAttribute(NameOID.COMMON_NAME, f"bentpipe satellites {now:%Y%m%dT%H%M%SZ}")])


def _authority_certificate(
    key: ec.EllipticCurvePrivateKey,
    name: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    begins: datetime.datetime,
    within: x509.Certificate | None = None,
) -> x509.Certificate:
    """A certificate that may sign others. With `within` it ends when that one ends."""
    ends = within.not_valid_after_utc if within is not None else begins + datetime.timedelta(seconds=AUTHORITY_LIFE_S)
    valid = (begins - datetime.timedelta(seconds=SKEW_S), ends)
    return (
        _begun(name, issuer, key.public_key(), valid)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    valid: tuple[datetime.datetime, datetime.datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
    )


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """What the key of a certificate may do (RFC 5280 §4.2.1.3)."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
