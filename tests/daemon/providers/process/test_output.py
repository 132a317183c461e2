"""What a satellite prints is kept within bounds, and so is the log of it."""

import logging
from pathlib import Path

import pytest

from bentpipe.daemon.providers.process import output
from bentpipe.daemon.providers.process.output import LINE_BYTES, REASON_CHARS, REASON_LINES, OutputLog, last_lines


def written(data: bytes, log_file: Path | None = None) -> None:
    out = OutputLog("acme/x", log_file)
    out.take(0, data)
    out.finish()


def test_last_lines_are_the_last_lines_made_printable() -> None:
    words = last_lines(b"".join(b"line %d\n\n" % n for n in range(100)) + b"\xff\x1b[0m\tend").split(" | ")
    assert words == [f"line {n}" for n in range(101 - REASON_LINES, 100)] + ["\ufffd\ufffd[0m\ufffdend"]


def test_last_lines_are_bounded() -> None:
    assert last_lines(b"x" * 60_000) == "x" * REASON_CHARS
    assert last_lines(b"") == ""


def test_lines_are_logged_at_level_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "bentpipe.satellite")
    written(b"one\ntwo")
    assert [record.__dict__["fields"]["line"] for record in caplog.records] == ["one", "two"]


def test_a_line_without_end_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "bentpipe.satellite")
    out = OutputLog("acme/x", None)
    for number in range(3):
        out.take(number * LINE_BYTES, b"y" * LINE_BYTES)
    out.finish()
    assert [len(record.__dict__["fields"]["line"]) for record in caplog.records] == [LINE_BYTES, LINE_BYTES]


def test_what_was_dropped_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bentpipe.satellite")
    out = OutputLog("acme/x", None)
    out.take(0, b"begin")
    out.take(105, b"end")
    (told,) = (record for record in caplog.records if record.message == "output was dropped")
    assert told.__dict__["fields"] == {"machine": "acme/x", "bytes": 100}
    assert out.offset == 108


def test_the_log_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LOG_FILE_BYTES", 10)
    log_file = tmp_path / "x.log"
    for text in (b"first ", b"second ", b"third ", b"fourth "):
        written(text, log_file)
    assert (tmp_path / "x.log.1").read_bytes() == b"third fourth "
    assert not log_file.exists()


def test_a_log_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = OutputLog("acme/x", tmp_path / "missing" / "x.log")
    out.take(0, b"one\n")
    out.take(4, b"two\n")
    assert [record.message for record in caplog.records] == ["cannot write a satellite's log"]
