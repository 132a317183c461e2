"""What machines send: only a P-256 key that is proved to be the sender's passes."""

import base64
import contextlib
import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from bentpipe.daemon.pki.authority import new_authority, new_key, pem_of
from bentpipe.daemon.pki.requests import MAX_REQUEST_BYTES, RequestError, check_signature, read_request

NOW = datetime.datetime.now(datetime.UTC)
SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "satellite")])
SAN = x509.SubjectAlternativeName([x509.DNSName("another.machine.bentpipe.internal")])
CA = x509.BasicConstraints(ca=True, path_length=None)


def request_pem(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *extensions: x509.ExtensionType, digest: object = None
) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(SUBJECT)
    for each in extensions:
        builder = builder.add_extension(each, critical=False)
    made = builder.sign(key, digest or hashes.SHA256())  # type: ignore[arg-type]
    return made.public_bytes(serialization.Encoding.PEM).decode()


def test_a_request_gives_its_key() -> None:
    key = new_key()
    assert read_request(request_pem(key)) == key.public_key()


def _other_signature() -> str:
    """A request whose key was exchanged for another one of the same length."""
    mine, theirs = (new_key().public_key() for _ in range(2)), new_key()
    der = x509.load_pem_x509_csr(request_pem(theirs).encode()).public_bytes(serialization.Encoding.DER)
    public = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    der = der.replace(theirs.public_key().public_bytes(*public), next(mine).public_bytes(*public))
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"


HOSTILE = {
    "nothing": lambda: "",
    "no PEM": lambda: "hello",
    "not ASCII": lambda: "ü" * 100,
    "a surrogate": lambda: "\udcff",
    "zero bytes": lambda: "\0" * 100,
    "another PEM": lambda: pem_of([new_authority("f", NOW).certificate]),
    "too long": lambda: request_pem(new_key()) + "\n" * MAX_REQUEST_BYTES,
    "another name": lambda: request_pem(new_key(), SAN),
    "an authority": lambda: request_pem(new_key(), CA),
    "P-384": lambda: request_pem(ec.generate_private_key(ec.SECP384R1())),
    "P-521": lambda: request_pem(ec.generate_private_key(ec.SECP521R1())),
    "RSA": lambda: request_pem(rsa.generate_private_key(65537, 2048)),
    "SHA-512": lambda: request_pem(new_key(), digest=hashes.SHA512()),
    "Ed25519": lambda: (
        x509.CertificateSigningRequestBuilder()
        .subject_name(SUBJECT)
        .sign(ed25519.Ed25519PrivateKey.generate(), None)
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    ),
    "another key's signature": _other_signature,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_request_is_refused_with_words(kind: str) -> None:
    with pytest.raises(RequestError, match=r"\w"):
        read_request(HOSTILE[kind]())


@settings(max_examples=500)
@given(st.integers(0, 300), st.integers(1, 255))
def test_a_request_with_a_wrong_byte_names_no_other_key(at: int, change: int) -> None:
    """It is refused, or the byte does not matter: DER leaves some that OpenSSL does not look at."""
    key = new_key()
    der = bytearray(x509.load_pem_x509_csr(request_pem(key).encode()).public_bytes(serialization.Encoding.DER))
    at %= len(der)
    der[at] ^= change
    body = base64.encodebytes(bytes(der)).decode()
    with contextlib.suppress(RequestError):
        found = read_request(f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n")
        assert found == key.public_key()


def public_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    kind = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*kind).decode()


def test_a_renewal_must_be_signed_by_the_key_before() -> None:
    key = new_key()
    request = request_pem(new_key())

    def signed(by: ec.EllipticCurvePrivateKey, text: str = request) -> str:
        return base64.b64encode(by.sign(text.encode(), ec.ECDSA(hashes.SHA256()))).decode()

    assert check_signature(public_pem(key), request, signed(key)) == key.public_key()
    wrong = (signed(new_key()), signed(key, request_pem(new_key())), "", "!!", "AAAA", "A" * 4096, "\udcff")
    for signature in wrong:
        with pytest.raises(RequestError):
            check_signature(public_pem(key), request, signature)
    rsa_key, larger = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())
    for presented in ("", "x", request, "\0", public_pem(key) + "\n" * MAX_REQUEST_BYTES, public_pem(rsa_key)):
        with pytest.raises(RequestError):
            check_signature(presented, request, signed(key))
    with pytest.raises(RequestError, match="P-256"):
        check_signature(public_pem(larger), request, signed(larger))
