"""The commands that list, revoke and allow what CI jobs get by OIDC: rules, and single exchanges."""

import json
import re
from pathlib import Path

import click

from bentpipe.config.accounts import MOST_SESSION_S
from bentpipe.daemon.registry.accounts import SUBJECT_PATTERN, AccountStore, StoredRevocation
from bentpipe.daemon.registry.contract import StoreConflict
from bentpipe.daemon.service.installed import load_operators_config
from bentpipe.daemon.service.orgs import with_account_store
from bentpipe.daemon.service.tokens import TOKEN_REFRESH_S, now_us, say_revoked

KEPT_S = MOST_SESSION_S + 3_600.0
"""How long a revocation is kept that no longer closes a rule: until every token that it concerns has ended."""


def run_rule_list(config_path: Path) -> None:
    """Print every rule of the configuration, and whether it is revoked. Raises ConfigErrors, StoreError."""
    config = load_operators_config(config_path, check_files=False)
    closed: set[str] = set()

    async def read(accounts: AccountStore) -> None:
        revocations = (await accounts.accounts()).revocations
        closed.update(each.subject for each in revocations if each.until_us is None)

    with_account_store(config, read)
    for rule in config.oidc_rule:
        state = "revoked" if f"rule:{rule.name}" in closed else "allowed"
        claims = {**rule.claims, **rule.patterns}
        click.echo("\t".join((rule.name, rule.issuer, json.dumps(claims), json.dumps(rule.grants), state)))


def run_rule_revoke(config_path: Path, name: str, *, cut: bool) -> None:
    """Close a rule: its tokens are refused, and it gives out no others. Raises ConfigErrors, StoreError."""
    config = load_operators_config(config_path, check_files=False)
    if all(rule.name != name for rule in config.oidc_rule):
        raise StoreConflict(f"{config_path} has no [[oidc_rule]] named {name!r}")

    async def revoke(accounts: AccountStore) -> None:
        at_us = now_us()
        await accounts.put_revocation(StoredRevocation(f"rule:{name}", at_us, None), cut_at_us=at_us if cut else None)

    with_account_store(config, revoke)
    say_revoked(cut=cut)


def run_rule_allow(config_path: Path, name: str) -> None:
    """Open a rule that was closed; what was given out before stays refused. Raises ConfigErrors, StoreError."""

    async def allow(accounts: AccountStore) -> None:
        known = {each.subject: each for each in (await accounts.accounts()).revocations}.get(f"rule:{name}")
        if known is None or known.until_us is not None:
            raise StoreConflict(f"the rule {name!r} is not revoked")
        # Up to now, not to the revocation: a host whose clock is ahead may have dated what it gave out before that later.
        at_us = now_us()
        await accounts.put_revocation(StoredRevocation(known.subject, at_us, at_us + int(KEPT_S * 1e6)))

    with_account_store(load_operators_config(config_path, check_files=False), allow)
    click.echo(
        f"allowed; running daemons know it within {TOKEN_REFRESH_S:g} s. Jobs have to exchange their tokens again"
    )


def run_exchange_revoke(config_path: Path, exchange_id: str, *, cut: bool) -> None:
    """Revoke what one job got. Raises ConfigErrors, StoreError, ValueError for the id."""
    subject = f"exchange:{exchange_id}"
    if not re.match(SUBJECT_PATTERN, subject):
        raise ValueError(f"{exchange_id!r} is not the id of an exchange: the log has it, in the line of the exchange")

    async def revoke(accounts: AccountStore) -> None:
        at_us = now_us()
        revocation = StoredRevocation(subject, at_us, at_us + int(KEPT_S * 1e6))
        await accounts.put_revocation(revocation, cut_at_us=at_us if cut else None)

    with_account_store(load_operators_config(config_path, check_files=False), revoke)
    say_revoked(cut=cut)
