"""The sections that say who may do what: tokens and certificates."""

import re
from typing import Self

from pydantic import Field, model_validator

from bentpipe.config.base import NAME_PATTERN, Name, Section

TOKEN_HASH_PATTERN = re.compile(r"^sha256:[0-9a-f]{64}$")
SAN_PATTERN = re.compile(r"^(DNS|URI|EMAIL):\S+$")


class TokenSection(Section):
    """A token, stored as its hash, and what it grants."""

    name: Name
    hash: str
    """`sha256:` and 64 hex digits, as `bentpipe token new` prints it."""
    grants: tuple[str, ...] = Field(min_length=1)
    """`org/name`, `org/prefix*` or `org/*`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not TOKEN_HASH_PATTERN.match(self.hash):
            raise ValueError("hash must be sha256: and 64 lower-case hex digits, as `bentpipe token new` prints it")
        check_grants(self.grants)
        return self


class CertificateSection(Section):
    """A client certificate, and what it grants. Its listener's client_ca has verified its chain."""

    name: Name
    san: str | None = None
    """A subject alternative name: `DNS:…`, `URI:…` or `EMAIL:…`. Any certificate of the CA that has it counts."""
    fingerprint: str | None = None
    """`sha256:` and 64 hex digits of the certificate as DER: this one certificate alone."""
    grants: tuple[str, ...] = Field(min_length=1)

    @property
    def shown(self) -> str:
        """What a certificate must show, in one spelling: DNS names compare without case (RFC 4343)."""
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


def check_grants(grants: tuple[str, ...]) -> None:
    """Check the form of each. Raises ValueError, naming the first that has none."""
    for grant in grants:
        org, slash, name = grant.partition("/")
        # A prefix need be no name by itself: "b-*" is what begins one.
        name = f"{name.removesuffix('*')}x" if name.endswith("*") else name
        if not slash or not re.match(NAME_PATTERN, org) or not re.match(NAME_PATTERN, name):
            raise ValueError(f"grant {grant!r}: expected ORG/NAME, ORG/PREFIX* or ORG/*")
