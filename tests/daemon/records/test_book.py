"""The rule of the book: every connection that was opened is closed once, and told, whatever happens."""

import math

import pytest
import trio

from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.records.book import Book
from bentpipe.daemon.records.record import LOST, PASSED_ON, End, Phase, Record
from bentpipe.daemon.tasks import task_failures

DONE = End("done", "it was done")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_record_is_told_once_at_the_end_of_its_block() -> None:
    told: list[Record] = []
    book = Book({"test": told.append})
    with book.open("192.0.2.1:1") as record:
        assert (book.open_count, book.find(record.id)) == (1, record)
        record.finish(DONE)
    record.close()
    assert told == [record]
    assert (book.opened, book.open_count, book.find(record.id)) == (1, 0, None)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
async def test_an_exception_does_not_lose_it(error: type[BaseException]) -> None:
    told: list[Record] = []
    with pytest.raises(error), Book({"test": told.append}).open("192.0.2.1:1"):
        raise error
    assert [each.end for each in told] == [LOST]


async def test_a_cancellation_does_not_lose_it() -> None:
    told: list[Record] = []
    with trio.CancelScope() as scope, Book({"test": told.append}).open("192.0.2.1:1"):
        scope.cancel()
        await trio.sleep_forever()
    assert [each.end for each in told] == [LOST]


async def test_after_the_hand_off_the_splice_closes_it() -> None:
    told: list[Record] = []
    book = Book({"test": told.append})
    with book.open("192.0.2.1:1") as record:
        record.hand_off()
    assert (told, book.open_count) == ([], 1)
    record.finish(DONE)
    record.close()
    assert [each.end for each in told] == [DONE]


async def test_what_is_open_at_the_end_of_the_daemon_is_told_too() -> None:
    told: list[Record] = []
    book = Book({"test": told.append})
    records = [book.open("192.0.2.1:1") for _ in range(3)]
    records[0].finish(DONE)
    book.close_all()
    book.close_all()
    assert [each.end for each in told] == [DONE, LOST, LOST]


async def test_one_that_fails_to_be_told_does_not_keep_the_others_from_it() -> None:
    told: list[Record] = []

    def fail(record: Record) -> None:
        raise OSError(28, "No space left on device")

    with Book({"failing": fail, "test": told.append}).open("192.0.2.1:1"):
        pass
    assert len(told) == 1
    assert task_failures()["record"] == 1


async def test_the_first_end_counts_and_its_first_error() -> None:
    record = Book().open("192.0.2.1:1")
    record.finish(DONE, "the cause")
    record.finish(LOST, "a consequence")
    assert (record.end, record.error) == (DONE, "the cause")


async def test_its_fields_are_times_since_the_accept() -> None:
    clock = Clock()
    record = Book(clock=clock).open("192.0.2.1:1")
    record.satellite, record.principal, record.woken_by = SatelliteKey("acme", "sat"), "ci", ""
    for phase, at in ((Phase.GREETED, 100.01), (Phase.HELD, 100.02), (Phase.LEASED, 108.5), (Phase.DIALLED, 108.52)):
        clock.now = at
        record.reach(phase)
    clock.now = 110.0
    record.reach_first(Phase.FIRST_BYTE, 1.0)
    record.reach_first(Phase.FIRST_BYTE)
    record.finish(DONE)
    record.close()
    fields = record.fields()
    assert (fields["greeted_s"], fields["leased_s"], fields["first_byte_s"], fields["ended_s"]) == (
        0.01,
        8.5,
        9.0,
        10.0,
    )
    assert (fields["satellite"], fields["principal"], fields["woken_by"], fields["end"]) == (
        *("acme/sat", "ci", "nobody", "done"),
    )
    assert "spliced_s" not in fields
    assert record.held_s == pytest.approx(8.48)
    assert math.isnan(record.between_s(Phase.ADMITTED, Phase.SPLICED))


async def test_of_a_connection_that_another_process_has_nobody_is_told() -> None:
    told: list[Record] = []
    book = Book({"test": told.append})
    with book.open("192.0.2.1:1") as record:
        record.finish(PASSED_ON)
    assert (told, book.open_count) == ([], 0)
