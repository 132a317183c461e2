"""The text of `bentpipe.daemon.registry.registered` as tests, for every store of registered satellites."""

import dataclasses
from collections.abc import Callable

import pytest
import trio

from beds.contracts.launched import one as launched
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.registry.launched import LaunchedStore
from bentpipe.daemon.registry.registered import (
    AddressTaken,
    NameTaken,
    RegisteredElsewhere,
    RegisteredSatellite,
    RegisteredStore,
    RegistrationsFull,
    RegistrationWish,
)

RegisteredStores = Callable[[str], tuple[RegisteredStore, LaunchedStore]]
"""Opens the stores of that name as another process would."""

CALLERS = 8
OFFLINE_BEFORE_US = 100


def one(
    name: str, host: int = 1, *, org: str = "acme", token: str = "t", at: int = 200, ca: str = ""
) -> RegisteredSatellite:
    address = Address(f"10.0.0.{host}", 8372)
    return RegisteredSatellite(SatelliteKey(org, name), address, "linux/arm64", "v1", ca, "ada", token, at, at)


def wish(satellite: RegisteredSatellite, shown: str = "", *, most: int = 9) -> RegistrationWish:
    return RegistrationWish(satellite, shown, OFFLINE_BEFORE_US, most)


class RegisteredContract:
    async def test_satellites_are_kept_until_they_are_removed(self, registered_stores: RegisteredStores) -> None:
        (writer, _), (reader, _) = registered_stores("kept"), registered_stores("kept")
        assert await reader.satellites() == ()
        first = [one("b", 2), one("a", 1, ca="PEM"), one("a", 3, org="beta")]
        for each in first:
            assert await writer.register(wish(each)) == each
        assert await reader.satellites() == (first[1], first[0], first[2])
        assert await reader.beat(first[0], 300)
        assert await writer.satellites() == (first[1], dataclasses.replace(first[0], beat_us=300), first[2])
        await reader.remove(first[1])
        await reader.remove(first[1])
        assert not await reader.beat(first[1], 400), "a heartbeat brings nothing back that was removed"
        assert [each.key for each in await writer.satellites()] == [first[0].key, first[2].key]

    async def test_who_may_take_a_name(self, registered_stores: RegisteredStores) -> None:
        store, _ = registered_stores("names")
        first = await store.register(wish(one("a", 1, token="t1", at=200)))
        with pytest.raises(RegisteredElsewhere):
            await store.register(wish(one("a", 2, token="t2", at=210)))
        with pytest.raises(RegisteredElsewhere):
            await store.register(wish(one("a", 2, token="t2", at=210), shown="other"))
        moved = await store.register(wish(one("a", 2, token="t2", at=220), shown="t1"))
        assert (moved.address.host, moved.created_us, moved.beat_us) == ("10.0.0.2", first.created_us, 220)
        again = await store.register(wish(one("a", 2, token="t3", at=230)))
        assert again.token_hash == "t3", (
            "from its own address it needs no token: its answer was lost, or it has restarted"
        )
        assert not await store.beat(moved, 240), "the older token counts for nothing"
        await store.remove(moved)
        assert await store.satellites() == (again,)
        late = RegistrationWish(one("a", 3, token="t4", at=999), "", 999, 9)
        assert (await store.register(late)).address.host == "10.0.0.3", "it was offline"

    async def test_who_may_take_an_address(self, registered_stores: RegisteredStores) -> None:
        store, _ = registered_stores("addresses")
        await store.register(wish(one("a", 1, token="t1")))
        for newcomer in (one("b", 1, token="t2"), one("a", 1, org="beta", token="t3")):
            with pytest.raises(AddressTaken):
                await store.register(wish(newcomer))
        await store.beat(one("a", 1, token="t1"), 50)
        new = one("a", 1, org="beta", token="t3")
        assert await store.register(wish(new)) == new
        assert await store.satellites() == (new,), "the one that was offline there is deregistered"

    async def test_a_name_is_either_launched_or_registered(self, registered_stores: RegisteredStores) -> None:
        store, launches = registered_stores("kinds")
        await launches.add(launched("a"), most=9)
        with pytest.raises(NameTaken):
            await store.register(wish(one("a")))
        await store.register(wish(one("b")))
        with pytest.raises(NameTaken):
            await launches.add(launched("b"), most=9)
        await launches.remove(launched("a"))
        await store.register(wish(one("a", 5)))

    async def test_of_all_who_want_a_name_and_an_address_one_succeeds(
        self, registered_stores: RegisteredStores
    ) -> None:
        lost: list[Exception] = []

        async def register(caller: int) -> None:
            name, host = ("same", caller + 1) if caller % 2 else (f"n{caller}", 100)
            try:
                await registered_stores("race")[0].register(wish(one(name, host, token=f"t{caller}")))
            except (RegisteredElsewhere, AddressTaken) as exc:
                lost.append(exc)

        async with trio.open_nursery() as nursery:
            for caller in range(CALLERS):
                nursery.start_soon(register, caller)
        assert len(await registered_stores("race")[0].satellites()) == 2
        assert len(lost) == CALLERS - 2

    async def test_launches_and_registrations_race_for_a_name(self, registered_stores: RegisteredStores) -> None:
        done: list[str] = []

        async def launch() -> None:
            try:
                await registered_stores("mixed")[1].add(launched("a"), most=9)
                done.append("launched")
            except NameTaken:
                pass

        async def register() -> None:
            try:
                await registered_stores("mixed")[0].register(wish(one("a")))
                done.append("registered")
            except NameTaken:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(launch)
            nursery.start_soon(register)
        assert len(done) == 1

    async def test_no_org_gets_more_than_its_limit(self, registered_stores: RegisteredStores) -> None:
        full = 0

        async def register(caller: int) -> None:
            nonlocal full
            try:
                await registered_stores("limit")[0].register(wish(one(f"n{caller}", caller + 1), most=3))
            except RegistrationsFull:
                full += 1

        async with trio.open_nursery() as nursery:
            for caller in range(CALLERS):
                nursery.start_soon(register, caller)
        store, _ = registered_stores("limit")
        kept = await store.satellites()
        assert (len(kept), full) == (3, CALLERS - 3)
        assert await store.register(wish(kept[0], most=3)) == kept[0], "one that is there needs no place"
        await store.register(wish(one("a", 90, org="beta"), most=1))
