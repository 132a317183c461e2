"""The text of `bentpipe.daemon.registry.launched` as tests, for every store of launched satellites."""

import dataclasses
from collections.abc import Callable

import pytest
import trio

from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.registry.launched import LaunchedSatellite, LaunchedStore, OrgFull, SatelliteChange

LaunchedStores = Callable[[str], LaunchedStore]
"""Opens the store of that name as another process would."""

CALLERS = 8


def one(name: str, *, org: str = "acme", at: int = 1, size: str = "large") -> LaunchedSatellite:
    return LaunchedSatellite(SatelliteKey(org, name), size, "linux/amd64", "ada", at)


class LaunchedContract:
    async def test_satellites_are_kept_until_they_are_removed(self, launched_stores: LaunchedStores) -> None:
        writer, reader = launched_stores("kept"), launched_stores("kept")
        assert await reader.satellites() == ()
        for each in (one("b"), one("a"), one("a", org="beta")):
            assert await writer.add(each, most=2) == each
        assert await reader.satellites() == (one("a"), one("b"), one("a", org="beta"))
        await writer.begin_removal(one("a"))
        leaving = dataclasses.replace(one("a"), removing=True)
        assert await reader.satellites() == (leaving, one("b"), one("a", org="beta"))
        assert await reader.add(one("a", at=7), most=5) == leaving, "its name is still taken"
        await reader.remove(one("a"))
        await reader.remove(one("a"))
        assert await writer.satellites() == (one("b"), one("a", org="beta"))
        await writer.aclose()
        await reader.aclose()

    async def test_a_satellite_is_changed_once(self, launched_stores: LaunchedStores) -> None:
        store, other = launched_stores("change"), launched_stores("change")
        first = await store.add(one("a"), most=1)
        assert await other.find(first.key) == first
        assert await other.find(SatelliteKey("acme", "b")) is None
        larger = SatelliteChange("huge", "linux/amd64", replace=False, at_us=5)
        changing = dataclasses.replace(first, change=larger)
        assert await store.begin_change(first, larger) == changing
        assert await store.begin_change(first, larger) == changing, "its answer was lost"
        another = SatelliteChange("small", "linux/arm64", replace=True, at_us=6)
        assert await other.begin_change(first, another) == changing, "one at a time"
        assert await other.satellites() == (changing,)
        assert await other.add(one("a", at=7), most=5) == changing
        assert not await other.end_change(changing, another, done=True)
        assert await store.end_change(changing, larger, done=True)
        assert not await other.end_change(changing, larger, done=True), "by one host"
        assert await store.satellites() == (changing.changed(),)
        assert changing.changed() == one("a", size="huge")
        assert await other.begin_change(first, another) == changing.changed(), "it is not what the caller knows"
        again = await other.begin_change(changing.changed(), another)
        assert again == dataclasses.replace(changing.changed(), change=another)
        assert await other.end_change(again, another, done=False)
        assert await store.satellites() == (changing.changed(),), "it stays what it was"

    async def test_a_removal_ends_a_change(self, launched_stores: LaunchedStores) -> None:
        store = launched_stores("end")
        change = SatelliteChange("huge", "linux/amd64", replace=True, at_us=5)
        first = await store.add(one("a"), most=1)
        await store.begin_change(first, change)
        await store.begin_removal(first)
        leaving = dataclasses.replace(first, removing=True)
        assert await store.satellites() == (leaving,)
        assert not await store.end_change(first, change, done=True)
        assert await store.begin_change(first, change) == leaving
        await store.remove(first)
        assert await store.begin_change(first, change) is None
        assert not await store.end_change(first, change, done=False)
        again = one("a", at=9)
        assert await store.add(again, most=1) == again
        assert await store.begin_change(first, change) == again, "another one has taken the name"

    async def test_of_all_who_begin_a_change_one_does(self, launched_stores: LaunchedStores) -> None:
        found: list[LaunchedSatellite | None] = []
        first = await launched_stores("begin").add(one("a"), most=1)

        async def begin(caller: int) -> None:
            change = SatelliteChange(f"s{caller}", "linux/amd64", replace=False, at_us=caller)
            found.append(await launched_stores("begin").begin_change(first, change))

        async with trio.open_nursery() as nursery:
            for caller in range(CALLERS):
                nursery.start_soon(begin, caller)
        assert len(set(found)) == 1
        assert await launched_stores("begin").satellites() == (found[0],)

    async def test_an_older_satellite_of_the_name_is_not_the_new_one(self, launched_stores: LaunchedStores) -> None:
        store = launched_stores("names")
        await store.add(one("a", at=1), most=1)
        await store.remove(one("a", at=1))
        again = one("a", at=2)
        assert await store.add(again, most=1) == again
        await store.begin_removal(one("a", at=1))
        await store.remove(one("a", at=1))
        assert await store.satellites() == (again,)

    async def test_of_all_who_add_one_name_one_does(self, launched_stores: LaunchedStores) -> None:
        found: list[LaunchedSatellite] = []

        async def add(caller: int) -> None:
            found.append(await launched_stores("race").add(one("a", at=caller, size=f"s{caller}"), most=1))

        async with trio.open_nursery() as nursery:
            for caller in range(CALLERS):
                nursery.start_soon(add, caller)
        assert len(set(found)) == 1
        assert await launched_stores("race").satellites() == (found[0],)

    async def test_no_org_gets_more_than_its_limit(self, launched_stores: LaunchedStores) -> None:
        full = 0

        async def add(caller: int) -> None:
            nonlocal full
            try:
                await launched_stores("limit").add(one(f"n{caller}"), most=3)
            except OrgFull:
                full += 1

        async with trio.open_nursery() as nursery:
            for caller in range(CALLERS):
                nursery.start_soon(add, caller)
        store = launched_stores("limit")
        kept = await store.satellites()
        assert (len(kept), full) == (3, CALLERS - 3)
        assert await store.add(kept[0], most=3) == kept[0], "one that is there needs no place"
        await store.add(one("a", org="beta"), most=1)
        await store.remove(kept[0])
        await store.add(one("new"), most=3)
        with pytest.raises(OrgFull):
            await store.add(one("more"), most=3)
