"""The key that signs sessions: read, made, replaced; and that hosts know each other's keys before they are used."""

import logging
import os
import stat
import time
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from bentpipe.daemon.accounts import key_keeper
from bentpipe.daemon.accounts.key_keeper import KEPT_S, LEAD_S, LOOK_S, PUBLISH_S, ROTATE_S, KeyKeeper
from bentpipe.daemon.accounts.principal import Origin
from bentpipe.daemon.accounts.sessions import Sessions, TokenPurpose
from bentpipe.daemon.accounts.signing_key import SigningKeyError, keep_key, new_key, read_key
from bentpipe.daemon.errors import StoreError, TokensUnknown
from bentpipe.daemon.registry.accounts import StoredAccounts, StoredKey, StoredOrg, StoredRevocation

ORIGIN = Origin("token:x")


class Shelf:
    """A store of accounts in memory, for keys."""

    def __init__(self) -> None:
        self.keys: dict[str, StoredKey] = {}
        self.failing = False
        self.published = self.refused = 0

    async def accounts(self) -> StoredAccounts:
        return StoredAccounts(keys=tuple(self.keys.values()))

    async def put_key(self, key: StoredKey) -> None:
        if self.failing:
            self.refused += 1
            raise StoreError("the store fails")
        self.published += 1
        self.keys[key.key_id] = key

    async def forget_ended(self, *, now_us: int) -> None:
        self.keys = {name: key for name, key in self.keys.items() if key.until_us >= now_us}

    async def put_org(self, org: StoredOrg, *, cut_at_us: int | None = None) -> None:
        raise NotImplementedError

    async def put_revocation(self, revocation: StoredRevocation, *, cut_at_us: int | None = None) -> None:
        raise NotImplementedError

    async def use_once(self, used_id: str, *, until_us: int) -> bool:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


class Host:
    """A keeper and its sessions, by the clock of the test."""

    def __init__(
        self, shelf: Shelf | None, *, kept: Path | None = None, configured: Path | None = None, lead_s: float = 0
    ):
        self.shelf = shelf
        self.sessions = Sessions("f", self.now)
        self.keeper = KeyKeeper(self.sessions, shelf, configured=configured, kept=kept, lead_s=lead_s, now=self.now)

    def now(self) -> float:
        return time.time()

    def signs(self) -> bool:
        try:
            self.sessions.issue(TokenPurpose.SESSION, ORIGIN, self.now() + 60)
        except TokensUnknown:
            return False
        return True

    def token(self) -> str:
        return self.sessions.issue(TokenPurpose.SESSION, ORIGIN, self.now() + 3600).token


async def until_signing(host: Host) -> None:
    with trio.fail_after(60):
        while not host.signs():
            await trio.sleep(0.01)


async def test_a_key_is_made_once_and_kept_for_its_owner_alone(tmp_path: Path) -> None:
    kept = tmp_path / "state" / "key.pem"
    tokens = []
    for _ in range(2):
        host = Host(None, kept=kept)
        async with trio.open_nursery() as life:
            life.start_soon(host.keeper.run_keeper)
            await until_signing(host)
            tokens.append(host.token())
            assert host.sessions.check(tokens[0], b"first").origin == ORIGIN
            life.cancel_scope.cancel()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [path.name for path in kept.parent.iterdir()] == ["key.pem"]


async def test_without_a_place_for_it_the_key_is_in_memory_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = Host(None)
    async with trio.open_nursery() as life:
        life.start_soon(host.keeper.run_keeper)
        await until_signing(host)
        life.cancel_scope.cancel()
    assert "a restart ends every session" in caplog.text


async def test_a_new_key_signs_when_every_host_has_read_it(tmp_path: Path) -> None:
    shelf = Shelf()
    host = Host(shelf, kept=tmp_path / "key.pem", lead_s=0.3)
    began = trio.current_time()
    async with trio.open_nursery() as life:
        life.start_soon(host.keeper.run_keeper)
        while not shelf.keys:
            await trio.sleep(0.01)
        assert not host.signs()
        await until_signing(host)
        assert trio.current_time() - began >= 0.3
        life.cancel_scope.cancel()
    # The next start finds it published, and waits for nothing.
    again = Host(shelf, kept=tmp_path / "key.pem", lead_s=1000)
    async with trio.open_nursery() as life:
        life.start_soon(again.keeper.run_keeper)
        await until_signing(again)
        life.cancel_scope.cancel()


async def test_a_key_that_no_host_trusts_any_more_is_a_new_one(tmp_path: Path) -> None:
    key = new_key()
    keep_key(tmp_path / "key.pem", key)
    shelf = Shelf()
    shelf.keys[key.key_id] = StoredKey(key.key_id, key.public_pem, int((time.time() - 1) * 1e6))
    host = Host(shelf, kept=tmp_path / "key.pem", lead_s=0.3)
    began = trio.current_time()
    async with trio.open_nursery() as life:
        life.start_soon(host.keeper.run_keeper)
        await host.keeper.wait_signing()
        life.cancel_scope.cancel()
    assert trio.current_time() - began >= 0.3


async def test_an_old_key_is_replaced_and_what_it_signed_stays_valid(tmp_path: Path) -> None:
    shelf, kept = Shelf(), tmp_path / "key.pem"
    host, other = Host(shelf, kept=kept), Host(shelf)
    async with trio.open_nursery() as life:
        life.start_soon(host.keeper.run_keeper)
        await until_signing(host)
        token = host.token()
        old = time.time() - ROTATE_S - 1
        os.utime(kept, (old, old))
        await host.keeper._look()
        new = host.token()
        life.cancel_scope.cancel()
    assert len(shelf.keys) == 2
    other.sessions.trust(shelf.keys.values())
    host.sessions.trust(shelf.keys.values())
    for number, each in enumerate((token, new)):
        for sessions in (host.sessions, other.sessions):
            assert sessions.check(each, str(number).encode()).origin == ORIGIN


async def test_a_configured_key_that_was_replaced_is_taken(tmp_path: Path) -> None:
    path, first, second = tmp_path / "key.pem", new_key(), new_key()
    keep_key(path, first)
    host = Host(Shelf(), configured=path)
    await host.keeper._look()
    assert host.sessions._signing is not None
    assert host.sessions._signing.key_id == first.key_id
    keep_key(path, second)
    await host.keeper._look()
    assert host.sessions._signing.key_id == second.key_id
    path.write_text("nonsense")
    with pytest.raises(SigningKeyError):
        await host.keeper._look()
    assert host.sessions._signing.key_id == second.key_id


async def test_a_key_is_published_again_before_its_row_ends() -> None:
    assert KEPT_S - PUBLISH_S - LOOK_S >= 24 * 3600
    assert LEAD_S > 2
    shelf, clock = Shelf(), [0.0]
    sessions = Sessions("f", lambda: clock[0])
    keeper = KeyKeeper(sessions, shelf, configured=None, kept=None, lead_s=0, now=lambda: clock[0])
    for now in range(0, 4 * int(PUBLISH_S), int(PUBLISH_S) // 2):
        clock[0] = float(now)
        await keeper._look()
        (row,) = shelf.keys.values()
        assert row.until_us / 1e6 >= now + 24 * 3600
    assert shelf.published == 4


@pytest.mark.parametrize("lead_s", [0.0, 0.01])
async def test_while_the_store_fails_only_a_host_of_its_own_signs_and_it_is_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, lead_s: float
) -> None:
    monkeypatch.setattr(key_keeper, "RETRY_S", 0.01)
    shelf = Shelf()
    shelf.failing = True
    host = Host(shelf, lead_s=lead_s)
    async with trio.open_nursery() as life:
        life.start_soon(host.keeper.run_keeper)
        with trio.fail_after(60):
            while shelf.refused < 3:
                await trio.sleep(0.01)
        assert host.signs() is (not lead_s)
        assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]
        shelf.failing = False
        await host.keeper.wait_signing()
        while not shelf.keys:
            await trio.sleep(0.01)
        assert host.signs()
        life.cancel_scope.cancel()


@pytest.mark.parametrize("wrong", ["missing", "nonsense", "rsa", "p384", "password", "public"])
def test_what_is_not_a_key_is_refused_with_its_path(wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    plain = serialization.NoEncryption()
    p256 = ec.generate_private_key(ec.SECP256R1())
    text = {
        "nonsense": b"-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n",
        "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(*form, plain),
        "p384": ec.generate_private_key(ec.SECP384R1()).private_bytes(*form, plain),
        "password": p256.private_bytes(*form, serialization.BestAvailableEncryption(b"x")),
        "public": new_key().public_pem.encode(),
    }.get(wrong)
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(SigningKeyError, match=r"key\.pem"):
        read_key(path)
