"""Rows that cannot be read are told in few lines, however many there are."""

import pytest

from bentpipe.daemon.store.malformed import TOLD_ROWS, MalformedRow, MalformedRows


def test_a_flood_of_bad_rows_is_told_in_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    def parse(row: int) -> int:
        if row:
            raise MalformedRow("no")
        return row

    rows = MalformedRows("t")
    assert rows.read(range(1000), lambda row: row, parse) == [0]
    assert len(caplog.records) == TOLD_ROWS + 1
    assert rows.read(range(1000), lambda row: row, parse) == [0]
    assert len(caplog.records) == TOLD_ROWS + 1, "a series is told once"
    rows.read([0], lambda row: row, parse)
    rows.read(range(3), lambda row: row, parse)
    assert len(caplog.records) == TOLD_ROWS + 3, "a new series is told"
