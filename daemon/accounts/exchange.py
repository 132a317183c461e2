"""Exchanges a CI system's token for one of its jobs (OIDC) for a token of ours, once, by the rules of the configuration.

The CI's token lives for minutes, and the Earthly CLI logs in at every command: so a job exchanges once, and then shows ours.
What is checked, in this order: form; issuer, to the letter; algorithm, one that the configuration allows; key; signature;
audience, times; a rule; that the rule is not revoked, and that the token was not used before, on any host. Ours then names
the rule and the exchange, so that either can be revoked.
"""

import collections
import enum
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping

import jwt
import trio

from bentpipe.config.accounts import OidcRuleSection
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.contract import EXCHANGE_DEADLINE_S, Login
from bentpipe.daemon.accounts.issuer_keys import UNREACHABLE, IssuerKeys
from bentpipe.daemon.accounts.jwt_text import JwtText, MalformedJwt, read_jwt
from bentpipe.daemon.accounts.oidc_rules import find_rule
from bentpipe.daemon.accounts.principal import Origin
from bentpipe.daemon.accounts.sessions import LEEWAY_S, TokenPurpose
from bentpipe.daemon.errors import LimitReached, TokensUnknown, Unauthenticated
from bentpipe.daemon.logs import log_limited
from bentpipe.daemon.registry.accounts import AccountStore

log = logging.getLogger("bentpipe.accounts")

ID_TOKEN_BYTES = 16 << 10
"""GitHub's have some 2 KiB; a GitLab job with many groups has more."""
EXCHANGES = 64
"""At once; each waits for a fetch or for the store."""
EXCHANGE_ID_BYTES = 12
USED_EXTRA_S = 5.0
"""A used id is kept until its token has ended, for the clock that is farthest behind, and a little longer."""
SHOWN_CLAIMS = (
    *("repository", "repository_id", "repository_owner_id", "ref", "event_name", "job_workflow_ref", "environment"),
    *("project_path", "project_id", "namespace_id", "ref_path", "pipeline_source"),
    *("organization_slug", "organization_id", "pipeline_slug", "pipeline_id"),
)
"""Claims that rules are usually written by."""
SHOWN_CHARS = 200

NOT_A_TOKEN = "this is not an OIDC token of a CI job"
NO_ISSUER = "the token's issuer is not one that is configured here ([[oidc_issuer]])"
WRONG_ALGORITHM = "the token is signed by an algorithm that is not configured for its issuer"
NOT_VALID = "the CI's token is not valid: "
NO_RULE = "no rule ([[oidc_rule]]) is for this job"
USED = "this CI token was exchanged before: ask the CI for another, and exchange once for each job"


class Result(enum.Enum):
    """How an exchange ended."""

    EXCHANGED = "exchanged"
    REFUSED = "refused"
    """The token was not good, or not for any rule."""
    FAILED = "failed"
    """Nobody could say: no keys, no store, no place, or the job has left."""


class Exchange:
    """The issuers and their rules."""

    def __init__(
        self,
        admission: Admission,
        issuers: Iterable[IssuerKeys],
        rules: Iterable[OidcRuleSection],
        store: AccountStore | None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._admission = admission
        self._issuers: Mapping[str, IssuerKeys] = {}
        self._rules: tuple[OidcRuleSection, ...] = ()
        self.replace(issuers, rules)
        self._store = store
        self._now = now
        self._places = trio.CapacityLimiter(EXCHANGES)
        self.results: collections.Counter[Result] = collections.Counter()
        """How exchanges ended since the start."""

    def replace(self, issuers: Iterable[IssuerKeys], rules: Iterable[OidcRuleSection]) -> None:
        """Know these from now on."""
        self._issuers = {issuer.section.issuer: issuer for issuer in issuers}
        self._rules = tuple(rules)

    async def exchange(self, id_token: str) -> Login:
        """See Authority."""
        result = Result.FAILED
        try:
            login = await self._within_limits(id_token)
            result = Result.EXCHANGED
        except Unauthenticated:
            result = Result.REFUSED
            raise
        finally:
            self.results[result] += 1
        return login

    async def _within_limits(self, id_token: str) -> Login:
        if self._places.available_tokens < 1:
            raise LimitReached(f"{EXCHANGES} tokens of CI jobs are being exchanged: try again")
        async with self._places:
            with trio.move_on_after(EXCHANGE_DEADLINE_S):
                return await self._exchange(id_token)
        raise TokensUnknown(f"an exchange took over {EXCHANGE_DEADLINE_S:g} s", peer_hint=UNREACHABLE)

    async def _exchange(self, id_token: str) -> Login:
        try:
            text = read_jwt(id_token, ID_TOKEN_BYTES)
        except MalformedJwt as exc:
            raise Unauthenticated(NOT_A_TOKEN) from exc
        issuer, claims = await self._verified(id_token, text)
        rule = find_rule(self._rules, issuer.section.name, claims)
        if rule is None:
            fields = {**self._shown(issuer, claims), "issuer": issuer.section.name}
            log_limited(log, "no rule for a CI job", "no rule for a CI job", fields)
            raise Unauthenticated(NO_RULE)
        sessions = self._admission.sessions
        self._admission.check_rule(rule.name)
        sessions.signing_key()  # before the token is used up for nothing
        await self._use_once(text, claims, issuer.section.issuer)
        now = self._now()
        exchange_id = secrets.token_hex(EXCHANGE_ID_BYTES)
        origin = Origin(f"rule:{rule.name}", exchange_id, int(now * 1e6))
        login = sessions.issue(TokenPurpose.JOB, origin, now + rule.job_life_s)
        fields = {
            **self._shown(issuer, claims),
            "rule": rule.name,
            "exchange": exchange_id,
            "issuer": issuer.section.name,
        }
        log.info("a CI job's token was exchanged", extra={"fields": fields})
        return login

    async def _verified(self, id_token: str, text: JwtText) -> tuple[IssuerKeys, Mapping[str, object]]:
        """The issuer and what it says. Raises Unauthenticated, TokensUnknown."""
        named = text.claims.get("iss")
        issuer = self._issuers.get(named) if isinstance(named, str) else None
        if issuer is None:
            raise Unauthenticated(NO_ISSUER)
        if text.algorithm not in issuer.section.algorithms:
            raise Unauthenticated(WRONG_ALGORITHM)
        key = await issuer.find(text.key_id or "", text.algorithm)
        try:
            claims: Mapping[str, object] = jwt.decode(
                id_token,
                key,
                algorithms=[text.algorithm],
                audience=issuer.section.audience,
                issuer=issuer.section.issuer,
                leeway=LEEWAY_S,
                options={"require": ["iss", "aud", "exp", "iat"], "strict_aud": True},
            )
        except jwt.InvalidTokenError as exc:
            raise Unauthenticated(NOT_VALID + str(exc)) from exc
        return issuer, claims

    async def _use_once(self, text: JwtText, claims: Mapping[str, object], issuer: str) -> None:
        """Raises Unauthenticated if the token was used before, StoreError."""
        named = claims.get("jti")
        if named is not None and (not isinstance(named, str) or not named):
            raise Unauthenticated(NOT_VALID + "its jti is not a string")
        # An issuer that gives no ids: what it signed is the id. Only the signature could be written in another way.
        identity = f"jti\0{named}" if named is not None else f"text\0{text.signed_part}"
        used_id = hashlib.sha256(f"{issuer}\0{identity}".encode()).hexdigest()
        until_s = float(str(claims["exp"])) + LEEWAY_S + USED_EXTRA_S
        if self._store is None or not await self._store.use_once(used_id, until_us=int(until_s * 1e6)):
            raise Unauthenticated(USED)

    def _shown(self, issuer: IssuerKeys, claims: Mapping[str, object]) -> dict[str, str]:
        """What the log says of a job: the usual claims, and those that the issuer's rules are written by."""
        section = issuer.section
        ruled = (name for rule in self._rules if rule.issuer == section.name for name in (*rule.claims, *rule.patterns))
        names = {*SHOWN_CLAIMS, *section.id_claims, *ruled}
        return {name: str(claims[name])[:SHOWN_CHARS] for name in sorted(names.intersection(claims))}
