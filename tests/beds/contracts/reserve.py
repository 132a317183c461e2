"""The text of `bentpipe.daemon.registry.reserve` as tests, for every store of the reserve."""

import dataclasses
from collections.abc import Callable

import trio

from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.registry.reserve import ReservePlace, ReserveStore, SpareState, StoredSpare, Taker

ReserveStores = Callable[[str], ReserveStore]
"""Opens the store of that name as another process would."""

CALLERS = 8
PLACE = ReservePlace("small", "linux/amd64", 0)
TAKER = Taker(SatelliteKey("acme", "one"), 3, 7)


def spare(place: ReservePlace = PLACE, letter: str = "a") -> StoredSpare:
    return StoredSpare(place, letter * 32, 1, SpareState.FILLING, "digest", 5)


class ReserveContract:
    async def test_rows_are_kept_as_they_were_put(self, reserve_stores: ReserveStores) -> None:
        writer, reader = reserve_stores("kept"), reserve_stores("kept")
        assert await reader.spares() == ()
        rows = [spare(ReservePlace("small", platform, number), letter) for platform, number, letter in
                (("linux/amd64", 0, "a"), ("linux/amd64", 11, "b"), ("linux/arm64", 2, "c"))]  # fmt: skip
        for row in rows:
            assert await writer.put(row)
        assert await reader.spares() == tuple(rows)
        changed = dataclasses.replace(
            rows[1].changed(SpareState.TAKEN, "words"), instance="i-1", failures=2, again_us=9, taker=TAKER
        )
        assert await writer.put(changed)
        assert await reader.spares() == (rows[0], changed, rows[2])
        assert await reader.ids() == {each.spare for each in rows}
        assert await writer.remove(changed)
        assert await reader.spares() == (rows[0], rows[2])
        await writer.aclose()
        await reader.aclose()

    async def test_a_row_that_has_changed_meanwhile_stays(self, reserve_stores: ReserveStores) -> None:
        store = reserve_stores("changed")
        first = spare()
        assert await store.put(first)
        assert not await store.put(spare(letter="b")), "the place is taken"
        ready = first.changed(SpareState.READY)
        assert await store.put(ready)
        assert not await store.put(first.changed(SpareState.DOOMED))
        assert not await store.remove(first)
        assert await store.spares() == (ready,)
        await store.aclose()

    async def test_the_next_machine_of_a_place_is_another(self, reserve_stores: ReserveStores) -> None:
        store = reserve_stores("next")
        first = spare()
        assert await store.put(first)
        assert await store.remove(first)
        successor = spare(letter="b")
        assert await store.put(successor)
        assert not await store.put(first.changed(SpareState.READY)), "of the machine before"
        assert not await store.remove(first)
        assert await store.spares() == (successor,)
        await store.aclose()

    async def test_one_of_many_takes_a_machine(self, reserve_stores: ReserveStores) -> None:
        stores = [reserve_stores("crowd") for _ in range(CALLERS)]
        seen = spare()
        assert await stores[0].put(seen)
        won: list[int] = []

        async def take(number: int) -> None:
            taker = Taker(SatelliteKey("acme", f"s{number}"), 1, number)
            if await stores[number].put(dataclasses.replace(seen.changed(SpareState.TAKEN), taker=taker)):
                won.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(CALLERS):
                nursery.start_soon(take, number)
        assert len(won) == 1
        (row,) = await stores[0].spares()
        assert row.taker is not None
        assert row.taker.key.name == f"s{won[0]}"
        for store in stores:
            await store.aclose()
