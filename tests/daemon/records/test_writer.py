"""The writer of records: no connection waits for a store, and what is lost is counted."""

from collections.abc import Sequence

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.log_rates import LINES_A_WINDOW
from bentpipe.daemon.records.book import Book
from bentpipe.daemon.records.contract import StoredRecord
from bentpipe.daemon.records.record import End
from bentpipe.daemon.records.succession import Succession
from bentpipe.daemon.records.writer import GATHER_S, RETRY_S, RecordWriter, WriterStatistics

DONE = End("done", "it was done")


class Shelf:
    """A store in memory, which fails while `error` is set and hangs while `hangs` is."""

    def __init__(self) -> None:
        self.records: list[StoredRecord] = []
        self.error = ""
        self.hangs = False
        self.closed = False
        self.bounds: tuple[int, float] | None = None

    async def check(self) -> None:
        await trio.lowlevel.checkpoint()

    def bound(self, keep: int, keep_s: float) -> None:
        self.bounds = (keep, keep_s)

    async def add(self, records: Sequence[StoredRecord]) -> None:
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if self.error:
            raise StoreError(self.error)
        self.records += records

    async def find(self, connection_id: str) -> StoredRecord | None:
        await trio.lowlevel.checkpoint()
        return next((each for each in self.records if each.id == connection_id), None)

    async def newest(self, most: int, *, satellite: str = "", principal: str = "") -> list[StoredRecord]:
        await trio.lowlevel.checkpoint()
        return self.records[-most:]

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed = True


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def end(writer: RecordWriter, principal: str = "ci", times: int = 1) -> list[str]:
    book = Book({"writer": writer.keep})
    ids = []
    for _ in range(times):
        with book.open("192.0.2.1:1") as record:
            record.principal = principal
            record.finish(DONE)
        ids.append(record.id)
    return ids


async def test_records_are_written_and_found(shelf: Shelf, autojump_clock: MockClock) -> None:
    writer = RecordWriter(shelf, "edge-1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run_writer)
        (first,) = end(writer)
        found = await writer.find(first)
        assert found is not None, "a record that is not written yet is found too"
        await trio.sleep(2 * GATHER_S)
        assert [each.id for each in shelf.records] == [first]
        assert await writer.find(first) == found
        assert (writer.statistics().kept, writer.statistics().queued) == (1, 0)
        nursery.cancel_scope.cancel()
    assert shelf.closed


async def test_a_store_that_fails_is_tried_again_and_nothing_is_lost(
    shelf: Shelf, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    writer = RecordWriter(shelf, "edge-1")
    shelf.error = "No space left on device"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run_writer)
        ids = end(writer, times=3)
        await trio.sleep(5 * RETRY_S)
        assert (writer.failing, shelf.records) == ("No space left on device", [])
        assert writer.statistics().failures >= 4
        shelf.error = ""
        await trio.sleep(2 * RETRY_S)
        assert [each.id for each in shelf.records] == ids
        nursery.cancel_scope.cancel()
    assert [each.message for each in caplog.records] == ["records cannot be written", "records can be written again"]
    assert writer.statistics().lost == 0


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_if_the_store_is_away_for_long_the_newest_stay(shelf: Shelf, how: str, autojump_clock: MockClock) -> None:
    writer = RecordWriter(shelf, "edge-1", queue_limit=10)
    shelf.error, shelf.hangs = ("gone" if how == "fails" else ""), how == "hangs"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run_writer)
        ids = []
        for _ in range(5):
            ids += end(writer, times=5)
            await trio.sleep(RETRY_S)
        lost = writer.statistics().lost
        assert writer.statistics().queued <= 10
        shelf.error, shelf.hangs = "", False
        nursery.cancel_scope.cancel()
    assert {each.id for each in shelf.records} == set(ids[-10:])
    assert (lost, writer.statistics().lost) == (15 if how == "fails" else 10, 15)


async def test_what_is_left_at_the_end_is_lost_with_a_count(
    shelf: Shelf, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    writer = RecordWriter(shelf, "edge-1")
    shelf.hangs = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run_writer)
        end(writer, times=3)
        await trio.sleep(GATHER_S)
        nursery.cancel_scope.cancel()
    assert writer.statistics().lost == 3
    assert caplog.records[-1].message == "records of connections were lost"


async def test_of_strangers_some_of_each_kind_are_kept(shelf: Shelf, autojump_clock: MockClock) -> None:
    writer = RecordWriter(shelf, "edge-1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run_writer)
        end(writer, "", times=200)
        end(writer, "ci", times=200)
        await trio.sleep(2 * GATHER_S)
        nursery.cancel_scope.cancel()
    assert [each.principal for each in shelf.records].count("") == LINES_A_WINDOW
    assert [each.principal for each in shelf.records].count("ci") == 200
    assert writer.statistics().left_out == 200 - LINES_A_WINDOW


async def test_a_writer_that_is_ended_writes_what_waits_and_is_over(shelf: Shelf, autojump_clock: MockClock) -> None:
    """A reload has turned the records off: those of before are kept, and the store is closed."""
    writer = RecordWriter(shelf, "edge-1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run_writer)
        await trio.testing.wait_all_tasks_blocked()
        ids = end(writer, times=3)
        assert not writer.is_over
        writer.bound(7, 60.0)
        writer.end()
    assert [each.id for each in shelf.records] == ids
    assert (shelf.closed, shelf.bounds, writer.is_over) == (True, (7, 60.0), True)
    assert writer.statistics() == WriterStatistics(kept=3)


async def test_a_writer_that_is_ended_while_its_store_fails_gives_up(shelf: Shelf, autojump_clock: MockClock) -> None:
    writer = RecordWriter(shelf, "edge-1")
    shelf.error = "disk full"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run_writer)
        end(writer, times=2)
        await trio.sleep(GATHER_S + 1)
        writer.end()
    assert shelf.closed
    assert writer.statistics().lost == 2


async def test_counts_do_not_fall_when_another_writer_takes_over(shelf: Shelf, autojump_clock: MockClock) -> None:
    writers: Succession[WriterStatistics] = Succession()
    assert writers.statistics() is None
    for number in range(1, 4):
        writer = RecordWriter(shelf, "edge-1")
        writers.add(writer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run_writer)
            await trio.testing.wait_all_tasks_blocked()
            end(writer)
            writer.end()
        assert writers.statistics() == WriterStatistics(kept=number)
