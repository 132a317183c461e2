"""Who may do what with which satellite. Pure: tokens in, principals out; knows hashes and public keys only.

Three kinds of tokens are taken: those of the configuration, those of the store, and the signed ones that were given out
for them or for a CI job (`sessions.py`). Rights are looked up at every use, by the tables as they are then.

Constant time: every stored hash is compared for every token that is not a session, so neither the time nor the answer
tells which tokens exist. Tokens carry 256 random bits, so a plain SHA-256 is enough: there is nothing to guess.
"""

import dataclasses
import hashlib
import hmac
import math
import time
from collections.abc import Callable, Iterable

from bentpipe.config.accounts import OidcRuleSection, TokenSection
from bentpipe.daemon.accounts.contract import Scope
from bentpipe.daemon.accounts.jwt_text import looks_like_jwt
from bentpipe.daemon.accounts.principal import Origin, Principal, scopes_of
from bentpipe.daemon.accounts.sessions import (
    CACHED_SESSIONS,
    NOT_VALID,
    Sessions,
    SignedSession,
    TokenPurpose,
    UnknownKey,
)
from bentpipe.daemon.errors import SATELLITE_WORDS, NoSuchSatellite, TokensUnknown, Unauthenticated
from bentpipe.daemon.model import Grant, SatelliteKey
from bentpipe.daemon.registry.accounts import StoredAccounts, StoredOrg, StoredRevocation
from bentpipe.daemon.registry.contract import StoredToken
from bentpipe.proto.request import TOKEN_KEY, both_spellings

NO_TOKEN_WORDS = f"no token: send it as {both_spellings(TOKEN_KEY)}, or as authorization: Bearer"
EXPIRED_WORDS = "the token has expired"
REVOKED_WORDS = "the token is not valid any more: what it was given out for was revoked or has expired"
RULE_REVOKED_WORDS = "the rule for this job is revoked"
UNKNOWN_WORDS = "the token cannot be checked at this moment; try again"

FINGERPRINT_CHARS = 32
"""Hex digits by which sessions name a token: half of the SHA-256 of its hash."""
NO_ACCOUNTS = StoredAccounts()

Entry = tuple[bytes, Principal]
"""A token's SHA-256, and what it stands for."""


class Admission:
    """The tables of tokens, orgs, rules and revocations."""

    def __init__(
        self,
        tokens: Iterable[TokenSection],
        *,
        rules: Iterable[OidcRuleSection] = (),
        sessions: Sessions | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.sessions = Sessions("default", now) if sessions is None else sessions
        self._now = now
        self._configured = [_configured(token) for token in tokens]
        self._rules = {rule.name: rule for rule in rules}
        self._stored: list[Entry] = []
        self._by_fingerprint: dict[str, Principal] = {}
        self._by_session: dict[bytes, Principal] = {}
        """What sessions stand for by these tables; only sessions that `self.sessions` knows count."""
        self._orgs: tuple[StoredOrg, ...] = ()
        self._revoked_orgs: frozenset[str] = frozenset()
        self._revocations: dict[str, StoredRevocation] = {}
        self._expecting = False
        self.store_fails = False
        """Whether the last look at the store failed: what was known before counts, but there may be news."""
        self.version = 0
        """Another number whenever the tables are others: what they admitted need not be asked again."""
        self._changed: Callable[[], None] = lambda: None
        self.names: frozenset[str] = frozenset()
        """Of all principals; another object after every change."""
        self._index()

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` after every change of the tables."""
        self._changed = changed

    def replace_configured(self, tokens: Iterable[TokenSection], rules: Iterable[OidcRuleSection]) -> None:
        """Know the configuration as it is now. What the old one admitted is checked again."""
        self._configured = [_configured(token) for token in tokens]
        self._rules = {rule.name: rule for rule in rules}
        self.version += 1
        self._index()

    def _index(self) -> None:
        entries = (*self._stored, *self._configured)
        self.names = frozenset({*(principal.name for _, principal in entries), *self._rules})
        self._by_session.clear()
        self._by_fingerprint = {_fingerprint(digest): principal for digest, principal in entries}
        self._changed()

    def expect_stored(self) -> None:
        """There are tokens in a store that have yet to be read: until then nobody can say that a token is not one."""
        self._expecting = True

    def replace_stored(self, tokens: Iterable[StoredToken], accounts: StoredAccounts = NO_ACCOUNTS) -> None:
        """Know the store as it is now. If one of its tokens is the configuration's too, the configuration's counts."""
        self.sessions.trust(accounts.keys)
        stored = [_stored(token) for token in tokens]
        revocations = {each.subject: each for each in accounts.revocations}
        if self._expecting or stored != self._stored or accounts.orgs != self._orgs or revocations != self._revocations:
            self._stored, self._expecting = stored, False
            self._orgs, self._revocations = accounts.orgs, revocations
            self._revoked_orgs = frozenset(org.name for org in accounts.orgs if org.revoked_us is not None)
            self.version += 1
            self._index()

    def authenticate(self, token: str | None) -> Principal:
        """Find the token's principal. Raises Unauthenticated; TokensUnknown while the store has not been read."""
        digest = hashlib.sha256((token or "").encode()).digest()
        if token and self.sessions.knows(digest):
            known = self._by_session.get(digest)
            if known is not None and known.expires_at > self._now():
                return known
            return self._of_session(self.sessions.check(token, digest), digest)
        found: Principal | None = None
        for stored, principal in (*self._stored, *self._configured):
            if hmac.compare_digest(stored, digest):
                found = principal
        if not token:
            raise Unauthenticated(NO_TOKEN_WORDS)
        if found is None:
            return self._by_signature(token, digest)
        if found.expires_at <= self._now():
            raise Unauthenticated(EXPIRED_WORDS)
        return found

    def _by_signature(self, token: str, digest: bytes) -> Principal:
        try:
            if not looks_like_jwt(token):
                raise Unauthenticated(NOT_VALID)
            return self._of_session(self.sessions.check(token, digest), digest)
        except Unauthenticated as exc:
            if self._expecting:
                words = "the store's tokens have not been read yet"
                raise TokensUnknown(words, peer_hint=UNKNOWN_WORDS) from exc
            if self.store_fails and isinstance(exc, UnknownKey):
                words = "the store cannot be read, which may have the key of the host that gave the session out"
                raise TokensUnknown(words, peer_hint=UNKNOWN_WORDS) from exc
            raise

    def _of_session(self, session: SignedSession, digest: bytes) -> Principal:
        kind, _, name = session.origin.subject.partition(":")
        principal = self._by_fingerprint.get(name) if kind == "token" else self._of_rule(name, session)
        if principal is None:
            raise Unauthenticated(REVOKED_WORDS)
        expires_at = min(session.expires_at, principal.expires_at)
        if expires_at <= self._now():
            raise Unauthenticated(EXPIRED_WORDS)
        by_session = session.kind is TokenPurpose.SESSION
        found = dataclasses.replace(principal, expires_at=expires_at, origin=session.origin, by_session=by_session)
        if len(self._by_session) >= CACHED_SESSIONS:
            self._by_session.clear()
        self._by_session[digest] = found
        return found

    def _of_rule(self, name: str, session: SignedSession) -> Principal | None:
        """None if the rule is gone or revoked, or the exchange is."""
        rule, origin = self._rules.get(name), session.origin
        if rule is None or origin.exchange_id is None or self._expecting:
            return None
        credential = f"exchange:{origin.exchange_id}"
        of_rule = self._revocations.get(f"rule:{name}")
        if credential in self._revocations or self._is_closed(name):
            return None
        if of_rule is not None and origin.exchanged_us <= of_rule.at_us:
            return None
        credentials = (credential, f"rule:{name}")
        return Principal(
            rule.name, _grants(rule.grants), scopes_of(rule.scopes), credentials, session.expires_at, origin
        )

    def _is_closed(self, rule: str) -> bool:
        revocation = self._revocations.get(f"rule:{rule}")
        return revocation is not None and revocation.until_us is None

    def check_rule(self, rule: str) -> None:
        """Check that tokens may be exchanged by a rule. Raises Unauthenticated if it is revoked, TokensUnknown."""
        if self._expecting:
            raise TokensUnknown("the store's revocations have not been read yet", peer_hint=UNKNOWN_WORDS)
        if self._is_closed(rule):
            raise Unauthenticated(RULE_REVOKED_WORDS)

    def holds(self, version: int, principals: Iterable[Principal]) -> bool:
        """Whether principals that were authenticated when the tables had this version need not be asked again."""
        now = self._now()
        return version == self.version and all(each.expires_at > now for each in principals)

    def may(self, principal: Principal, scope: Scope, org: str, name: str | None) -> bool:
        """Whether the principal may do this to a satellite; without a name: to any of the org."""
        if scope not in principal.scopes or org in self._revoked_orgs:
            return False
        if name is None:
            return any(grant.org == org for grant in principal.grants)
        key = SatelliteKey(org, name)
        return any(grant.covers(key) for grant in principal.grants)

    def authorize(self, principal: Principal, key: SatelliteKey) -> None:
        """Check that the principal may use the satellite. Raises NoSuchSatellite, as for one that does not exist."""
        if not self.may(principal, Scope.USE, key.org, key.name):
            raise NoSuchSatellite(f"{principal.name} may not use {key}", peer_hint=SATELLITE_WORDS)

    def tokens(self) -> dict[bytes, Principal]:
        """All tokens that are not sessions: their SHA-256, and what each stands for."""
        return {digest: principal for digest, principal in (*self._stored, *self._configured)}

    def tokens_of(self, name: str) -> tuple[Principal, ...]:
        """The tokens of a principal, each as what it stands for."""
        entries = (*self._configured, *self._stored)
        return tuple(principal for _, principal in entries if principal.name == name)


def _configured(token: TokenSection) -> Entry:
    expires_at = math.inf if token.expires is None else token.expires.timestamp()
    return _entry(token.name, token.principal, token.hash, token.grants, token.scopes, expires_at)


def _stored(token: StoredToken) -> Entry:
    expires_at = math.inf if token.expires_us is None else token.expires_us / 1e6
    return _entry(token.name, token.principal, token.token_hash, token.grants, token.scopes, expires_at)


def _entry(
    name: str,
    principal: str | None,
    token_hash: str,
    grants: tuple[str, ...],
    scopes: tuple[str, ...],
    expires_at: float,
) -> Entry:
    digest = bytes.fromhex(token_hash.removeprefix("sha256:"))
    origin = Origin(f"token:{_fingerprint(digest)}")
    credentials = (f"token:{name}",)
    return digest, Principal(principal or name, _grants(grants), scopes_of(scopes), credentials, expires_at, origin)


def _grants(texts: tuple[str, ...]) -> tuple[Grant, ...]:
    return tuple(map(Grant.parse, texts))


def _fingerprint(digest: bytes) -> str:
    return hashlib.sha256(digest).hexdigest()[:FINGERPRINT_CHARS]
