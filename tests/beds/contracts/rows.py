"""The text of `bentpipe.daemon.coordination.rows` as tests. A test module subclasses it and gives a fixture `rows`."""

import pytest
import trio

from beds.contracts.ledger import A, B
from bentpipe.daemon.coordination.rows import Row, Rows, Written

RACERS = 8


class RowsContract:
    async def test_a_turn_from_take_to_release(self, rows: Rows) -> None:
        assert await rows.read(A) == Row()
        first = Row("x/1", "v1", 1)
        assert await rows.take(A, owner="x/1", seen="", version="v1") == Written(True, first)
        assert await rows.read(A) == first
        assert await rows.take(A, owner="y/1", seen="", version="v2") == Written(False, first)
        assert await rows.take(A, owner="y/1", seen="v0", version="v2") == Written(False, first)
        assert await rows.renew(A, seen="v1", version="v3") == Written(True, Row("x/1", "v3", 1))
        assert (await rows.renew(A, seen="v1", version="v4")).done is False
        assert await rows.take(A, owner="y/1", seen="v3", version="v5") == Written(True, Row("y/1", "v5", 2))
        assert (await rows.renew(A, seen="v3", version="v6")).row.owner == "y/1"
        assert (await rows.release(A, seen="v3")).done is False
        assert await rows.release(A, seen="v5") == Written(True, Row(epoch=2))
        assert await rows.take(A, owner="x/1", seen="", version="v7") == Written(True, Row("x/1", "v7", 3))
        assert await rows.read(B) == Row()

    async def test_entering_leaving_and_closing(self, rows: Rows) -> None:
        assert await rows.enter(A, "x/1") == Written(True, Row(entered=frozenset({"x/1"})))
        await rows.enter(A, "y/1")
        taken = await rows.take(A, owner="x/1", seen="", version="v1")
        assert taken.row.entered == {"x/1", "y/1"}
        assert await rows.close(A, seen="v1", version="v2", incarnation="x/1") == Written(False, taken.row)
        await rows.leave(A, frozenset({"y/1", "z/1"}))
        assert (await rows.close(A, seen="v0", version="v2", incarnation="x/1")).done is False
        closed = Row("x/1", "v2", 1, closing=True)
        assert await rows.close(A, seen="v1", version="v2", incarnation="x/1") == Written(True, closed)
        assert await rows.enter(A, "y/1") == Written(False, closed)
        assert await rows.renew(A, seen="v2", version="v3") == Written(True, Row("x/1", "v3", 1, closing=True))
        await rows.release(A, seen="v3")
        assert await rows.enter(A, "y/1") == Written(True, Row(epoch=1, entered=frozenset({"y/1"})))

    async def test_closing_when_nobody_has_entered_and_a_thief_that_opens(self, rows: Rows) -> None:
        await rows.take(A, owner="x/1", seen="", version="v1")
        assert (await rows.close(A, seen="v1", version="v2", incarnation="x/1")).done
        assert await rows.take(A, owner="y/1", seen="v2", version="v3") == Written(True, Row("y/1", "v3", 2))
        assert (await rows.enter(A, "x/1")).done
        assert not (await rows.close(A, seen="v2", version="v4", incarnation="x/1")).done

    async def test_another_stay_of_the_same_number_forbids_closing(self, rows: Rows) -> None:
        await rows.enter(A, "y/1")
        await rows.take(A, owner="x/1", seen="", version="v1")
        assert not (await rows.close(A, seen="v1", version="v2", incarnation="x/1")).done

    async def test_stays(self, rows: Rows) -> None:
        assert await rows.incarnations() == {}
        assert not await rows.beat("x/1", "v1")
        assert await rows.incarnations() == {}
        await rows.begin_incarnation("x/1", "v1")
        await rows.begin_incarnation("y/1", "v1")
        assert await rows.beat("x/1", "v2")
        assert await rows.incarnations() == {"x/1": "v2", "y/1": "v1"}
        assert not await rows.expire("x/1", "v1")
        assert await rows.expire("x/1", "v2")
        assert await rows.expire("x/1", "v2")
        assert not await rows.beat("x/1", "v3")
        assert await rows.incarnations() == {"y/1": "v1"}

    @pytest.mark.parametrize("seen", ["", "v0"])
    async def test_of_many_who_take_one_does(self, rows: Rows, seen: str) -> None:
        if seen:
            await rows.take(A, owner="old/1", seen="", version=seen)
        written: list[Written] = []

        async def take(number: int) -> None:
            written.append(await rows.take(A, owner=f"{number}/1", seen=seen, version=f"w{number}"))

        async with trio.open_nursery() as nursery:
            for number in range(RACERS):
                nursery.start_soon(take, number)
        (winner,) = [each.row for each in written if each.done]
        assert await rows.read(A) == winner
        assert winner.epoch == (2 if seen else 1)

    async def test_entering_and_closing_never_both(self, rows: Rows) -> None:
        for number in range(RACERS):
            version = (await rows.take(A, owner="x/1", seen="", version=f"v{number}")).row.version
            done: dict[str, bool] = {}

            async def enter(done: dict[str, bool] = done) -> None:
                done["enter"] = (await rows.enter(A, "y/1")).done

            async def close(done: dict[str, bool] = done, version: str = version) -> None:
                done["close"] = (await rows.close(A, seen=version, version=version + "c", incarnation="x/1")).done

            async with trio.open_nursery() as nursery:
                nursery.start_soon(enter)
                nursery.start_soon(close)
            assert done["enter"] is not done["close"]
            await rows.leave(A, frozenset({"y/1"}))
            await rows.release(A, seen=(await rows.read(A)).version)
