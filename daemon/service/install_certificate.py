"""`bentpipe install-certificate`: puts a renewed certificate and its key where the daemon reads them, as one file.

certbot replaces its links one by one, so that for a moment a key is not its certificate's, and AWS exports a key that is
encrypted. One file that has both, and that is replaced by one rename(2), is never half new.
"""

from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from bentpipe.daemon.private_file import write_private
from bentpipe.daemon.service.read_chain import read_chain


def run_install(certificates: tuple[Path, ...], key: Path, to: Path, passphrase_file: Path | None) -> None:
    """Check that the key is the first certificate's, and write `to`: the key, then the chain.

    `certificates` are the chain, leaf first, in one file or several. Raises ValueError, with words, and OSError: then
    nothing has changed.
    """
    chain = [each for path in certificates for each in _named(path)]
    private = _read_key(key, passphrase_file)
    if _public(private.public_key()) != _public(chain[0].public_key()):
        raise ValueError(f"{key} is not the key of {certificates[0]}: nothing was installed")
    text = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain)
    write_private(to, text)
    click.echo(f"{to}: the key and {len(chain)} certificates, until {chain[0].not_valid_after_utc:%Y-%m-%d %H:%M} UTC")


def _named(path: Path) -> list[x509.Certificate]:
    try:
        return read_chain(path)
    except ValueError as exc:
        raise ValueError(f"{path}: {exc}") from exc


def _read_key(path: Path, passphrase_file: Path | None) -> PrivateKeyTypes:
    password = None if passphrase_file is None else passphrase_file.read_bytes().rstrip(b"\r\n")
    try:
        return serialization.load_pem_private_key(path.read_bytes(), password)
    except TypeError as exc:  # encrypted without a passphrase, or the other way round
        words = "give its passphrase with --passphrase-file" if password is None else "it is not encrypted"
        raise ValueError(f"{path}: {words}") from exc
    except ValueError as exc:
        raise ValueError(f"{path}: not a private key in PEM form, or the passphrase is wrong") from exc


def _public(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    found: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return found
