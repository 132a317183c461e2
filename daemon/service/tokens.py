"""Tokens of the store: the commands that write them, and the task that brings them to a running daemon."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import click
import trio

from bentpipe.config.accounts import TokenSection
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.registry.accounts import AccountStore
from bentpipe.daemon.registry.contract import Registry, StoreConflict, StoredCut, StoredToken
from bentpipe.daemon.service.installed import load_operators_config
from bentpipe.daemon.service.stores import use_store
from bentpipe.daemon.service.token import hash_token, new_token
from bentpipe.daemon.tasks import Owner, run_owned

log = logging.getLogger("bentpipe.store")

TOKEN_REFRESH_S = 2.0
"""Time between looks at the store's tokens. For this long a new token may be refused, and a revoked one accepted."""

FIRST_LOOK_S = 5.0
"""How long the start waits for the store's tokens. Then only the configuration's tokens are accepted until it answers."""
CLOSE_DEADLINE_S = 5.0
"""The longest time for closing the registry at the end."""


async def run_token_refresh(
    registry: Registry,
    accounts: AccountStore,
    admission: Admission,
    cut: Callable[[str], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep the admission's table like the store's. It counts as started after the first look, or after FIRST_LOOK_S.

    While the store fails, the tokens that were last known are accepted. A missing first look is made up for. `cut` gets the
    names of tokens that were revoked together with their connections.
    """
    admission.expect_stored()
    looked = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_owned, Owner("token refresh"), _refresh, registry, accounts, admission, cut, looked)
            with trio.move_on_after(FIRST_LOOK_S) as first:
                await looked.wait()
            if first.cancelled_caught:
                log.error("tokens of the store are not known yet", extra={"fields": {"waited_s": FIRST_LOOK_S}})
            task_status.started()
    finally:
        with trio.move_on_after(CLOSE_DEADLINE_S, shield=True):
            await registry.aclose()


async def _refresh(
    registry: Registry, accounts: AccountStore, admission: Admission, cut: Callable[[str], None], looked: trio.Event
) -> None:
    failing = ""
    done: frozenset[StoredCut] | None = None
    while True:
        try:
            # In this order: if the cut of a token is known, its revocation is known too, and no client comes back with it.
            cuts = frozenset(await registry.cuts())
            admission.replace_stored(await registry.tokens(), await accounts.accounts())
            # Tokens that were cut before this daemon knew any token of the store have no connections here.
            for each in sorted(cuts - (cuts if done is None else done)):
                cut(each.name)
            done = cuts
        except StoreError as exc:
            if str(exc) != failing:
                log.error("tokens cannot be read", extra={"fields": {"error": str(exc)}})
            failing = str(exc)
            admission.store_fails = True
        else:
            admission.store_fails = False
            if failing:
                log.warning("tokens can be read again")
            failing = ""
        looked.set()
        await trio.sleep(TOKEN_REFRESH_S)


@dataclasses.dataclass(frozen=True, slots=True)
class TokenWish:
    """What the operator asks a new token to be."""

    name: str
    grants: tuple[str, ...]
    scopes: tuple[str, ...]
    principal: str | None
    expires_s: float | None
    """From now on; None: never."""


def run_token_add(config_path: Path, wish: TokenWish) -> None:
    """Make a token, keep its hash in the store and print it. Raises ConfigErrors, StoreError, pydantic's errors."""
    config = load_operators_config(config_path, check_files=False)
    made = new_token()
    asked = {"name": wish.name, "hash": hash_token(made), "grants": wish.grants, "principal": wish.principal}
    section = TokenSection.model_validate({**asked, "scopes": wish.scopes})
    name = section.name
    if any(token.name == name for token in config.token):
        raise StoreConflict(f"there is a token {name!r} already, in {config_path}")
    at_us = now_us()
    stored = StoredToken(
        section.name,
        section.hash,
        section.grants,
        at_us,
        section.scopes,
        section.principal,
        None if wish.expires_s is None else at_us + int(wish.expires_s * 1e6),
    )

    async def add(registry: Registry) -> None:
        await registry.add_token(stored)

    trio.run(use_store, config.store, lambda stores: stores.registry, add)
    click.echo(f"token (shown once; give it to the client as satellite_token):\n  {made}")


def run_token_list(config_path: Path) -> None:
    """Print every token's name, source, grants, scopes, end and principal. Raises ConfigErrors, StoreError."""
    config = load_operators_config(config_path, check_files=False)
    stored: tuple[StoredToken, ...] = ()

    async def read(registry: Registry) -> None:
        nonlocal stored
        stored = await registry.tokens()

    trio.run(use_store, config.store, lambda stores: stores.registry, read)
    for token in config.token:
        expires_at = token.expires.timestamp() if token.expires is not None else None
        _print_token(token.name, "configuration", token.grants, token.scopes, expires_at, token.principal)
    for each in stored:
        expires_at = None if each.expires_us is None else each.expires_us / 1e6
        _print_token(each.name, "store", each.grants, each.scopes, expires_at, each.principal)


def _print_token(
    name: str,
    source: str,
    grants: tuple[str, ...],
    scopes: tuple[str, ...],
    expires_at: float | None,
    principal: str | None,
) -> None:
    expires = "never" if expires_at is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires_at))
    click.echo("\t".join((name, source, json.dumps(grants), "+".join(scopes), expires, principal or name)))


def run_token_revoke(config_path: Path, name: str, *, cut: bool) -> None:
    """Forget a token of the store. Raises ConfigErrors, StoreError."""
    config = load_operators_config(config_path, check_files=False)

    async def revoke(registry: Registry) -> None:
        if not await registry.revoke_token(name, cut_at_us=now_us() if cut else None):
            where = f"; it is in {config_path}" if any(token.name == name for token in config.token) else ""
            raise StoreConflict(f"the store has no token {name!r}{where}")

    trio.run(use_store, config.store, lambda stores: stores.registry, revoke)
    say_revoked(cut=cut)


def say_revoked(*, cut: bool) -> None:
    """Tell the operator when a revocation takes effect."""
    also = " and cut its connections" if cut else ""
    click.echo(f"revoked; running daemons refuse it{also} within {TOKEN_REFRESH_S:g} s")


def now_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000
