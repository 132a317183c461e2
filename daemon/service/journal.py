"""Entries for systemd's journal in its native protocol: a datagram each, with fields that journalctl(1) finds.

The protocol is that of https://systemd.io/JOURNAL_NATIVE_PROTOCOL. Each field of a line is one of the entry, in capitals and
with a prefix: `journalctl BENTPIPE_ID=…`. The message is the line as it would be on standard error, without its time. Only
the log's own thread sends: a journal that hangs stops nothing else.
"""

import array
import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from bentpipe.daemon.logs import fields_of

SOCKET = Path("/run/systemd/journal/socket")
PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
"""syslog(3)'s priorities."""
NORMAL = 6
IDENTIFIER = "bentpipe"
PREFIX = "BENTPIPE_"
NAME_CHARS = 64
"""Of a field's name; the journal leaves out an entry with a longer one (journal_field_valid in systemd's source)."""
VALUE_CHARS = 2_000
LENGTH = struct.Struct("<Q")
TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""What the journal asks of a file that stands for an entry (memfd_create(2))."""
_UNFIT = re.compile(r"[^A-Z0-9_]")


def entry_of(record: logging.LogRecord, text: str) -> bytes:
    """The entry of a record whose line is `text`."""
    fields: dict[str, str] = {
        "MESSAGE": text,
        "PRIORITY": str(PRIORITIES.get(record.levelno, NORMAL)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        f"{PREFIX}LOGGER": record.name,
    }
    for name, value in fields_of(record).items():
        fields.setdefault(field_name(name), str(value)[:VALUE_CHARS])
    return serialise(fields)


def field_name(name: str) -> str:
    """The name of one of our fields in the journal."""
    return (PREFIX + _UNFIT.sub("_", name.upper()))[:NAME_CHARS]


def serialise(fields: Mapping[str, str]) -> bytes:
    """The bytes of an entry. A value with a line's end has its length before it, so it cannot forge another field."""
    parts = []
    for name, value in fields.items():
        data = value.encode(errors="backslashreplace")
        if b"\n" in data:
            parts.append(b"%s\n%s%s\n" % (name.encode(), LENGTH.pack(len(data)), data))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), data))
    return b"".join(parts)


class JournalOutput:
    """Sends entries to the journal. For one thread, which waits as long as the journal makes it wait."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def open(cls, path: Path = SOCKET) -> Self | None:
        """Connect; None if there is no journal."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            return None
        return cls(sock)

    def write(self, entries: Sequence[bytes]) -> int:
        """Send them, however long that takes. Returns how many were lost."""
        return sum(not self._send(entry) for entry in entries)

    def _send(self, entry: bytes) -> bool:
        try:
            self._sock.send(entry)
        except OSError as exc:
            return exc.errno in TOO_LARGE and self._send_as_file(entry)
        return True

    def _send_as_file(self, entry: bytes) -> bool:
        """An entry that is too large for a datagram is a sealed file in memory."""
        with contextlib.suppress(OSError):
            fd = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                with os.fdopen(os.dup(fd), "wb") as file:
                    file.write(entry)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
                rights = array.array("i", [fd])
                self._sock.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                return True
            finally:
                os.close(fd)
        return False

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()
