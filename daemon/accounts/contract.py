"""What the control API asks about its callers: who a credential stands for, and what that principal may do.

The API knows no token, no key and no table. It shows the credentials of a request to the `Authority`, gets an `Access`
and asks it before everything that it does, also in the middle of a long stream: a right can end at any time.
"""

import dataclasses
import datetime
import enum
from typing import Protocol


class Scope(enum.Enum):
    """What a caller may do with a satellite. `MANAGE` includes `USE`."""

    USE = "use"
    """See it, wake it and build on it."""
    MANAGE = "manage"
    """Also put it to sleep, launch, change and delete it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Org:
    """An org that a caller belongs to.

    `id` is what clients send as `org_id` and as the metadata `satellite_org`. It equals the org's name, so that one
    spelling serves every client.
    """

    id: str
    name: str
    personal: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """What a caller shows: a bearer token as sent, and the client certificate of its TLS connection as DER."""

    token: str | None = None
    certificate_der: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Login:
    """A credential for the calls to come. `token` is ASCII without white space, `expiry` is in UTC and in the future."""

    token: str
    expiry: datetime.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class TokenSummary:
    """A token of the caller, as a list of tokens shows it: never its secret. `expiry` is None if it does not expire."""

    name: str
    write: bool
    expiry: datetime.datetime | None = None


EXCHANGE_PATH = "/api/v0/account/exchange"
"""Where a CI job exchanges its token: POST, `Authorization: Bearer <OIDC token>`, empty body; answered as a login is."""
EXCHANGE_DEADLINE_S = 20.0


class Access(Protocol):
    """What one caller may do. All methods answer at once, by the tables as they are now."""

    @property
    def name(self) -> str:
        """The principal's name: for the logs, and for the account that its connections are charged to."""
        ...

    @property
    def email(self) -> str:
        """An address with exactly one "@", which the Earthly CLI wants to see."""
        ...

    @property
    def writes(self) -> bool:
        """Whether it may manage anything at all."""
        ...

    def holds(self) -> bool:
        """Whether the credential holds now: it has not been revoked and has not expired."""
        ...

    def may(self, scope: Scope, org: str, satellite: str | None) -> bool:
        """Whether it may do this to a satellite, even if none of that name exists. None stands for the org itself.

        USE of an org lets its satellites be listed, those that `may` allows one by one. False once it does not hold.
        """
        ...

    def orgs(self) -> tuple[Org, ...]:
        """The orgs of which it may use any satellite."""
        ...

    def tokens(self) -> tuple[TokenSummary, ...]:
        """The tokens of this principal."""
        ...


class Authority(Protocol):
    """Turns credentials into rights. All methods except `exchange` answer at once: tasks do ahead of time what takes
    long."""

    def authenticate(self, credentials: Credentials) -> Access:
        """Check every credential that is shown.

        Raises Unauthenticated, or TokensUnknown while the store has not been read.
        """
        ...

    def log_in(self, token: str) -> Login:
        """Exchange a token for a credential that lasts at least an hour, unless the token ends before that.

        Raises as `authenticate`.
        """
        ...

    async def exchange(self, id_token: str) -> Login:
        """Exchange a CI system's token for one of its jobs (OIDC) for a token of ours that lasts as long as the job may.

        The result is a token like any other: `log_in` and `authenticate` take it. An OIDC token can be exchanged once. Waits
        for the issuer's keys and for the store, EXCHANGE_DEADLINE_S at most. Raises as `authenticate`, with words for the
        job's log; LimitReached; StoreError.
        """
        ...
