"""A principal: what a credential stands for, what it may do, and until when. Pure values."""

import dataclasses
import math

from bentpipe.daemon.accounts.contract import Scope
from bentpipe.daemon.model import Grant

USE_ONLY = frozenset({Scope.USE})


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """What a signed token (JWT) was given out for. It is in the token, so that a revocation works at once."""

    subject: str
    """`token:` and the token's fingerprint, or `rule:` and the rule's name."""
    exchange_id: str | None = None
    """The id of the exchange of a CI job's token; None for a token of ours."""
    exchanged_us: int = 0
    """When that exchange was. Microseconds since the epoch."""


@dataclasses.dataclass(frozen=True, slots=True)
class Principal:
    """What one credential stands for: a name for limits and logs, and what it may do."""

    name: str
    grants: tuple[Grant, ...]
    scopes: frozenset[Scope] = USE_ONLY
    credentials: tuple[str, ...] = ()
    """What a cut may name beside the principal: `token:NAME`; `certificate:NAME`; `exchange:ID` and `rule:NAME`."""
    expires_at: float = math.inf
    """Seconds since the epoch."""
    origin: Origin | None = None
    """What a session for it carries; None for a certificate, which needs no session."""
    by_session: bool = False
    """Whether the credential is itself a session."""


def scopes_of(names: tuple[str, ...]) -> frozenset[Scope]:
    """Read scopes as the configuration and the store write them. `manage` includes `use`."""
    scopes = {Scope(name) for name in names}
    return frozenset(scopes | {Scope.USE} if Scope.MANAGE in scopes else scopes)
