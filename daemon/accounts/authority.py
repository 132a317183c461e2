"""`Authority` by the tables of `Admission`: turns what a caller of the control API shows into rights."""

import datetime
import math
import time
from collections.abc import Callable

from bentpipe.daemon.accounts.admission import NO_TOKEN_WORDS, Admission
from bentpipe.daemon.accounts.certificates import Certificates
from bentpipe.daemon.accounts.contract import Access, Credentials, Login, Org, Scope, TokenSummary
from bentpipe.daemon.accounts.exchange import Exchange
from bentpipe.daemon.accounts.principal import Principal
from bentpipe.daemon.accounts.sessions import TokenPurpose
from bentpipe.daemon.errors import BentpipeError, Unauthenticated

EMAIL_HOST = "bentpipe.invalid"
"""RFC 2606 §2: no mail goes there. The CLI only wants to see an address."""
SESSION_WORDS = "a session cannot be exchanged for another: log in with the token that it was given out for"


class TableAuthority:
    """`Authority`: the first principal that a caller shows is its name, and all of them must allow what it does."""

    def __init__(
        self,
        admission: Admission,
        certificates: Certificates,
        exchange: Exchange,
        *,
        session_life_s: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.admission = admission
        self._certificates = certificates
        self._exchange = exchange
        self.logins = 0
        """Sessions given out since the start."""
        self.session_life_s = session_life_s
        """Of sessions that are given out from now on, in seconds."""
        self._now = now

    def authenticate(self, credentials: Credentials) -> Access:
        """See Authority."""
        return TableAccess(self, credentials)

    def principals(self, credentials: Credentials) -> tuple[Principal, ...]:
        """Check every credential, as the edge does (`edge/identity.py`). Raises Unauthenticated, TokensUnknown."""
        found: list[Principal] = []
        if credentials.token is not None:
            found.append(self.admission.authenticate(credentials.token))
        if credentials.certificate_der is not None:
            principal = self._certificates.find(credentials.certificate_der)
            if principal is not None:
                found.append(principal)
        if not found:
            raise Unauthenticated(NO_TOKEN_WORDS)
        return tuple(found)

    def log_in(self, token: str) -> Login:
        """See Authority."""
        principal = self.admission.authenticate(token)
        if principal.origin is None or principal.by_session:
            raise Unauthenticated(SESSION_WORDS)
        expires_at = min(self._now() + self.session_life_s, principal.expires_at)
        login = self.admission.sessions.issue(TokenPurpose.SESSION, principal.origin, expires_at)
        self.logins += 1
        return login

    async def exchange(self, id_token: str) -> Login:
        """See Authority."""
        return await self._exchange.exchange(id_token)


class TableAccess:
    """`Access`: asks the tables again whenever they are others, or a credential has expired."""

    def __init__(self, authority: TableAuthority, credentials: Credentials) -> None:
        self._authority = authority
        self._credentials = credentials
        self._version = authority.admission.version
        self._principals = authority.principals(credentials)

    @property
    def name(self) -> str:
        """See Access."""
        return self._principals[0].name

    @property
    def email(self) -> str:
        """See Access."""
        return f"{self.name}@{EMAIL_HOST}"

    @property
    def writes(self) -> bool:
        """See Access."""
        return all(Scope.MANAGE in principal.scopes for principal in self._principals)

    def holds(self) -> bool:
        """See Access."""
        admission = self._authority.admission
        if admission.holds(self._version, self._principals):
            return True
        try:
            self._principals = self._authority.principals(self._credentials)
        except BentpipeError:
            return False
        self._version = admission.version
        return True

    def may(self, scope: Scope, org: str, satellite: str | None) -> bool:
        """See Access."""
        if not self.holds():
            return False
        admission = self._authority.admission
        return all(admission.may(principal, scope, org, satellite) for principal in self._principals)

    def orgs(self) -> tuple[Org, ...]:
        """See Access."""
        named = {grant.org for principal in self._principals for grant in principal.grants}
        return tuple(Org(name, name) for name in sorted(named) if self.may(Scope.USE, name, None))

    def tokens(self) -> tuple[TokenSummary, ...]:
        """See Access."""
        return tuple(
            TokenSummary(
                token.credentials[0].partition(":")[2],
                Scope.MANAGE in token.scopes,
                None
                if token.expires_at == math.inf
                else datetime.datetime.fromtimestamp(token.expires_at, datetime.UTC),
            )
            for token in self._authority.admission.tokens_of(self.name)
        )
