"""Puts the parts of daemon/accounts together for a configuration: what `serve` starts, and what the edge and the API ask."""

import dataclasses
from collections.abc import Iterable

import trio

from bentpipe.config.accounts import OidcIssuerSection
from bentpipe.config.model import Config
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.authority import TableAuthority
from bentpipe.daemon.accounts.certificates import Certificates
from bentpipe.daemon.accounts.exchange import Exchange
from bentpipe.daemon.accounts.issuer_keys import IssuerKeys
from bentpipe.daemon.accounts.key_keeper import KEY_NAME, LEAD_S, KeyKeeper
from bentpipe.daemon.accounts.sessions import Sessions
from bentpipe.daemon.accounts.signing_key import SigningKeyError, read_key
from bentpipe.daemon.service.stores import NO_STORE, Stores, state_file
from bentpipe.daemon.tasks import Owner, run_owned

FIRST_KEY_S = 1.0
"""How long the start waits for the signing key. To read or make it takes milliseconds; a new key of a host that shares its
table is not waited for (LEAD_S)."""


class Issuers:
    """The issuers of CI tokens, each with a task that keeps its keys. They can become others while the daemon runs."""

    def __init__(self, sections: Iterable[OidcIssuerSection]) -> None:
        self._keys = tuple(map(IssuerKeys, sections))
        self._scopes: dict[IssuerKeys, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None

    @property
    def keys(self) -> tuple[IssuerKeys, ...]:
        """Of each."""
        return self._keys

    def start(self, nursery: trio.Nursery) -> None:
        """Start the tasks."""
        self._nursery = nursery
        for keys in self._keys:
            self._run(keys)

    def follow(self, sections: Iterable[OidcIssuerSection]) -> None:
        """These are the issuers from now on. One whose section is as it was keeps its keys."""
        known = {keys.section: keys for keys in self._keys}
        self._keys = tuple(known[each] if each in known else IssuerKeys(each) for each in sections)
        for keys in set(self._scopes) - set(self._keys):
            self._scopes.pop(keys).cancel()
        for keys in set(self._keys) - set(self._scopes):
            self._run(keys)

    def _run(self, keys: IssuerKeys) -> None:
        if self._nursery is not None:
            scope = self._scopes[keys] = trio.CancelScope()
            self._nursery.start_soon(run_owned, Owner("OIDC keys", keys.section.name), self._fetch, keys, scope)

    async def _fetch(self, keys: IssuerKeys, scope: trio.CancelScope) -> None:
        with scope:
            await run_owned(Owner("OIDC keys", keys.section.name), keys.run_fetches)


@dataclasses.dataclass(frozen=True, slots=True)
class AccountParts:
    """The tables, what the control API asks, and the task that keeps the key which signs sessions."""

    admission: Admission
    certificates: Certificates
    authority: TableAuthority
    exchange: Exchange
    keeper: KeyKeeper
    issuers: Issuers

    async def start(self, nursery: trio.Nursery) -> None:
        """Start the tasks, and wait for a key that signs: a client that logs in at once is not turned away."""
        nursery.start_soon(run_owned, Owner("signing key"), self.keeper.run_keeper)
        self.issuers.start(nursery)
        with trio.move_on_after(FIRST_KEY_S):
            await self.keeper.wait_signing()

    def follow(self, config: Config) -> None:
        """Take over another configuration. Clients that were admitted by the old one are asked again."""
        self.certificates.replace(config.certificate)
        self.admission.replace_configured(config.token, config.oidc_rule)
        self.issuers.follow(config.oidc_issuer)
        self.exchange.replace(self.issuers.keys, config.oidc_rule)
        self.authority.session_life_s = config.accounts.session_life_s


def make_accounts(config: Config, stores: Stores) -> AccountParts:
    """Make the parts; nothing is started. Raises OSError if the signing key cannot be used, or a rule needs a store."""
    check_signing_key(config)
    section = config.accounts
    if config.oidc_rule and stores.accounts is None:
        raise OSError(f"[[oidc_rule]]: an OIDC token is exchanged once, which is noted in the store; {NO_STORE}")
    sessions = Sessions(config.ec2.fleet)
    admission = Admission(config.token, rules=config.oidc_rule, sessions=sessions)
    certificates = Certificates(config.certificate)
    keeper = KeyKeeper(
        sessions,
        stores.accounts,
        configured=section.signing_key,
        kept=state_file(config.store, KEY_NAME),
        # Only hosts that share a table have to hear of each other's keys.
        lead_s=LEAD_S if config.store.kind == "dynamodb" else 0.0,
    )
    issuers = Issuers(config.oidc_issuer)
    exchange = Exchange(admission, issuers.keys, config.oidc_rule, stores.accounts)
    authority = TableAuthority(admission, certificates, exchange, session_life_s=section.session_life_s)
    return AccountParts(admission, certificates, authority, exchange, keeper, issuers)


def check_signing_key(config: Config) -> None:
    """Read the signing key that is configured, if one is. Raises OSError if it cannot be used."""
    path = config.accounts.signing_key
    if path is None:
        return
    try:
        read_key(path)
    except SigningKeyError as exc:
        raise OSError(f"[accounts] signing_key: {exc}") from exc
