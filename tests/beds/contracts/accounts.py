"""The text of `bentpipe.daemon.registry.accounts` as tests, for every store of accounts."""

from collections.abc import Callable

import trio

from bentpipe.daemon.accounts.signing_key import new_key
from bentpipe.daemon.registry.accounts import AccountStore, StoredAccounts, StoredKey, StoredOrg, StoredRevocation
from bentpipe.daemon.registry.contract import Registry, StoredCut

AccountStores = Callable[[str], tuple[AccountStore, Registry]]
"""Opens the store of that name as another process would, and the registry beside it."""

CALLERS = 8
NOW_US = 1_800_000_000_000_000


def key(until_us: int) -> StoredKey:
    made = new_key()
    return StoredKey(made.key_id, made.public_pem, until_us)


class AccountsContract:
    async def test_orgs_keys_and_revocations_are_kept(self, account_stores: AccountStores) -> None:
        writer, reader = account_stores("rows")[0], account_stores("rows")[0]
        assert await reader.accounts() == StoredAccounts()
        keys = sorted((key(NOW_US), key(NOW_US + 1)))
        for each in keys:
            await writer.put_key(each)
        await writer.put_org(StoredOrg("beta", 2))
        await writer.put_org(StoredOrg("acme", 1))
        await writer.put_org(StoredOrg("acme", 1, revoked_us=9))
        await writer.put_revocation(StoredRevocation("rule:main", 5, None))
        await writer.put_revocation(StoredRevocation("exchange:0a", 6, NOW_US))
        assert await reader.accounts() == StoredAccounts(
            (StoredOrg("acme", 1, 9), StoredOrg("beta", 2)),
            tuple(keys),
            (StoredRevocation("exchange:0a", 6, NOW_US), StoredRevocation("rule:main", 5, None)),
        )
        await writer.put_key(StoredKey(keys[0].key_id, keys[0].public_pem, NOW_US + 7))
        await writer.put_org(StoredOrg("acme", 1))
        found = await reader.accounts()
        assert (found.keys[0].until_us, found.orgs[0]) == (NOW_US + 7, StoredOrg("acme", 1))
        await writer.aclose()
        await reader.aclose()

    async def test_what_has_ended_is_deleted(self, account_stores: AccountStores) -> None:
        store, _ = account_stores("ended")
        past, lasting = key(NOW_US - 1), key(NOW_US + 1)
        for each in (past, lasting):
            await store.put_key(each)
        await store.put_org(StoredOrg("acme", 1, 2))
        for revocation in (("rule:open", None), ("rule:past", NOW_US - 1), ("exchange:1", NOW_US + 1)):
            await store.put_revocation(StoredRevocation(revocation[0], 1, revocation[1]))
        assert await store.use_once("old", until_us=NOW_US - 1)
        assert await store.use_once("new", until_us=NOW_US + 1)
        await store.forget_ended(now_us=NOW_US)
        found = await store.accounts()
        assert found.orgs == (StoredOrg("acme", 1, 2),)
        assert found.keys == (lasting,)
        assert [each.subject for each in found.revocations] == ["exchange:1", "rule:open"]
        assert await store.use_once("old", until_us=NOW_US)
        assert not await store.use_once("new", until_us=NOW_US)
        await store.aclose()

    async def test_of_all_who_use_an_id_one_is_the_first(self, account_stores: AccountStores) -> None:
        opened = [account_stores("once")[0] for _ in range(CALLERS)]
        await opened[0].accounts()
        first: list[int] = []

        async def use(number: int) -> None:
            if await opened[number].use_once("id", until_us=NOW_US):
                first.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(CALLERS):
                nursery.start_soon(use, number)
        assert len(first) == 1
        assert not await opened[0].use_once("id", until_us=NOW_US + 1)
        for store in opened:
            await store.aclose()

    async def test_a_cut_is_noted_with_its_revocation(self, account_stores: AccountStores) -> None:
        store, registry = account_stores("cuts")
        await store.put_org(StoredOrg("acme", 1, 5))
        assert await registry.cuts() == ()
        await store.put_org(StoredOrg("acme", 1, 5), cut_at_us=5)
        await store.put_revocation(StoredRevocation("rule:main", 6, None), cut_at_us=6)
        assert await registry.cuts() == (StoredCut("org:acme", 5), StoredCut("rule:main", 6))
        await store.aclose()
        await registry.aclose()
