"""Signed tokens: what they stand for, how long, and every attack on a JWT that is known to us."""

import base64
import datetime
import hashlib
import hmac
import json
import time
from collections.abc import Callable

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from bentpipe.daemon.accounts.jwt_text import MalformedJwt, looks_like_jwt, read_jwt
from bentpipe.daemon.accounts.principal import Origin
from bentpipe.daemon.accounts.sessions import (
    CACHED_SESSIONS,
    EXPIRED,
    LEEWAY_S,
    NOT_VALID,
    SESSION_BYTES,
    Sessions,
    TokenPurpose,
)
from bentpipe.daemon.accounts.signing_key import SigningKey, new_key
from bentpipe.daemon.errors import TokensUnknown, Unauthenticated
from bentpipe.daemon.registry.accounts import StoredKey

KEY, OTHER_KEY = new_key(), new_key()
ORIGIN = Origin("token:abc")
FAR_US = 1 << 62
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def sessions(key: SigningKey | None = KEY, *, fleet: str = "f", now: Callable[[], float] = time.time) -> Sessions:
    made = Sessions(fleet, now)
    if key is not None:
        made.sign_with(key)
    return made


def check(by: Sessions, token: str) -> Origin:
    return by.check(token, hashlib.sha256(token.encode()).digest()).origin


def part(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims(**changed: object) -> dict[str, object]:
    now = int(time.time())
    usual = {"iss": "bentpipe", "aud": "bentpipe/f", "sub": "token:abc", "iat": now, "exp": now + 600, "jti": "1"}
    return {name: value for name, value in {**usual, **changed}.items() if value is not None}


def signed(header: dict[str, object] | None = None, key: SigningKey = KEY, **changed: object) -> str:
    headers = {"typ": TokenPurpose.SESSION.value, "kid": key.key_id, **(header or {})}
    if headers["kid"] is None:
        del headers["kid"]
    return jwt.encode(claims(**changed), key.private, "ES256", headers)


@pytest.mark.parametrize("kind", TokenPurpose)
@pytest.mark.parametrize("origin", [ORIGIN, Origin("rule:main", "0a1b", 5)])
def test_what_is_issued_is_valid_and_says_the_same(kind: TokenPurpose, origin: Origin) -> None:
    login = sessions().issue(kind, origin, time.time() + 3600)
    assert looks_like_jwt(login.token)
    assert login.token.isascii()
    assert 3590 < (login.expiry - datetime.datetime.now(datetime.UTC)).total_seconds() <= 3600
    by = sessions()
    found = by.check(login.token, b"digest")
    assert (found.kind, found.origin) == (kind, origin)
    assert by.knows(b"digest")


def test_a_session_of_one_host_is_valid_on_another_that_knows_its_key() -> None:
    token = sessions(KEY).issue(TokenPurpose.SESSION, ORIGIN, time.time() + 60).token
    other = sessions(OTHER_KEY)
    with pytest.raises(Unauthenticated):
        check(other, token)
    other.trust([StoredKey(KEY.key_id, KEY.public_pem, FAR_US)])
    assert check(other, token) == ORIGIN
    other.trust([])
    with pytest.raises(Unauthenticated):
        check(other, token)


def test_a_key_is_trusted_until_its_time_and_a_rotation_ends_no_session() -> None:
    now = time.time()
    by = sessions(KEY, now=lambda: now)
    token = by.issue(TokenPurpose.SESSION, ORIGIN, now + 3600).token
    by.trust([StoredKey(KEY.key_id, KEY.public_pem, int((now + 100) * 1e6))])
    by.sign_with(OTHER_KEY)
    assert check(by, token) == ORIGIN
    assert check(by, by.issue(TokenPurpose.SESSION, ORIGIN, now + 3600).token) == ORIGIN
    now += 101
    by.trust([StoredKey(KEY.key_id, KEY.public_pem, int((now - 1) * 1e6))])
    with pytest.raises(Unauthenticated):
        check(by, token)


def test_without_a_key_nothing_is_issued() -> None:
    with pytest.raises(TokensUnknown):
        sessions(None).issue(TokenPurpose.SESSION, ORIGIN, time.time() + 60)


def test_the_second_check_of_a_token_costs_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    by = sessions()
    token = by.issue(TokenPurpose.SESSION, ORIGIN, time.time() + 60).token
    assert check(by, token) == ORIGIN
    monkeypatch.setattr(jwt, "decode", None)
    assert check(by, token) == ORIGIN


def test_a_session_ends_at_its_second_also_from_the_cache() -> None:
    now = time.time()
    by = sessions(now=lambda: now)
    token = by.issue(TokenPurpose.SESSION, ORIGIN, now + 60).token
    assert check(by, token) == ORIGIN
    now += 61
    with pytest.raises(Unauthenticated, match=EXPIRED):
        check(by, token)


def test_what_was_checked_is_bounded() -> None:
    by = sessions()
    token = by.issue(TokenPurpose.SESSION, ORIGIN, time.time() + 60).token
    session = by.check(token, b"first")
    by._checked.update({number.to_bytes(4, "big"): session for number in range(CACHED_SESSIONS - 1)})
    by.check(token, b"last")
    assert len(by._checked) == CACHED_SESSIONS
    assert not by.knows(b"first")


def hs256_with_public_key() -> str:
    """Key confusion: the public key as an HMAC secret."""
    text = f"{part({'alg': 'HS256', 'typ': TokenPurpose.SESSION.value, 'kid': KEY.key_id})}.{part(claims())}"
    mac = hmac.new(KEY.public_pem.encode(), text.encode(), hashlib.sha256).digest()
    return f"{text}.{part(mac)}"


def rs256_with_own_key() -> str:
    return jwt.encode(claims(), RSA, "RS256", {"typ": TokenPurpose.SESSION.value, "kid": KEY.key_id})


def with_duplicate(name: str) -> str:
    """Signed by our own key: a parser that takes the first and one that takes the last would differ."""
    payload = json.dumps(claims())[:-1] + f', "{name}": "x"}}'
    return jwt.api_jws.encode(
        payload.encode(), KEY.private, "ES256", {"typ": TokenPurpose.SESSION.value, "kid": KEY.key_id}
    )


def unsigned(alg: object) -> str:
    return f"{part({'alg': alg, 'typ': TokenPurpose.SESSION.value, 'kid': KEY.key_id})}.{part(claims())}."


def raw_token(header: object, payload: object) -> str:
    return f"{part(header)}.{part(payload)}.{part(b'x' * 64)}"


def tampered() -> str:
    head, _, signature = signed().split(".")
    return f"{head}.{part(claims(sub='token:other'))}.{signature}"


OTHER_JWK = jwt.algorithms.ECAlgorithm.to_jwk(OTHER_KEY.private.public_key())


def attacks() -> dict[str, str]:
    """Made anew for each test, so that none of them is refused for its age."""
    now = int(time.time())
    return {
        "alg none": unsigned("none"),
        "alg None": unsigned("None"),
        "alg empty": unsigned(""),
        "alg a list": unsigned(["ES256"]),
        "no alg": f"{part({'typ': TokenPurpose.SESSION.value, 'kid': KEY.key_id})}.{part(claims())}.",
        "key confusion": hs256_with_public_key(),
        "another algorithm": rs256_with_own_key(),
        "tampered": tampered(),
        "no signature": signed().rpartition(".")[0] + ".",
        "another's key under our id": signed({"kid": KEY.key_id}, OTHER_KEY),
        "an unknown key": signed(key=OTHER_KEY),
        "no kid": signed({"kid": None}),
        "kid a path": signed({"kid": "../../dev/null"}),
        "kid an injection": signed({"kid": "' UNION SELECT 'x"}),
        "kid a list": raw_token({"alg": "ES256", "kid": [KEY.key_id]}, claims()),
        "own key in jwk": signed({"jwk": json.loads(OTHER_JWK)}, OTHER_KEY),
        "jku": signed({"jku": "https://attacker.example/keys"}),
        "x5u": signed({"x5u": "https://attacker.example/cert"}),
        "crit": signed({"crit": ["exp"], "exp": now + 60}),
        "b64": signed({"zip": "DEF"}),
        "a usual JWT": signed({"typ": "JWT"}),
        "no typ": signed({"typ": None}),
        "wrong audience": signed(aud="bentpipe/other"),
        "several audiences": signed(aud=["bentpipe/f", "x"]),
        "no audience": signed(aud=None),
        "wrong issuer": signed(iss="https://token.actions.githubusercontent.com"),
        "no issuer": signed(iss=None),
        "no end": signed(exp=None),
        "expired": signed(exp=now - 1),
        "expired within a clock's leeway": signed(exp=now - int(LEEWAY_S) + 5),
        "from the future": signed(iat=now + 3600),
        "not yet": signed(nbf=now + 3600),
        "end is text": signed(exp="x"),
        "subject is a number": signed(sub=5),
        "no id": signed(jti=None),
        "exchange is a list": signed(exchange=["x"]),
        "exchanged as text": signed(exchange="x", exchanged_us="1"),
        "oversize": signed(pad="x" * SESSION_BYTES),
        "duplicate subject": with_duplicate("sub"),
        "duplicate audience": with_duplicate("aud"),
        "duplicate header": raw_token(b'{"alg":"none","alg":"ES256"}', claims()),
        "NaN": raw_token({"alg": "ES256", "typ": TokenPurpose.SESSION.value, "kid": KEY.key_id}, b'{"exp": NaN}'),
        "deep nesting": raw_token(b"[" * 700, claims()),
        "an array": raw_token([1], claims()),
        "four parts": signed() + ".x",
        "not base64": "eyJ!.eyJ!.x",
    }


@pytest.mark.parametrize("attack", attacks())
def test_attacks(attack: str) -> None:
    by = sessions()
    with pytest.raises(Unauthenticated) as refused:
        check(by, attacks()[attack])
    assert str(refused.value) == (EXPIRED if attack.startswith("expired") else NOT_VALID)
    assert not by._checked


def test_the_attacks_begin_with_a_token_that_is_valid() -> None:
    assert check(sessions(), signed()) == ORIGIN
    assert check(sessions(), signed(iat=int(time.time()) + int(LEEWAY_S) - 5)) == ORIGIN


def test_pyjwt_takes_no_public_key_in_pem_for_a_secret() -> None:
    public = serialization.load_pem_public_key(KEY.public_pem.encode())
    with pytest.raises(jwt.InvalidTokenError):
        jwt.decode(hs256_with_public_key(), public, algorithms=["ES256"], audience="bentpipe/f")  # type: ignore[arg-type]


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_read_or_refused(text: str) -> None:
    for token in (
        text,
        f"eyJ{text}",
        f"{part(text.encode())}.{part({})}.x",
        f"{part({'alg': text})}.{part({text: text})}.",
    ):
        try:
            found = read_jwt(token, 4096)
        except MalformedJwt:
            continue
        assert isinstance(found.claims, dict)


@given(st.data())
def test_one_changed_character_spoils_a_session(data: st.DataObject) -> None:
    token = signed()
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from("ABCDEFGHabcdefgh0123456789-_.=+/ "))
    if token[at] == other:
        return
    with pytest.raises(Unauthenticated):
        check(sessions(), token[:at] + other + token[at + 1 :])
