"""Both stores of records hold the contract; and what is particular to each."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from beds.contracts.records import RecordContract, Wall
from bentpipe.daemon.errors import StoreError, StoreUnusable
from bentpipe.daemon.records.contract import RecordStore
from bentpipe.daemon.records.dynamodb import PARTITION_S, DynamoRecords
from bentpipe.daemon.records.sqlite import FILE_NAME, SqliteRecords
from bentpipe.daemon.store.dynamodb_table import EXPIRES, Table

KEEP, KEEP_S = 100, 86_400.0


@pytest.fixture
def wall() -> Wall:
    return Wall()


class TestSqlite(RecordContract):
    """In a file."""

    @pytest.fixture
    def opened(self, tmp_path: Path, wall: Wall) -> Callable[[], RecordStore]:
        return lambda: SqliteRecords(tmp_path / FILE_NAME, KEEP, KEEP_S, wall=lambda: wall.now_s)

    async def test_the_oldest_make_room(self, opened: Callable[[], RecordStore], wall: Wall) -> None:
        store, records = opened(), [self.stored(wall) for _ in range(KEEP + 30)]
        for at in range(0, len(records), 13):
            await store.add(records[at : at + 13])
        found = await store.newest(1_000)
        assert found == records[:29:-1]

    async def test_none_is_older_than_it_may_be(self, opened: Callable[[], RecordStore], wall: Wall) -> None:
        store, old = opened(), self.stored(wall)
        await store.add([old])
        wall.now_s += KEEP_S + 1
        new = self.stored(wall)
        await store.add([new])
        assert await store.newest(9) == [new]

    async def test_the_file_stays_small(self, opened: Callable[[], RecordStore], wall: Wall, tmp_path: Path) -> None:
        store = opened()
        for _ in range(40):
            await store.add([self.stored(wall, error="x" * 500) for _ in range(KEEP)])
        await store.aclose()
        assert sum(each.stat().st_size for each in tmp_path.iterdir()) < 1 << 20

    async def test_a_row_that_cannot_be_read_is_as_if_it_were_not_there(
        self, opened: Callable[[], RecordStore], wall: Wall, tmp_path: Path
    ) -> None:
        store, good, bad = opened(), self.stored(wall), self.stored(wall)
        await store.add([good, bad])
        with sqlite3.connect(tmp_path / FILE_NAME) as edited:
            edited.execute("UPDATE connection SET fields = '[' WHERE id = ?", (bad.id,))
        edited.close()
        assert await store.find(bad.id) is None
        assert await store.newest(9) == [good]

    async def test_another_file_is_not_touched(self, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / FILE_NAME) as other:
            other.execute("CREATE TABLE bookmarks (url TEXT)")
        other.close()
        with pytest.raises(StoreUnusable, match="of something else"):
            await SqliteRecords(tmp_path / FILE_NAME, KEEP, KEEP_S).add([])

    async def test_a_reader_makes_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError):
            await SqliteRecords(tmp_path / FILE_NAME, KEEP, KEEP_S, read_only=True).find("x")
        assert not list(tmp_path.iterdir())


class TestDynamoDb(RecordContract):
    """In the table of a fleet."""

    @pytest.fixture
    def opened(self, tables: Callable[[str], Table], wall: Wall) -> Callable[[], RecordStore]:
        return lambda: DynamoRecords(tables("records"), KEEP_S, wall=lambda: wall.now_s)

    async def test_the_table_removes_it_at_its_time(self, tables: Callable[[str], Table], wall: Wall) -> None:
        table, record = tables("records"), self.stored(wall)
        await DynamoRecords(table, KEEP_S, wall=lambda: wall.now_s).add([record])
        item = await table.get(f"CONNECTION#{record.id[:4]}", record.id)
        assert item[EXPIRES] == {"N": str(int(wall.now_s + KEEP_S))}

    async def test_nothing_is_written_that_would_stay_for_ever(
        self, tables: Callable[[str], Table], wall: Wall, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        table = tables("old")
        table._use(
            lambda client: client.update_time_to_live(
                TableName=table.name, TimeToLiveSpecification={"Enabled": False, "AttributeName": EXPIRES}
            )
        )
        store, record = DynamoRecords(table, KEEP_S, wall=lambda: wall.now_s), self.stored(wall)
        with pytest.raises(StoreUnusable, match="`bentpipe store init` turns it on"):
            await store.add([record])
        assert await store.find(record.id) is None
        assert not await table.create()
        await store.add([record])
        assert await store.find(record.id) == record

    async def test_the_newest_are_found_over_several_partitions(
        self, opened: Callable[[], RecordStore], wall: Wall
    ) -> None:
        store, made = opened(), []
        for _ in range(4):
            made.append(self.stored(wall))
            await store.add(made[-1:])
            wall.now_s += PARTITION_S
        assert await store.newest(9) == made[::-1]
