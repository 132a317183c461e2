"""The public keys of one OIDC issuer (JWKS, RFC 7517), fetched by one task and kept through the issuer's outages.

The task fetches every REFRESH_S, and earlier if a token names a key that is not known; but never more than once in
LEAST_BETWEEN_S, whatever is asked. A fetch that fails, or brings no key, changes nothing. After STALE_S without a good one
the keys are not used any more. A caller that needs a key waits for the fetch under way, for ANSWER_S at most.

A token's header never says where its key is. Only the configuration does, or the issuer's own discovery document.
"""

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import jwt
import trio
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from bentpipe.config.accounts import OidcIssuerSection
from bentpipe.daemon.accounts.https_fetch import FetchError, fetch
from bentpipe.daemon.errors import TokensUnknown, Unauthenticated

log = logging.getLogger("bentpipe.accounts")

REFRESH_S = 600.0
LEAST_BETWEEN_S = 60.0
SOON_S, RETRY_S = 5.0, 60.0
"""After a fetch that failed: the next one if a token waits for it, or anyway."""
STALE_S = 86_400.0
ANSWER_S = 12.0
"""Two requests, the discovery document and the keys."""
KEYS_MOST = 100
"""Issuers publish two to ten."""
KEY_ID_CHARS = 256
LEAST_RSA_BITS = 2_048
DISCOVERY = "/.well-known/openid-configuration"
"""OpenID Connect Discovery 1.0 §4."""
KINDS = {"RSA": ("RS256", "PS256"), "EC": ("ES256",)}
"""Algorithms by a key's `kty`."""

UNKNOWN_KEY = "the CI's token is signed with a key that its issuer does not publish"
UNREACHABLE = "the CI's token cannot be checked now: the keys of its issuer cannot be fetched; try again"

Fetch = Callable[[str, Path | None], Awaitable[bytes]]
Keys = Mapping[tuple[str, str], jwt.PyJWK]
"""By key id and algorithm."""


class IssuerKeys:
    """Made without I/O."""

    def __init__(
        self,
        section: OidcIssuerSection,
        *,
        get: Fetch = fetch,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.section = section
        self._get = get
        self._now = now
        self._keys: Keys = {}
        self._good_at = float("-inf")
        self._began_at = now()
        self._tried_at = float("-inf")
        self._wanted = trio.Event()
        self._tried = trio.Event()
        self._failing = ""

    async def run_fetches(self) -> None:
        """Fetch for ever."""
        while True:
            await self._try()
            self._wanted = trio.Event()
            with trio.move_on_after(RETRY_S if self._failing else REFRESH_S):
                await trio.sleep(self._pause_s)
                await self._wanted.wait()

    async def find(self, key_id: str, algorithm: str) -> jwt.PyJWK:
        """The key of this id for this algorithm. Raises Unauthenticated; TokensUnknown if the issuer cannot be asked."""
        found = self._fresh().get((key_id, algorithm))
        if found is None and self._may_try():
            self._wanted.set()
            with trio.move_on_after(ANSWER_S):
                await self._tried.wait()
            found = self._fresh().get((key_id, algorithm))
        if found is not None:
            return found
        if not self._fresh():
            words = f"issuer {self.section.name}: {self._failing or 'its keys have not been fetched yet'}"
            raise TokensUnknown(words, peer_hint=UNREACHABLE)
        raise Unauthenticated(UNKNOWN_KEY)

    @property
    def age_s(self) -> float:
        """Seconds since the last good fetch; since the start, if there was none yet."""
        return self._now() - max(self._good_at, self._began_at)

    def _fresh(self) -> Keys:
        return self._keys if self._now() - self._good_at < STALE_S else {}

    @property
    def _pause_s(self) -> float:
        return SOON_S if self._failing else LEAST_BETWEEN_S

    def _may_try(self) -> bool:
        """Whether a fetch is under way, or one may begin now."""
        return self._now() - self._tried_at >= self._pause_s

    async def _try(self) -> None:
        try:
            self._keys = await self._fetched()
            self._good_at = self._now()
            if self._failing:
                log.warning("an issuer's keys can be fetched again", extra={"fields": {"issuer": self.section.name}})
            self._failing = ""
        except FetchError as exc:
            if str(exc) != self._failing:
                fields = {"issuer": self.section.name, "error": str(exc)}
                log.error("an issuer's keys cannot be fetched", extra={"fields": fields})
            self._failing = str(exc)
        finally:
            self._tried_at = self._now()
            self._tried.set()
            self._tried = trio.Event()

    async def _fetched(self) -> Keys:
        url = self.section.keys_url or await self._discovered()
        keys = usable_keys(await self._get(url, self.section.ca), self.section.algorithms)
        if not keys:
            raise FetchError(f"{url}: no key for {' or '.join(self.section.algorithms)}")
        return keys

    async def _discovered(self) -> str:
        url = self.section.issuer.rstrip("/") + DISCOVERY
        document = _object(await self._get(url, self.section.ca), url)
        if document.get("issuer") != self.section.issuer:
            raise FetchError(f"{url}: its issuer is {document.get('issuer')!r} and not {self.section.issuer!r}")
        keys_url = document.get("jwks_uri")
        if not isinstance(keys_url, str) or not keys_url.startswith("https://"):
            raise FetchError(f"{url}: its jwks_uri is not an https:// address")
        return keys_url


def usable_keys(raw: bytes, algorithms: tuple[str, ...]) -> Keys:
    """The keys of a set that may sign by these algorithms; others are passed over. Raises FetchError."""
    keys = _object(raw, "the key set").get("keys")
    if not isinstance(keys, list) or len(keys) > KEYS_MOST:
        raise FetchError(f"the key set is not a list of at most {KEYS_MOST} keys")
    found: dict[tuple[str, str], jwt.PyJWK] = {}
    for each in keys:
        if not isinstance(each, dict):
            continue
        for algorithm in algorithms:
            key = _usable(each, algorithm)
            if key is not None:
                # If two keys have one id, it is unclear which is meant: the first stays, whatever follows.
                found.setdefault((str(each["kid"]), algorithm), key)
    return found


def _usable(each: dict[str, object], algorithm: str) -> jwt.PyJWK | None:
    key_id, kind = each.get("kid"), each.get("kty")
    if not isinstance(key_id, str) or len(key_id) > KEY_ID_CHARS or not isinstance(kind, str):
        return None
    if algorithm not in KINDS.get(kind, ()) or each.get("alg", algorithm) != algorithm:
        return None
    if each.get("use", "sig") != "sig" or "d" in each:
        return None
    try:
        key = jwt.PyJWK(each, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    public = key.key
    strong = isinstance(public, rsa.RSAPublicKey) and public.key_size >= LEAST_RSA_BITS
    on_p256 = isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1)
    return key if strong or on_p256 else None


def _object(raw: bytes, name: str) -> dict[str, object]:
    try:
        found: object = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise FetchError(f"{name}: not JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise FetchError(f"{name}: not a JSON object")
    return found
