"""Looks at CRLs of client certificates: are they of the listener's authorities, and until when do they hold.

OpenSSL refuses every client once a CRL's nextUpdate has passed, as nginx, HAProxy and Envoy do: an attacker that can hold
updates back could otherwise go on with a revoked certificate. So a CRL that ends soon is told like a certificate's end.
"""

import datetime
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from bentpipe.daemon.service.concern import Concern
from bentpipe.daemon.service.read_chain import read_chain

RENEW_AT = 0.9
"""The share of its life after which a CRL should have been replaced. Authorities publish the next one shortly before."""
BEGIN, END = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"


def crl_concerns(where: str, path: Path, client_ca: Path) -> Iterator[Concern]:
    """What is wrong with the CRLs of a listener, and which of its authorities has none."""
    try:
        crls = read_crls(path)
    except ValueError as exc:
        yield Concern(where, f"{path}: {exc}", fatal=True)
        return
    for crl in crls:
        yield from _date_concerns(where, path, crl)
    try:
        authorities = read_chain(client_ca)
    except ValueError:
        return  # client_ca's own concern
    for authority in authorities:
        if not any(_is_of(crl, authority) for crl in crls):
            of = f"{path} has no CRL of {authority.subject.rfc4514_string()!r}, which is in {client_ca}"
            yield Concern(where, f"{of}: its clients are refused", fatal=False)


def crls_end(path: Path) -> float | None:
    """When the first of a file's CRLs ends, in seconds since the epoch; None if none ends. Raises ValueError."""
    ends = [crl.next_update_utc.timestamp() for crl in read_crls(path) if crl.next_update_utc is not None]
    return min(ends, default=None)


def read_crls(path: Path) -> list[x509.CertificateRevocationList]:
    """The CRLs of a PEM file, at least one. Raises ValueError with words for the operator."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise ValueError(exc.strerror or str(exc)) from exc
    parts = [BEGIN + part.partition(END)[0] + END for part in data.split(BEGIN)[1:]]
    if not parts:
        raise ValueError("has no CRL in PEM form (-----BEGIN X509 CRL-----); openssl crl -inform DER converts one")
    try:
        return [x509.load_pem_x509_crl(part) for part in parts]
    except ValueError as exc:
        raise ValueError("has a CRL that cannot be read") from exc


def _date_concerns(where: str, path: Path, crl: x509.CertificateRevocationList) -> Iterator[Concern]:
    now = datetime.datetime.now(datetime.UTC)
    begins, ends = crl.last_update_utc, crl.next_update_utc
    of = f"{path}: the CRL of {crl.issuer.rfc4514_string()!r}"
    if now < begins:
        words = f"{of} holds only from {begins:%Y-%m-%d %H:%M} UTC; is this host's clock right?"
        yield Concern(where, words, fatal=False)
    elif ends is not None and now >= ends:
        words = (
            f"{of} has ended at {ends:%Y-%m-%d %H:%M} UTC: every client of that authority is refused; get the next one"
        )
        yield Concern(where, words, fatal=False)
    elif ends is not None and (now - begins) > RENEW_AT * (ends - begins):
        words = (
            f"{of} ends at {ends:%Y-%m-%d %H:%M} UTC, and then every client of that authority is refused: replace it"
        )
        yield Concern(where, words, fatal=False)


def _is_of(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    if crl.issuer != authority.subject:
        return False
    key = authority.public_key()
    try:
        return crl.is_signature_valid(key)  # type: ignore[arg-type]  # a key that cannot sign is a TypeError
    except (InvalidSignature, TypeError, ValueError):
        return False
