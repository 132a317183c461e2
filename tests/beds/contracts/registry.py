"""The text of `bentpipe.daemon.registry.contract` as tests, for every registry.

A test module subclasses `RegistryContract` and gives a fixture `registries`: `registries(name)` opens the registry of
that name as another process would; the same name twice is the same registry.
"""

from collections.abc import Callable

import pytest
import trio

from beds.contracts.ledger import A, B
from bentpipe.daemon.model import MachineId
from bentpipe.daemon.registry.contract import (
    CUT_KEPT_S,
    Registry,
    StoreConflict,
    StoredAttempt,
    StoredCut,
    StoredSatellite,
    StoredToken,
)

Registries = Callable[[str], Registry]

ONE = StoredToken("ci", "sha256:" + "1" * 64, ("acme/*", "acme/x"), 1_700_000_000_000_000)
TWO = StoredToken("dev", "sha256:" + "2" * 64, ("acme/b-*",), 1_700_000_000_000_001)
WANTERS = 8


class RegistryContract:
    async def test_tokens_are_added_listed_and_revoked(self, registries: Registries) -> None:
        writer, reader = registries("tokens"), registries("tokens")
        assert await reader.tokens() == ()
        await writer.add_token(TWO)
        await writer.add_token(ONE)
        assert await reader.tokens() == (ONE, TWO)
        assert await writer.revoke_token("ci")
        assert not await writer.revoke_token("ci")
        assert await reader.tokens() == (TWO,)
        await writer.add_token(ONE)
        assert await reader.tokens() == (ONE, TWO)
        await writer.aclose()
        await reader.aclose()

    async def test_a_cut_is_noted_with_its_revocation(self, registries: Registries) -> None:
        writer, reader = registries("cuts"), registries("cuts")
        await writer.add_token(ONE)
        await writer.add_token(TWO)
        day_us = int(CUT_KEPT_S * 1e6)
        assert not await writer.revoke_token("nobody", cut_at_us=1)
        assert await writer.revoke_token(TWO.name)
        assert await reader.cuts() == ()
        assert await writer.revoke_token(ONE.name, cut_at_us=5)
        assert (await reader.tokens(), await reader.cuts()) == ((), (StoredCut(ONE.name, 5),))
        for token, at_us in ((ONE, 6), (TWO, day_us + 6)):
            await writer.add_token(token)
            assert await writer.revoke_token(token.name, cut_at_us=at_us)
        assert await reader.cuts() == (StoredCut(ONE.name, 6), StoredCut(TWO.name, day_us + 6))
        await writer.add_token(TWO)
        assert await writer.revoke_token(TWO.name, cut_at_us=day_us + 7)
        assert await reader.cuts() == (StoredCut(TWO.name, day_us + 7),)
        await writer.aclose()
        await reader.aclose()

    async def test_a_name_and_a_hash_are_there_once(self, registries: Registries) -> None:
        registry = registries("once")
        await registry.add_token(ONE)
        for other in (
            StoredToken(ONE.name, TWO.token_hash, TWO.grants, 1),
            StoredToken(TWO.name, ONE.token_hash, TWO.grants, 1),
            ONE,
        ):
            with pytest.raises(StoreConflict):
                await registry.add_token(other)
        assert await registry.tokens() == (ONE,)
        await registry.aclose()

    async def test_of_many_who_add_the_same_name_one_does(self, registries: Registries) -> None:
        opened = [registries("race") for _ in range(WANTERS)]
        refused = 0

        async def add(number: int) -> None:
            nonlocal refused
            try:
                await opened[number].add_token(StoredToken("ci", f"sha256:{number:064x}", ("acme/*",), number))
            except StoreConflict:
                refused += 1

        await opened[0].tokens()
        async with trio.open_nursery() as nursery:
            for number in range(WANTERS):
                nursery.start_soon(add, number)
        assert refused == WANTERS - 1
        assert len(await opened[0].tokens()) == 1
        for registry in opened:
            await registry.aclose()

    async def test_a_machines_life(self, registries: Registries) -> None:
        registry = registries("life")
        first = await registry.begin_generation(A, after=0, owner="ci", at_us=5)
        assert first == StoredSatellite(A, "ci", 1, None, 5)
        assert await registry.begin_generation(A, after=0, owner="other", at_us=6) == first
        await registry.set_machine(A, 1, MachineId("i-1"))
        await registry.begin_generation(B, after=0, owner="", at_us=7)
        assert await registry.satellites() == (
            StoredSatellite(A, "ci", 1, MachineId("i-1"), 5),
            StoredSatellite(B, "", 1, None, 7),
        )
        second = await registry.begin_generation(A, after=1, owner="ci", at_us=8)
        assert second == StoredSatellite(A, "ci", 2, None, 8)
        with pytest.raises(StoreConflict):
            await registry.set_machine(A, 1, MachineId("i-1"))
        await registry.forget(A, generation=1)  # by a host that was late
        assert [each.key for each in await registry.satellites()] == [A, B]
        await registry.set_machine(A, 2, MachineId("i-2"))
        await registry.forget(A, generation=2)
        assert [each.key for each in await registry.satellites()] == [B]
        with pytest.raises(StoreConflict):
            await registry.set_machine(A, 2, MachineId("i-2"))
        assert (await registry.begin_generation(A, after=0, owner="", at_us=9)).generation == 3
        assert (await registry.begin_generation(A, after=0, owner="", at_us=9)).generation == 3
        await registry.aclose()

    async def test_of_one_generation_one_attempt_at_most_is_open(self, registries: Registries) -> None:
        one, other = registries("attempts"), registries("attempts")
        await one.begin_generation(A, after=0, owner="", at_us=1)
        await one.begin_generation(B, after=0, owner="", at_us=1)
        first, second = StoredAttempt("c7g.xlarge in eu-central-1a", 5), StoredAttempt("", 6)
        await one.set_attempt(A, 1, after=None, attempt=first)
        assert [each.attempt for each in await other.satellites()] == [first, None]
        await one.set_attempt(A, 1, after=None, attempt=first)  # its answer was lost
        for stale in (None, second):
            with pytest.raises(StoreConflict):
                await other.set_attempt(A, 1, after=stale, attempt=StoredAttempt("third", 7))
        await other.set_attempt(A, 1, after=first, attempt=second)
        assert [each.attempt for each in await one.satellites()] == [second, None]
        with pytest.raises(StoreConflict):
            await one.set_attempt(A, 1, after=first, attempt=None)
        await other.set_attempt(A, 1, after=second, attempt=None)
        await other.set_attempt(A, 1, after=second, attempt=None)
        assert [each.attempt for each in await one.satellites()] == [None, None]
        await one.set_attempt(A, 1, after=None, attempt=first)
        assert (await one.begin_generation(A, after=1, owner="", at_us=8)).attempt is None
        for generation in (1, 3):
            with pytest.raises(StoreConflict):
                await one.set_attempt(A, generation, after=None, attempt=first)
        await one.set_attempt(A, 2, after=None, attempt=second)
        await one.forget(A, generation=2)
        with pytest.raises(StoreConflict):
            await one.set_attempt(A, 2, after=second, attempt=None)
        assert (await one.begin_generation(A, after=0, owner="", at_us=9)).attempt is None
        await one.aclose()
        await other.aclose()

    async def test_of_many_who_want_the_next_generation_all_get_the_same(self, registries: Registries) -> None:
        opened = [registries("next") for _ in range(WANTERS)]
        await opened[0].begin_generation(A, after=0, owner="", at_us=1)
        found: list[StoredSatellite] = []

        async def want(number: int) -> None:
            found.append(await opened[number].begin_generation(A, after=1, owner=str(number), at_us=number))

        async with trio.open_nursery() as nursery:
            for number in range(WANTERS):
                nursery.start_soon(want, number)
        assert len(set(found)) == 1
        assert found[0].generation == 2
        for registry in opened:
            await registry.aclose()
