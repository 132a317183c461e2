"""Sessions: signed tokens (JWT) that stand for a credential for some hours. Gives them out and checks them; no I/O.

A session carries no rights, only the credential that it was given out for: what that may do is looked up at every use, so
that a revocation counts at once. Any host of the fleet checks it, by the public keys that all hosts publish in the store.

A check costs 120 µs for the signature. It is made once for each token: after that it is a look-up by the token's SHA-256,
until the token expires or the keys change.
"""

import dataclasses
import datetime
import enum
import secrets
import time
from collections.abc import Callable, Iterable, Mapping

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from bentpipe.daemon.accounts.contract import Login
from bentpipe.daemon.accounts.jwt_text import MalformedJwt, read_jwt
from bentpipe.daemon.accounts.principal import Origin
from bentpipe.daemon.accounts.signing_key import ALGORITHM, SigningKey
from bentpipe.daemon.errors import TokensUnknown, Unauthenticated
from bentpipe.daemon.registry.accounts import StoredKey, public_key_of
from bentpipe.proto.request import TOKEN_KEY, both_spellings

ISSUER = "bentpipe"
SESSION_BYTES = 2_048
"""Ours have some 500."""
LEEWAY_S = 30.0
"""How far the clocks of two hosts may be apart: by so much a session may be from the future. None is valid after its end."""
CACHED_SESSIONS = 10_000
"""By default so many connections are open; each entry takes some 500 bytes."""
ID_BYTES = 16

NOT_VALID = f"the token is not valid ({both_spellings(TOKEN_KEY)}, or authorization: Bearer)"
EXPIRED = "the token has expired: log in again"
NO_KEY_YET = "sessions cannot be signed at this moment; try again"


class UnknownKey(Unauthenticated):
    """Signed with a key that is not known here: another host's, or not one of ours."""


class TokenPurpose(enum.Enum):
    """What a signed token is for; its value is the header's `typ`, which no token of another issuer has."""

    SESSION = "bentpipe-session+jwt"
    """Stands for a credential. It cannot be exchanged for another: one that leaks ends by itself."""
    JOB = "bentpipe-job+jwt"
    """A CI job's credential, made by an exchange. Sessions are given out for it as for any token."""


@dataclasses.dataclass(frozen=True, slots=True)
class SignedSession:
    """What a signed token says, once its signature is checked."""

    kind: TokenPurpose
    origin: Origin
    expires_at: float
    """Seconds since the epoch."""


class Sessions:
    """The keys, and what was checked by them."""

    def __init__(self, fleet: str, now: Callable[[], float] = time.time) -> None:
        self._audience = f"bentpipe/{fleet}"
        self._now = now
        self._signing: SigningKey | None = None
        self._keys: dict[str, ec.EllipticCurvePublicKey] = {}
        self._trusted: frozenset[StoredKey] = frozenset()
        self._checked: dict[bytes, SignedSession] = {}

    def sign_with(self, key: SigningKey) -> None:
        """Sign with this key from now on. What the one before has signed holds as long as `trust` names it."""
        self._signing = key
        self._take_keys()

    def trust(self, keys: Iterable[StoredKey]) -> None:
        """Know the public keys of the fleet as they are now."""
        now_us = self._now() * 1e6
        trusted = frozenset(key for key in keys if key.until_us > now_us)
        if trusted != self._trusted:
            self._trusted = trusted
            self._take_keys()

    def _take_keys(self) -> None:
        pems = {key.key_id: key.public_pem for key in self._trusted}
        if self._signing is not None:
            pems[self._signing.key_id] = self._signing.public_pem
        keys = {key_id: public_key_of(pem) for key_id, pem in pems.items()}
        if keys.keys() != self._keys.keys():
            self._checked.clear()
        self._keys = keys

    def signing_key(self) -> SigningKey:
        """The key that signs now. Raises TokensUnknown while there is none."""
        if self._signing is None:
            raise TokensUnknown("there is no key to sign sessions with yet", peer_hint=NO_KEY_YET)
        return self._signing

    def issue(self, kind: TokenPurpose, origin: Origin, expires_at: float) -> Login:
        """Give out a token. Raises TokensUnknown while there is no key to sign with."""
        signing = self.signing_key()
        now, expires = int(self._now()), int(expires_at)
        claims: dict[str, object] = {
            "iss": ISSUER,
            "aud": self._audience,
            "sub": origin.subject,
            "iat": now,
            "exp": expires,
            "jti": secrets.token_hex(ID_BYTES),
        }
        if origin.exchange_id is not None:
            claims |= {"exchange": origin.exchange_id, "exchanged_us": origin.exchanged_us}
        token = jwt.encode(claims, signing.private, ALGORITHM, {"kid": signing.key_id, "typ": kind.value})
        return Login(token, datetime.datetime.fromtimestamp(expires, datetime.UTC))

    def check(self, token: str, digest: bytes) -> SignedSession:
        """Say what a token of ours stands for; `digest` is its SHA-256. Raises Unauthenticated."""
        session = self._checked.get(digest) or self._verified(token)
        if session.expires_at <= self._now():
            self._checked.pop(digest, None)
            raise Unauthenticated(EXPIRED)
        if digest not in self._checked and len(self._checked) >= CACHED_SESSIONS:
            del self._checked[next(iter(self._checked))]
        self._checked[digest] = session
        return session

    def knows(self, digest: bytes) -> bool:
        """Whether the token of this SHA-256 is a session that was checked already."""
        return digest in self._checked

    def _verified(self, token: str) -> SignedSession:
        try:
            text = read_jwt(token, SESSION_BYTES)
            kind = TokenPurpose(text.token_type)
            key = self._keys.get(text.key_id or "")
            if text.algorithm != ALGORITHM:
                raise Unauthenticated(NOT_VALID)
            if key is None:
                raise UnknownKey(NOT_VALID)
            claims: Mapping[str, object] = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=self._audience,
                issuer=ISSUER,
                leeway=LEEWAY_S,
                options={"require": ["iss", "aud", "sub", "iat", "exp", "jti"], "strict_aud": True},
            )
        except jwt.ExpiredSignatureError as exc:
            raise Unauthenticated(EXPIRED) from exc
        except (MalformedJwt, jwt.InvalidTokenError, ValueError) as exc:
            raise Unauthenticated(NOT_VALID) from exc
        return SignedSession(kind, _origin(claims), float(str(claims["exp"])))


def _origin(claims: Mapping[str, object]) -> Origin:
    subject, exchange, at_us = claims["sub"], claims.get("exchange"), claims.get("exchanged_us", 0)
    if not isinstance(subject, str) or not isinstance(exchange, str | None) or not isinstance(at_us, int):
        raise Unauthenticated(NOT_VALID)
    return Origin(subject, exchange, at_us)
