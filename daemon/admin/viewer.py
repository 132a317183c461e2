"""Who looks at the page, and what that one may see and do: by a token's grants and scopes, or everything."""

import dataclasses
import secrets
import time
from collections.abc import Callable, Collection

from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.contract import Access, Authority, Credentials, Scope
from bentpipe.daemon.api.operator import NAME, OperatorAccess
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.records.telling import Fields

TOKEN_CREDENTIAL = "token:"
"""Begins the name of a token among a principal's credentials."""
EVERYTHING = OperatorAccess(())
READER = "anybody"


@dataclasses.dataclass(frozen=True, slots=True)
class Viewer:
    """One that looks. `access` is asked at every use, so that a right that ends has ended."""

    name: str
    access: Access
    sees_host: bool
    """Whether it sees all satellites and connections, and what is of the host itself."""
    acts: bool
    """Whether it may act at all."""
    runs_host: bool = False
    """Whether it may act on the host itself."""
    secret: str = ""
    """Which the forms of its pages carry (CSRF)."""
    signed_in: bool = False

    def may(self, scope: Scope, key: SatelliteKey) -> bool:
        """Whether it may do this to a satellite."""
        return self.acts and self.access.may(scope, key.org, key.name)

    def sees(self, key: SatelliteKey) -> bool:
        """Whether it may know of a satellite."""
        return self.sees_host or self.access.may(Scope.USE, key.org, key.name)

    def sees_connection(self, fields: Fields) -> bool:
        """Whether it may know of a connection: its own, and those of satellites that it manages."""
        if self.sees_host or fields.get("principal") == self.name:
            return True
        org, slash, name = str(fields.get("satellite", "")).partition("/")
        return bool(slash) and self.access.may(Scope.MANAGE, org, name)


class Viewers:
    """Finds out who a token stands for. `operators` returns the names of tokens that may do everything."""

    def __init__(self, authority: Authority, admission: Admission, operators: Callable[[], Collection[str]]) -> None:
        self._authority = authority
        self._admission = admission
        self._operators = operators
        self._secret = secrets.token_urlsafe(32)

    @property
    def operator(self) -> Viewer:
        """Root, or the daemon's own user: the kernel has said so."""
        return Viewer(NAME, EVERYTHING, sees_host=True, acts=True, runs_host=True, secret=self._secret)

    @property
    def reader(self) -> Viewer:
        """Anybody who can connect, where that is enough to read."""
        return Viewer(READER, EVERYTHING, sees_host=True, acts=False)

    def of_token(self, token: str, secret: str = "") -> Viewer:
        """Who shows the token. Raises Unauthenticated; TokensUnknown while the store has not been read."""
        access = self._authority.authenticate(Credentials(token))
        credentials = self._admission.authenticate(token).credentials
        operators = {TOKEN_CREDENTIAL + name for name in self._operators()}
        if operators.intersection(credentials):
            return Viewer(access.name, EVERYTHING, True, True, True, secret, signed_in=True)
        return Viewer(access.name, access, sees_host=False, acts=True, secret=secret, signed_in=True)


SIGN_INS, SIGN_INS_OF_ONE = 256, 8
"""At once: the oldest gives way."""
AGE_S, IDLE_S = 12 * 3600.0, 3600.0
ATTEMPTS, ATTEMPTS_S = 20, 10.0
"""Attempts to sign in, and the time in which there may be so many: a token cannot be guessed, but each attempt costs."""


@dataclasses.dataclass(slots=True)
class SignIn:
    """One browser that has shown a token. Kept in memory alone: after a restart it signs in again."""

    token: str
    name: str
    secret: str
    began: float
    used: float


class SignIns:
    """All of them, by the random value of their cookie. `now` is monotonic, in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._of: dict[str, SignIn] = {}
        self._attempts: list[float] = []

    def __len__(self) -> int:
        return len(self._of)

    def may_try(self) -> bool:
        """Whether another attempt may be made now; it is counted."""
        now = self._now()
        self._attempts = [at for at in self._attempts if now - at < ATTEMPTS_S]
        if len(self._attempts) >= ATTEMPTS:
            return False
        self._attempts.append(now)
        return True

    def open(self, token: str, name: str) -> str:
        """A token was shown, and is this principal's. Returns the cookie's value."""
        now = self._now()
        for value, each in list(self._of.items()):
            if now - each.began >= AGE_S or now - each.used >= IDLE_S:
                del self._of[value]
        own = [value for value, each in self._of.items() if each.name == name]
        for value in own[: max(0, len(own) - SIGN_INS_OF_ONE + 1)]:
            del self._of[value]
        while len(self._of) >= SIGN_INS:
            del self._of[next(iter(self._of))]
        value = secrets.token_urlsafe(32)
        self._of[value] = SignIn(token, name, secrets.token_urlsafe(32), now, now)
        return value

    def find(self, value: str) -> SignIn | None:
        """The one of a cookie; None if there is none, or none any more."""
        found = self._of.get(value)
        now = self._now()
        if found is None:
            return None
        if now - found.began >= AGE_S or now - found.used >= IDLE_S:
            del self._of[value]
            return None
        found.used = now
        return found

    def close(self, value: str) -> None:
        """It is over."""
        self._of.pop(value, None)
