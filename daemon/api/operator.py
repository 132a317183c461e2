"""The authority of a Unix socket: the kernel has said who calls, root or the daemon's own user, and both may do all."""

from collections.abc import Sequence

from bentpipe.daemon.accounts.contract import Access, Credentials, Login, Org, Scope, TokenSummary
from bentpipe.daemon.errors import Unauthenticated

NAME = "operator"
NO_LOGIN = "no token is needed on this socket, and none is given out"


class OperatorAccess:
    """`Access` to everything."""

    def __init__(self, orgs: Sequence[str]) -> None:
        self._orgs = tuple(Org(name, name) for name in orgs)

    @property
    def name(self) -> str:
        """See Access."""
        return NAME

    @property
    def email(self) -> str:
        """See Access."""
        return f"{NAME}@localhost"

    @property
    def writes(self) -> bool:
        """See Access."""
        return True

    def holds(self) -> bool:
        """See Access."""
        return True

    def may(self, scope: Scope, org: str, satellite: str | None) -> bool:
        """See Access."""
        return True

    def orgs(self) -> tuple[Org, ...]:
        """See Access."""
        return self._orgs

    def tokens(self) -> tuple[TokenSummary, ...]:
        """See Access."""
        return ()


class OperatorAuthority:
    """`Authority`: every caller is the operator, whatever it shows."""

    def __init__(self, orgs: Sequence[str]) -> None:
        self._access = OperatorAccess(orgs)

    def replace_orgs(self, orgs: Sequence[str]) -> None:
        """These are the orgs from now on, for new calls."""
        self._access = OperatorAccess(orgs)

    def authenticate(self, credentials: Credentials) -> Access:
        """See Authority."""
        return self._access

    def log_in(self, token: str) -> Login:
        """See Authority."""
        raise Unauthenticated(NO_LOGIN)

    async def exchange(self, id_token: str) -> Login:
        """See Authority."""
        raise Unauthenticated(NO_LOGIN)
