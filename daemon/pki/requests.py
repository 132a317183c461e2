"""What a machine sends to get a certificate: its public key, proved to be its own. All of it is hostile until checked.

Only the key counts. Who the machine is, the daemon knows from the bootstrap token, or from the key before. So a request
that asks for names, or for anything else, is refused and not corrected.
"""

import base64

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

MAX_REQUEST_BYTES = 4 << 10
"""A request for a key on P-256 has about 400 bytes in PEM."""
MAX_SIGNATURE_CHARS = 256
"""An ECDSA signature on P-256 has at most 72 bytes in DER. With other keys it is longer, which the message says."""


UNREADABLE = (
    *(ValueError, TypeError, UnsupportedAlgorithm),
    *(x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)
"""What the library raises for text that is neither a request nor a key, or of a kind that it does not know."""


class RequestError(ValueError):
    """The request is refused; `str()` says why, in words for the machine."""


def read_request(pem: str) -> ec.EllipticCurvePublicKey:
    """Take the public key from a certificate signing request (PKCS #10, RFC 2986) in PEM. Raises RequestError."""
    if len(pem) > MAX_REQUEST_BYTES:
        raise RequestError(f"the request is longer than {MAX_REQUEST_BYTES} bytes")
    try:
        request = x509.load_pem_x509_csr(pem.encode("ascii"))
        public = request.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
            raise RequestError("the key must be an EC key on P-256")
        if not isinstance(request.signature_hash_algorithm, hashes.SHA256):
            raise RequestError("the request must be signed with SHA-256")
        signed = request.is_signature_valid
        asks = len(request.extensions) or len(request.attributes)
    except RequestError:
        raise
    except UNREADABLE as exc:
        raise RequestError(f"this is not a certificate signing request: {exc}") from exc
    if not signed:
        raise RequestError("the request is not signed by its own key")
    if asks:
        raise RequestError("the request must not ask for names or other extensions: the daemon decides them")
    return public


def check_signature(public_pem: str, request_pem: str, signature: str) -> ec.EllipticCurvePublicKey:
    """Check that a key has signed a request, and return it. Raises RequestError.

    `public_pem` is a SubjectPublicKeyInfo in PEM, `signature` is ECDSA with SHA-256 over `request_pem`, DER in base64. The
    key proves nothing until it is compared with the one that is stored.
    """
    if len(public_pem) > MAX_REQUEST_BYTES or len(signature) > MAX_SIGNATURE_CHARS:
        raise RequestError("the key or the signature is too long")
    try:
        public = serialization.load_pem_public_key(public_pem.encode("ascii"))
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
            raise RequestError("the key must be an EC key on P-256")
        public.verify(
            base64.b64decode(signature, validate=True), request_pem.encode("ascii"), ec.ECDSA(hashes.SHA256())
        )
    except RequestError:
        raise
    except InvalidSignature as exc:
        raise RequestError("the request is not signed by the key") from exc
    except UNREADABLE as exc:
        raise RequestError(f"the key or the signature cannot be read: {exc}") from exc
    return public
