"""Records and stray words as lines in a pipe, read or not."""

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator

import pytest

from bentpipe.daemon.log_rates import KINDS, LINES_A_WINDOW, WINDOW_S, LogRates
from bentpipe.daemon.logs import log_limited
from bentpipe.daemon.service import log_queue
from bentpipe.daemon.service.log_formatters import FIELD_CHARS, LIMITED_FIELD_CHARS, JsonFormatter, TextFormatter
from bentpipe.daemon.service.log_handler import LogHandler, daemon_log, is_journal, log_statistics

PIPE_BYTES = 4096
DEADLINE_S = 10.0
log = logging.Logger("bentpipe.test")  # beside the tree, in which pytest listens


class Reader:
    """The other end of the log."""

    def __init__(self) -> None:
        self.fd, self.write_fd = os.pipe()
        fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(self.fd, False)

    def lines(self, until: str) -> list[str]:
        read = b""
        deadline = time.monotonic() + DEADLINE_S
        while until.encode() not in read or not read.endswith(b"\n"):
            with contextlib.suppress(BlockingIOError):
                read += os.read(self.fd, 65536)
            if time.monotonic() > deadline:
                raise TimeoutError(read)
            time.sleep(0.001)
        return read.decode().splitlines()


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    os.close(made.fd)


@pytest.fixture
def logging_to(reader: Reader) -> Iterator[LogHandler]:
    made = LogHandler(reader.write_fd, JsonFormatter(), journal=False)
    log.addHandler(made)
    yield made
    log.removeHandler(made)


def test_what_finds_the_queue_full_is_dropped_counted_and_said(reader: Reader, logging_to: LogHandler) -> None:
    lines = log_queue.QUEUE_LINES + 1000
    began = time.monotonic()
    for number in range(lines):
        log.info("line %d", number)
    assert time.monotonic() - began < DEADLINE_S
    log.error("still heard")
    assert not logging_to.finish(0.01)
    dropped = logging_to.statistics().dropped
    read = [json.loads(line) for line in reader.lines("lines were dropped")]
    numbers = [int(r["message"].split()[1]) for r in read if r["message"].startswith("line ")]
    told = [r["lines"] for r in read if "were dropped" in r["message"]]
    assert numbers == list(range(lines - dropped))
    assert told == [dropped]
    assert [r["message"] for r in read].index("still heard") >= len(numbers)


def test_bytes_are_bounded_too(reader: Reader, logging_to: LogHandler) -> None:
    for _ in range(2 * log_queue.QUEUE_BYTES // FIELD_CHARS):
        log.info("long", extra={"fields": {"words": "x" * FIELD_CHARS}})
    statistics = logging_to.statistics()
    assert statistics.dropped > 0
    assert statistics.queued * FIELD_CHARS < log_queue.QUEUE_BYTES
    reader.lines("were dropped")


def test_a_line_that_cannot_be_made_does_not_raise(reader: Reader, logging_to: LogHandler) -> None:
    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    log.info("%d", "no number")
    log.info("fine", extra={"fields": {"what": Hostile()}})
    log.info("last")
    read = [json.loads(line) for line in reader.lines("last")]
    assert [r["message"] for r in read] == ["a line could not be made"] * 2 + ["last"]
    assert logging_to.statistics().dropped == 0


def test_peers_words_are_short_and_one_line(reader: Reader, logging_to: LogHandler) -> None:
    log.info("refused", extra={"fields": {"peer": "192.0.2.1:1", "error": "\n" + "x" * 100_000}})
    log.info("spliced", extra={"fields": {"peer": "192.0.2.1:1", "principal": "ci", "words": "\ud800" * 100_000}})
    short, longer = [json.loads(line) for line in reader.lines("spliced")]
    assert len(short["error"]) <= LIMITED_FIELD_CHARS + 1
    assert len(longer["words"]) <= FIELD_CHARS + 1


def test_many_threads(reader: Reader, logging_to: LogHandler) -> None:
    def say(n: int) -> None:
        for i in range(200):
            log.info("said", extra={"fields": {"n": n, "i": i}})

    threads = [threading.Thread(target=say, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.info("last")
    read = [json.loads(line) for line in reader.lines('"last"')]
    for n in range(8):
        assert [r["i"] for r in read if r.get("n") == n] == list(range(200))


def test_a_non_blocking_descriptor_loses_nothing(reader: Reader, logging_to: LogHandler) -> None:
    os.set_blocking(reader.write_fd, False)
    for number in range(500):
        log.info("line %d", number)
    time.sleep(0.1)
    assert len(reader.lines("line 499")) == 500


def test_a_reader_that_has_left_raises_no_error(
    reader: Reader, logging_to: LogHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_queue, "LOOK_S", 0.05)
    other = os.open(os.devnull, os.O_RDONLY)
    os.dup2(other, reader.fd)  # nobody reads the pipe any more
    os.close(other)
    log.info("for nobody")
    deadline = time.monotonic() + DEADLINE_S
    while not logging_to.statistics().dropped:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_everything_of_the_process_goes_there(reader: Reader, capfd: pytest.CaptureFixture[str]) -> None:
    saved = os.dup(2)
    os.dup2(reader.write_fd, 2)
    try:
        with daemon_log("json", "info"):
            logging.getLogger("botocore.credentials").warning("none found")
            logging.getLogger("botocore.hooks").info("not told")
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("old", DeprecationWarning, stacklevel=1)
            print("stray words")
            thread = threading.Thread(target=lambda: 1 // 0)
            thread.start()
            thread.join()
            logging.getLogger("bentpipe").info("ours")
        assert log_statistics().written == 0  # it is over
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    read = [json.loads(line) for line in reader.lines("ours")]
    assert [(r["logger"], r["level"]) for r in read] == [
        ("botocore.credentials", "warning"),
        ("py.warnings", "warning"),
        ("bentpipe", "warning"),
        ("bentpipe", "error"),
        ("bentpipe", "info"),
    ]
    assert read[2]["message"] == "stray words"
    assert "ZeroDivisionError" in read[3]["traceback"]


def test_a_traceback_has_the_priority_on_each_line(reader: Reader) -> None:
    handler = LogHandler(reader.write_fd, TextFormatter(), journal=True)
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        record = log.makeRecord(log.name, logging.ERROR, __file__, 1, "crashed", (), __import__("sys").exc_info())
    handler.emit(record)
    lines = reader.lines("lines\n")
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


def test_the_journal_is_known_by_device_and_inode(reader: Reader) -> None:
    found = os.fstat(reader.write_fd)
    assert is_journal(reader.write_fd, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
    assert not is_journal(reader.write_fd, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
    assert not is_journal(reader.write_fd, {})


def test_kinds_have_windows_of_their_own() -> None:
    rates = LogRates()
    admitted = sum(rates.admit("a", logging.INFO, 0.0) for _ in range(100))
    assert admitted == LINES_A_WINDOW
    assert rates.admit("b", logging.INFO, 0.0)
    rates.admit("a", logging.ERROR, 0.0)
    assert rates.ended(WINDOW_S - 1) == []
    (withheld,) = rates.ended(WINDOW_S)
    assert (withheld.kind, withheld.lines, withheld.level) == ("a", 101 - LINES_A_WINDOW, logging.ERROR)
    assert rates.ended(WINDOW_S) == []
    assert rates.admit("a", logging.INFO, WINDOW_S)
    assert rates.withheld == withheld.lines


def test_kinds_are_bounded() -> None:
    rates = LogRates()
    admitted = sum(rates.admit(f"kind {n}", logging.INFO, 0.0) for n in range(10 * KINDS))
    assert admitted == KINDS + LINES_A_WINDOW
    assert sum(each.lines for each in rates.ended(WINDOW_S)) == 10 * KINDS - admitted


def test_log_limited_needs_no_peer(reader: Reader, logging_to: LogHandler) -> None:
    for _ in range(100):
        log_limited(log, "over-limit", "closed at accept", {})
    log.info("last")
    assert sum("closed at accept" in line for line in reader.lines('"last"')) == LINES_A_WINDOW
