"""Entries in the journal's native protocol, with a socket in the place of the journal's own."""

import array
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from bentpipe.daemon.service.journal import SEALS, JournalOutput, entry_of, field_name, serialise
from bentpipe.daemon.service.log_formatters import JsonFormatter, TextFormatter
from bentpipe.daemon.service.log_handler import LogHandler
from bentpipe.daemon.service.log_queue import QUEUE_LINES

DEADLINE_S = 20.0


class Journal:
    """A socket that takes entries as the journal does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.settimeout(DEADLINE_S)
        self.sock.bind(str(path))

    def take(self) -> dict[str, str]:
        """The next entry; one that is a file must be sealed."""
        data, ancillary, _, _ = self.sock.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _, _, rights in ancillary:
            (fd,) = array.array("i", rights[:4])
            try:
                assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == SEALS
                data = os.pread(fd, 1 << 24, 0)
            finally:
                os.close(fd)
        return parse(data)


def parse(data: bytes) -> dict[str, str]:
    """As the protocol's page says."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", rest[:8])
            value, end, rest = rest[8 : 8 + size], rest[8 + size : 9 + size], rest[9 + size :]
            assert end == b"\n"
        fields[name.decode()] = value.decode()
        data = rest
    return fields


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    found = Journal(tmp_path / "socket")
    yield found
    found.sock.close()


def record(message: str, level: int = logging.ERROR, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("bentpipe.edge", level, __file__, 1, message, None, None)
    made.__dict__["fields"] = fields
    return made


def opened(journal: Journal, formatter: logging.Formatter) -> LogHandler:
    entries = JournalOutput.open(journal.path)
    assert entries is not None
    return LogHandler(-1, formatter, journal=True, entries=entries)


def test_an_entry_has_the_lines_fields(journal: Journal) -> None:
    handler = opened(journal, TextFormatter(stamped=False))
    handler.emit(record("connection ended", id="1s6xaq-8x0a-szxkc", satellite="acme/one", principal="ci", up_bytes=7))
    assert handler.finish(DEADLINE_S)
    assert journal.take() == {
        "MESSAGE": "connection ended id=1s6xaq-8x0a-szxkc satellite=acme/one principal=ci up_bytes=7",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "bentpipe",
        "BENTPIPE_LOGGER": "bentpipe.edge",
        "BENTPIPE_ID": "1s6xaq-8x0a-szxkc",
        "BENTPIPE_SATELLITE": "acme/one",
        "BENTPIPE_PRINCIPAL": "ci",
        "BENTPIPE_UP_BYTES": "7",
    }


def test_the_message_is_json_if_that_is_the_format(journal: Journal) -> None:
    handler = opened(journal, JsonFormatter())
    handler.emit(record("connection ended", logging.WARNING, id="x"))
    found = journal.take()
    assert found["MESSAGE"].startswith('{"time": ')
    assert (found["PRIORITY"], found["BENTPIPE_ID"]) == ("4", "x")


def test_an_entry_that_is_too_large_for_a_datagram_is_a_file(journal: Journal) -> None:
    output = JournalOutput.open(journal.path)
    assert output is not None
    large = "x" * (1 << 20)
    assert output.write([serialise({"MESSAGE": large})]) == 0
    assert journal.take() == {"MESSAGE": large}
    output.close()


def test_a_journal_that_does_not_read_stops_nothing(journal: Journal) -> None:
    """No line waits for it; what finds the queue full is counted."""
    handler = opened(journal, TextFormatter(stamped=False))
    for number in range(2 * QUEUE_LINES):
        handler.emit(record("line", number=number))
    assert handler.statistics().dropped > 0
    assert not handler.finish(0.0)


def test_a_journal_that_is_gone_is_counted(journal: Journal, tmp_path: Path) -> None:
    output = JournalOutput.open(journal.path)
    assert output is not None
    journal.sock.close()
    assert output.write([b"MESSAGE=one\n", b"MESSAGE=two\n"]) == 2
    assert JournalOutput.open(tmp_path / "absent") is None
    output.close()


@given(st.dictionaries(st.text("ab_.- =\n\u00e4", min_size=1, max_size=80), st.text(), max_size=5), st.text())
def test_no_value_forges_a_field(fields: dict[str, str], text: str) -> None:
    made = record("message")
    made.__dict__["fields"] = fields
    found = parse(entry_of(made, text))
    assert found["MESSAGE"] == text.encode(errors="backslashreplace").decode()
    assert set(found) == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "BENTPIPE_LOGGER", *map(field_name, fields)}
