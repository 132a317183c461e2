"""Reads the certificates of a file, for the looks at certificates and CRLs."""

from pathlib import Path

from cryptography import x509

CHAIN_MOST = 16
"""The most certificates of one file that are looked at; clients accept no longer chains (SSL_CTX_set_verify_depth(3))."""


def read_chain(path: Path) -> list[x509.Certificate]:
    """The certificates of a PEM file. Raises ValueError with words for the operator."""
    try:
        chain = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as exc:
        raise ValueError(exc.strerror or str(exc)) from exc
    except ValueError as exc:
        raise ValueError("has no certificate in PEM form (-----BEGIN CERTIFICATE-----)") from exc
    return chain[:CHAIN_MOST]
