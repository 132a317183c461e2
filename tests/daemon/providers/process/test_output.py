"""What a satellite prints is kept within bounds."""

import logging
import os
from pathlib import Path

import pytest
import trio

from bentpipe.daemon.providers.process import output
from bentpipe.daemon.providers.process.output import CHUNK_BYTES, REASON_CHARS, REASON_LINES, Output


def written(data: bytes, log_file: Path | None = None) -> Output:
    read_fd, write_fd = os.pipe()
    os.write(write_fd, data)
    os.close(write_fd)
    return Output("acme/x", read_fd, log_file)


def test_last_lines_are_the_last_lines_made_printable() -> None:
    out = written(b"".join(b"line %d\n\n" % n for n in range(100)) + b"\xff\x1b[0m\tend")
    out.finish()
    words = out.last_lines().split(" | ")
    assert words == [f"line {n}" for n in range(101 - REASON_LINES, 100)] + ["\ufffd\ufffd[0m\ufffdend"]


def test_last_lines_are_bounded() -> None:
    out = written(b"x" * 60_000)
    out.finish()
    assert out.last_lines() == "x" * REASON_CHARS


def test_a_writer_that_stays_holds_nothing_up() -> None:
    read_fd, write_fd = os.pipe()
    out = Output("acme/x", read_fd, None)
    out.finish()
    assert out.last_lines() == ""
    with pytest.raises(BrokenPipeError):
        os.write(write_fd, b"x")
    os.close(write_fd)


async def test_the_reader_takes_a_flood_and_ends_with_it() -> None:
    read_fd, write_fd = os.pipe()
    out = Output("acme/x", read_fd, None)

    def flood() -> None:
        with open(write_fd, "wb") as file:
            for _ in range(8):
                file.write(b"y" * CHUNK_BYTES)
            file.write(b"\nlast")

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(out.run_reader)
            await trio.to_thread.run_sync(flood)
    out.finish()
    assert out.last_lines().endswith("y | last")


def test_lines_are_logged_at_level_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "bentpipe.satellite")
    written(b"one\ntwo").finish()
    assert [record.__dict__["fields"]["line"] for record in caplog.records] == ["one", "two"]


def test_the_log_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LOG_FILE_BYTES", 10)
    log_file = tmp_path / "x.log"
    for text in (b"first ", b"second ", b"third ", b"fourth "):
        written(text, log_file).finish()
    assert (tmp_path / "x.log.1").read_bytes() == b"third fourth "
    assert not log_file.exists()


def test_a_log_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_fd, write_fd = os.pipe()
    out = Output("acme/x", read_fd, tmp_path / "missing" / "x.log")
    for text in (b"one\n", b"two\n"):
        os.write(write_fd, text)
        out._read_nowait()
    os.close(write_fd)
    out.finish()
    assert [record.message for record in caplog.records] == ["cannot write a satellite's log"]
    assert out.last_lines() == "one | two"
