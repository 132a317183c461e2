"""The commands that make, list and revoke orgs of the store."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import click
import trio

from bentpipe.config.base import NAME_PATTERN
from bentpipe.config.model import Config
from bentpipe.daemon.registry.accounts import AccountStore, StoredOrg
from bentpipe.daemon.registry.contract import StoreConflict
from bentpipe.daemon.service.installed import load_operators_config
from bentpipe.daemon.service.stores import use_store
from bentpipe.daemon.service.tokens import TOKEN_REFRESH_S, now_us, say_revoked


def run_org_add(config_path: Path, name: str) -> None:
    """Make an org, or lift its revocation. Raises ConfigErrors, StoreError, ValueError for the name."""
    if not re.match(NAME_PATTERN, name):
        raise ValueError(f"{name!r} is not a valid name: letters, digits, '.', '_' and '-', 64 at most")

    async def add(accounts: AccountStore) -> None:
        known = {org.name: org for org in (await accounts.accounts()).orgs}.get(name)
        if known is not None and known.revoked_us is None:
            raise StoreConflict(f"there is an org {name!r} already")
        await accounts.put_org(StoredOrg(name, now_us() if known is None else known.created_us))

    with_account_store(load_operators_config(config_path, check_files=False), add)
    click.echo(f"added; running daemons know it within {TOKEN_REFRESH_S:g} s")


def run_org_list(config_path: Path) -> None:
    """Print every org. Raises ConfigErrors, StoreError."""
    config = load_operators_config(config_path, check_files=False)
    found: dict[str, StoredOrg] = {}

    async def read(accounts: AccountStore) -> None:
        found.update({org.name: org for org in (await accounts.accounts()).orgs})

    with_account_store(config, read)
    configured = {satellite.org for satellite in config.satellite}
    for name in sorted({*configured, *found}):
        revoked = name in found and found[name].revoked_us is not None
        source = "configuration" if name in configured else "store"
        click.echo(f"{name}\t{source}\t{'revoked' if revoked else 'allowed'}")


def run_org_revoke(config_path: Path, name: str, *, cut: bool) -> None:
    """Revoke an org of the store or of the configuration. Raises ConfigErrors, StoreError."""
    config = load_operators_config(config_path, check_files=False)

    async def revoke(accounts: AccountStore) -> None:
        known = {org.name: org for org in (await accounts.accounts()).orgs}.get(name)
        if known is None and all(satellite.org != name for satellite in config.satellite):
            raise StoreConflict(f"there is no org {name!r} in the store or in {config_path}")
        at_us = now_us()
        created_us = at_us if known is None else known.created_us
        await accounts.put_org(StoredOrg(name, created_us, at_us), cut_at_us=at_us if cut else None)

    with_account_store(config, revoke)
    say_revoked(cut=cut)


def with_account_store(config: Config, use: Callable[[AccountStore], Awaitable[None]]) -> None:
    """Use the store that the configuration names, and close it. Raises StoreError."""

    trio.run(use_store, config.store, lambda stores: stores.accounts, use)
