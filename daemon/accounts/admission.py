"""Who may use which satellite. Pure: tokens in, principals out; knows hashes only, the configuration's and the store's.

Constant time: every stored hash is compared for every request, so neither the time nor the answer tells which tokens
exist. Tokens carry 256 random bits, so a plain SHA-256 is enough: there is nothing to guess.
"""

import dataclasses
import hashlib
import hmac
from collections.abc import Iterable

from bentpipe.config.accounts import TokenSection
from bentpipe.daemon.errors import NoSuchSatellite, TokensUnknown, Unauthenticated
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.registry.contract import StoredToken
from bentpipe.proto.request import TOKEN_KEY, both_spellings

TOKEN_WORDS = f"the {both_spellings(TOKEN_KEY)} is missing or not valid"
UNKNOWN_WORDS = "the token cannot be checked at this moment; try again"
SATELLITE_WORDS = "no such satellite, or not yours"


@dataclasses.dataclass(frozen=True, slots=True)
class Grant:
    """Satellites of one org: one by name, or all whose names begin with `prefix`."""

    org: str
    prefix: str
    exact: bool

    @classmethod
    def parse(cls, text: str) -> "Grant":
        """Read `org/name`, `org/prefix*` or `org/*`; the configuration has checked the form."""
        org, _, name = text.partition("/")
        return cls(org, name.removesuffix("*"), not name.endswith("*"))

    def covers(self, key: SatelliteKey) -> bool:
        """Whether the satellite is among those granted."""
        return self.org == key.org and (key.name == self.prefix if self.exact else key.name.startswith(self.prefix))


@dataclasses.dataclass(frozen=True, slots=True)
class Principal:
    """Whoever shows a token: a name for the logs, and what it may use."""

    name: str
    grants: tuple[Grant, ...]


class Admission:
    """The table of tokens."""

    def __init__(self, tokens: Iterable[TokenSection]) -> None:
        self._configured = [_entry(token.name, token.hash, token.grants) for token in tokens]
        self._stored: list[tuple[bytes, Principal]] = []
        self._expecting = False
        self.version = 0
        """Another number whenever the table is another one: what it admitted need not be asked again."""
        self.names: frozenset[str] = frozenset()
        """Of all principals; another object after every change."""
        self._name_all()

    def _name_all(self) -> None:
        self.names = frozenset(principal.name for _, principal in (*self._stored, *self._configured))

    def expect_stored(self) -> None:
        """There are tokens in a store that have yet to be read: until then nobody can say that a token is not one."""
        self._expecting = True

    def replace_stored(self, tokens: Iterable[StoredToken]) -> None:
        """Know the store's tokens as they are now. If one is the configuration's too, the configuration's counts."""
        stored = [_entry(token.name, token.token_hash, token.grants) for token in tokens]
        if self._expecting or stored != self._stored:
            self._stored, self._expecting = stored, False
            self.version += 1
            self._name_all()

    def authenticate(self, token: str | None) -> Principal:
        """Find the token's principal. Raises Unauthenticated; TokensUnknown while the store has not been read."""
        digest = hashlib.sha256((token or "").encode()).digest()
        found: Principal | None = None
        for stored, principal in (*self._stored, *self._configured):
            if hmac.compare_digest(stored, digest):
                found = principal
        if found is None and token and self._expecting:
            raise TokensUnknown("the store's tokens have not been read yet", peer_hint=UNKNOWN_WORDS)
        if found is None or not token:
            raise Unauthenticated(TOKEN_WORDS)
        return found

    def authorize(self, principal: Principal, key: SatelliteKey) -> None:
        """Check that the principal may use the satellite. Raises NoSuchSatellite, as for one that does not exist."""
        if not any(grant.covers(key) for grant in principal.grants):
            raise NoSuchSatellite(f"{principal.name} may not use {key}", peer_hint=SATELLITE_WORDS)


def _entry(name: str, token_hash: str, grants: Iterable[str]) -> tuple[bytes, Principal]:
    return bytes.fromhex(token_hash.removeprefix("sha256:")), Principal(name, tuple(map(Grant.parse, grants)))
