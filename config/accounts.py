"""The sections about identities and what they may do: tokens, certificates, sessions, and the rules for CI jobs."""

import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import AwareDatetime, Field, model_validator

from bentpipe.config.base import NAME_PATTERN, DurationS, Name, Section

TOKEN_HASH_PATTERN = re.compile(r"^sha256:[0-9a-f]{64}$")
SAN_PATTERN = re.compile(r"^(DNS|URI|EMAIL):\S+$")

ScopeName = Literal["use", "manage"]
"""What a credential may do. "manage" includes "use"."""

LEAST_SESSION_S, MOST_SESSION_S = 3_600.0, 86_400.0
"""A client logs in before a wake that may take 20 minutes, and shows the session after it."""

ID_CLAIMS = frozenset(
    {
        "repository_id",
        "repository_owner_id",
        "enterprise_id",
        "project_id",
        "namespace_id",
        "job_project_id",
        "job_namespace_id",
        "organization_id",
        "pipeline_id",
        "oidc.circleci.com/project-id",
    }
)
"""Claims that GitHub, GitLab, Buildkite and CircleCI never give to another owner, unlike names, which can be taken over."""

CHECKED_CLAIMS = frozenset({"sub", "iss", "aud", "exp", "iat", "nbf", "jti"})
"""Claims that no rule may name. `sub` joins several values in a format that a repository can change (GitHub's
`include_claim_keys`); the daemon checks the others itself."""


class TokenSection(Section):
    """A token, stored as its hash, and the satellites that it grants."""

    name: Name
    hash: str
    """`sha256:` and 64 hex digits, as `bentpipe token new` prints it."""
    grants: tuple[str, ...] = Field(min_length=1)
    """`org/name`, `org/prefix*` or `org/*`."""
    scopes: tuple[ScopeName, ...] = Field(default=("use",), min_length=1)
    principal: Name | None = None
    """Whose token it is; by default the principal has the token's name. Limits and logs go by principal."""
    expires: AwareDatetime | None = None
    """When it ends: 2027-01-31T00:00:00Z. By default never."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not TOKEN_HASH_PATTERN.match(self.hash):
            raise ValueError("hash must be sha256: and 64 lower-case hex digits, as `bentpipe token new` prints it")
        check_grants(self.grants)
        return self


class CertificateSection(Section):
    """A client certificate, and the satellites that it grants. Its listener's client_ca has verified its chain."""

    name: Name
    san: str | None = None
    """A subject alternative name: `DNS:…`, `URI:…` or `EMAIL:…`. Any certificate of the CA that has it counts."""
    fingerprint: str | None = None
    """`sha256:` and 64 hex digits of the certificate as DER: this one certificate alone."""
    grants: tuple[str, ...] = Field(min_length=1)
    scopes: tuple[ScopeName, ...] = Field(default=("use",), min_length=1)

    @property
    def shown(self) -> str:
        """The name or fingerprint that a certificate must have, in one spelling:

        DNS names compare without case (RFC 4343).
        """
        shown = self.fingerprint or self.san or ""
        return f"DNS:{shown[4:].lower()}" if shown.startswith("DNS:") else shown

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.san is None) == (self.fingerprint is None):
            raise ValueError("give exactly one of san and fingerprint")
        if self.san is not None and not SAN_PATTERN.match(self.san):
            raise ValueError("san must be DNS:…, URI:… or EMAIL:…")
        if self.fingerprint is not None and not TOKEN_HASH_PATTERN.match(self.fingerprint):
            raise ValueError("fingerprint must be sha256: and 64 lower-case hex digits")
        check_grants(self.grants)
        return self


class AccountsSection(Section):
    """Sessions: the signed tokens (JWT) that `account login` and the exchange for CI jobs give out."""

    signing_key: Path | None = None
    """An EC private key on P-256, in PEM. By default the daemon makes one and keeps it in systemd's StateDirectory."""
    session_life_s: DurationS = Field(default=3600.0, ge=LEAST_SESSION_S, le=MOST_SESSION_S, alias="session_life")


class OidcIssuerSection(Section):
    """A CI system that signs tokens for its jobs (OpenID Connect)."""

    name: Name
    issuer: str
    """Exactly as in the tokens' claim `iss`: `https://…`."""
    audience: str = Field(min_length=1)
    """What a job asks its token for, in `aud`. Take one that no other service uses."""
    keys_url: str | None = None
    """Where its public keys are (JWKS); by default its `/.well-known/openid-configuration` says so."""
    ca: Path | None = None
    """Who signs its server's certificate, in PEM; by default the system's authorities."""
    algorithms: tuple[Literal["RS256", "PS256", "ES256"], ...] = Field(default=("RS256",), min_length=1)
    id_claims: tuple[str, ...] = ()
    """Further claims that it never gives to another owner, beside those known of GitHub, GitLab, Buildkite, CircleCI."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, url in (("issuer", self.issuer), ("keys_url", self.keys_url)):
            if url is not None:
                _check_url(key, url)
        refused = sorted(CHECKED_CLAIMS.intersection(self.id_claims))
        if refused:
            raise ValueError(f"id_claims: {refused[0]!r} does not identify an owner for ever")
        return self


def _check_url(key: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.username or parts.fragment or parts.query:
        raise ValueError(f"{key} must be an https:// address without user, query and fragment")


class OidcRuleSection(Section):
    """Which jobs of an issuer get what. Every claim that is named must match; the first rule that matches counts."""

    name: Name
    """The principal: limits and logs go by it."""
    issuer: Name
    """Name of an `[[oidc_issuer]]`."""
    claims: dict[str, str] = Field(min_length=1)
    """Claims and the exact value that each must have, one of them an id that the issuer never gives to another owner."""
    patterns: dict[str, str] = Field(default_factory=dict)
    """Claims and a pattern each: `*` stands for any characters but "/" and ":"."""
    grants: tuple[str, ...] = Field(min_length=1)
    scopes: tuple[ScopeName, ...] = Field(default=("use",), min_length=1)
    job_life_s: DurationS = Field(default=21_600.0, ge=LEAST_SESSION_S, le=MOST_SESSION_S, alias="job_life")
    """How long a job may last: as long is the token valid that it gets. GitHub ends jobs after six hours by default."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in (*self.claims, *self.patterns):
            if key in CHECKED_CLAIMS:
                raise ValueError(f"the claim {key!r} cannot be matched: name single claims, such as repository_id")
        both = sorted(set(self.claims).intersection(self.patterns))
        if both:
            raise ValueError(f"the claim {both[0]!r} is in claims and in patterns")
        if any(not value for value in (*self.claims.values(), *self.patterns.values())):
            raise ValueError("a claim cannot be matched by an empty value")
        check_grants(self.grants)
        return self


def check_grants(grants: tuple[str, ...]) -> None:
    """Check the form of each grant. Raises ValueError, which names the first wrong one."""
    for grant in grants:
        org, slash, name = grant.partition("/")
        # A prefix does not have to be a whole name: "b-" may begin one.
        name = f"{name.removesuffix('*')}x" if name.endswith("*") else name
        if not slash or not re.match(NAME_PATTERN, org) or not re.match(NAME_PATTERN, name):
            raise ValueError(f"grant {grant!r}: expected ORG/NAME, ORG/PREFIX* or ORG/*")
