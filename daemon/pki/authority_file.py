"""The authority's file: a private key and certificates in PEM. Blocking.

The first certificate is the key's own. Others that are their own issuers are roots that it has replaced, newest first. The
rest is sent along with each certificate that is issued: intermediate and cross certificates. An authority that is signed by
another one (an intermediate) has that one's root in the same file.
"""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bentpipe.daemon.pki.authority import CertificateAuthority, key_hash_of, pem_of, private_pem_of
from bentpipe.daemon.private_file import write_private

MAX_FILE_BYTES = 256 << 10
"""A key and a certificate have about 1 KiB, each rotation adds another two certificates."""
EXPOSED = 0o027
"""Bits of a file's mode that let others use it. The group may read it: a systemd credential of a service that is not
root's has an ACL, and its mask looks like that."""


class AuthorityError(ValueError):
    """The file cannot be used; `str()` says which file, and what is wrong with it."""


def read_authority(path: Path) -> CertificateAuthority:
    """Read the file. Raises AuthorityError."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
            mode = path.stat().st_mode
    except OSError as exc:
        raise AuthorityError(f"{path}: {exc.strerror or exc}") from exc
    if len(text) > MAX_FILE_BYTES:
        raise AuthorityError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    if mode & EXPOSED:
        raise AuthorityError(f"{path}: others may use it; chmod 600 {path}")
    try:
        return _authority_of(text)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:  # TypeError: the key has a password
        raise AuthorityError(f"{path}: {exc}") from exc


def keep_authority(path: Path, authority: CertificateAuthority) -> None:
    """Write the file, for its owner only, in place of an older one. Raises AuthorityError."""
    others = [each for each in authority.roots if each != authority.certificate]
    text = private_pem_of(authority.key) + pem_of([authority.certificate, *authority.chain, *others])
    try:
        write_private(path, text.encode())
    except OSError as exc:
        raise AuthorityError(f"{path}: {exc.strerror or exc}") from exc


def _authority_of(text: bytes) -> CertificateAuthority:
    """Raises ValueError, TypeError, UnsupportedAlgorithm."""
    key = serialization.load_pem_private_key(text, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("expected an EC key on P-256; `bentpipe ca new` makes such a file")
    first, *others = x509.load_pem_x509_certificates(text)
    public = first.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey) or key_hash_of(public) != key_hash_of(key.public_key()):
        raise ValueError("the first certificate is not the private key's")
    if not first.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise ValueError("the first certificate may not sign others: it is not an authority's")
    if first.not_valid_after_utc <= datetime.datetime.now(datetime.UTC):
        raise ValueError(f"the first certificate ended at {first.not_valid_after_utc:%Y-%m-%d}")
    roots = tuple(each for each in (first, *others) if _is_own_issuer(each))
    if not roots:
        raise ValueError("the certificate of the root is missing: the one that is its own issuer")
    chain = tuple(each for each in others if each not in roots)
    if first not in roots:
        chain = (first, *chain)
    return CertificateAuthority(key, first, chain, roots)


def _is_own_issuer(certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
