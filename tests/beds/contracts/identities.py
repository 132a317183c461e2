"""The text of `bentpipe.daemon.registry.identities` as tests, for every store of identities."""

from collections.abc import Callable

import trio

from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.registry.contract import Registry
from bentpipe.daemon.registry.identities import EnrolledMachine, ExpectedMachine, IdentityStore, StoredIdentity

IdentityStores = Callable[[str], tuple[IdentityStore, Registry]]
"""Opens the stores of that name as another process would."""

CALLERS = 8
KEY = SatelliteKey("acme", "one")
LAUNCH, TOKEN, CHOSEN = "a" * 64, "b" * 64, "c" * 64


def row(version: int, key: SatelliteKey = KEY, *, at: int = 7) -> StoredIdentity:
    expected = ExpectedMachine(LAUNCH, 3, (TOKEN,), at)
    return StoredIdentity(key, version, expected, EnrolledMachine(LAUNCH, 3, CHOSEN, None, at) if version > 1 else None)


class IdentityContract:
    async def test_rows_are_kept_as_they_were_put(self, identity_stores: IdentityStores) -> None:
        (writer, _), (reader, _) = identity_stores("kept"), identity_stores("kept")
        other = SatelliteKey("acme", "another")
        assert await reader.identities() == ()
        assert await reader.identity(KEY) is None
        assert await writer.put(row(1))
        assert await writer.put(row(1, other))
        assert await writer.put(row(2))
        assert await reader.identities() == (row(1, other), row(2))
        assert await reader.identity(KEY) == row(2)
        await writer.aclose()
        await reader.aclose()

    async def test_a_row_that_has_changed_meanwhile_stays(self, identity_stores: IdentityStores) -> None:
        store, _ = identity_stores("changed")
        assert await store.put(row(1))
        assert not await store.put(row(1, at=8)), "another host has made the row"
        assert not await store.put(row(3)), "its second version was never there"
        assert await store.put(row(2))
        assert not await store.put(row(2, at=8))
        assert await store.identity(KEY) == row(2)
        await store.aclose()

    async def test_one_of_many_changes_the_row(self, identity_stores: IdentityStores) -> None:
        stores = [identity_stores("crowd")[0] for _ in range(CALLERS)]
        for version in (1, 2, 3):
            won: list[int] = []

            async def put(number: int, version: int = version, won: list[int] = won) -> None:
                if await stores[number].put(row(version, at=number)):
                    won.append(number)

            async with trio.open_nursery() as nursery:
                for number in range(CALLERS):
                    nursery.start_soon(put, number)
            assert len(won) == 1
            assert await stores[0].identity(KEY) == row(version, at=won[0])
        for store in stores:
            await store.aclose()

    async def test_a_forgotten_satellite_has_no_machine(self, identity_stores: IdentityStores) -> None:
        store, registry = identity_stores("forgotten")
        other = SatelliteKey("acme", "another")
        assert await store.put(row(1))
        assert await store.put(row(1, other))
        await registry.forget(KEY, generation=0)
        assert await store.identities() == (row(1, other),)
        assert not await store.put(row(2))
        assert await store.put(row(1, at=9))
        await store.aclose()
        await registry.aclose()
