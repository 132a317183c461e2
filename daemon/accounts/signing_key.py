"""The private key that signs sessions: read from its file, or made and kept there. Blocking; the public half is shared.

ES256 (ECDSA on P-256, RFC 7518 §3.4): every library knows it by one name, while EdDSA is being renamed (RFC 9864).
"""

import dataclasses
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bentpipe.daemon.private_file import write_private
from bentpipe.daemon.registry.accounts import key_id_of

ALGORITHM = "ES256"
MAX_FILE_BYTES = 16 << 10
"""A key in PEM has some 230 bytes; a larger file is a mistaken path."""


class SigningKeyError(Exception):
    """The key cannot be used; `str()` says which file, and what is wrong with it."""


@dataclasses.dataclass(frozen=True, slots=True)
class SigningKey:
    """A key pair."""

    key_id: str
    private: ec.EllipticCurvePrivateKey
    public_pem: str


def new_key() -> SigningKey:
    """Make a key pair."""
    return _pair(ec.generate_private_key(ec.SECP256R1()))


def read_key(path: Path) -> SigningKey:
    """Read a private key in PEM. Raises SigningKeyError."""
    try:
        with path.open("rb") as file:
            pem = file.read(MAX_FILE_BYTES)
        key = serialization.load_pem_private_key(pem, password=None)
    except OSError as exc:
        raise SigningKeyError(f"{path}: {exc.strerror or exc}") from exc
    except (ValueError, TypeError) as exc:  # TypeError: it has a password
        raise SigningKeyError(f"{path}: not a private key in PEM without a password: {exc}") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SigningKeyError(
            f"{path}: expected an EC key on P-256; `openssl ecparam -name prime256v1 -genkey` makes one"
        )
    return _pair(key)


def keep_key(path: Path, key: SigningKey) -> None:
    """Write a private key for its owner only, in place of an older one. Raises SigningKeyError."""
    pem = key.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        write_private(path, pem)
    except OSError as exc:
        raise SigningKeyError(f"{path}: {exc.strerror or exc}") from exc


def _pair(private: ec.EllipticCurvePrivateKey) -> SigningKey:
    public = private.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return SigningKey(key_id_of(public), private, pem.decode())
