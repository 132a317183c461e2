"""The output of a local satellite: its end is kept to explain the satellite's death, all of it goes to a log; both bounded.

Owns the reading end of the satellite's output pipe, and the log file. It never decides whether the satellite lives: a
process that has left the satellite and still has the pipe open delays nothing. It reads at a limited rate, so a flood of
output slows down the process that prints, not the daemon.
"""

import collections
import contextlib
import logging
import os
from pathlib import Path

import trio

log = logging.getLogger("bentpipe.satellite")

TAIL_BYTES = 4096
"""Kept in memory per satellite: enough for the end of a traceback."""
REASON_LINES = 8
REASON_CHARS = 1000
"""How much of the tail goes into a machine's reason, which clients get in their terminal and in gRPC trailers."""

CHUNK_BYTES = 65_536
"""One read: the whole capacity of a default pipe."""
FULL_PAUSE_S = 0.02
"""Pause after a full read, so that at most 3 MB/s per satellite go through the daemon's thread."""

LOG_FILE_BYTES = 8 * 1024 * 1024
"""Size at which a log file is renamed to `.1`: one satellite takes at most twice this on disk."""


class Output:
    """The output of one run. Takes `fd`, the reading end of its pipe."""

    def __init__(self, machine: str, fd: int, log_file: Path | None) -> None:
        self._machine = machine
        self._fd = fd
        self._log_file = log_file
        self._tail: collections.deque[int] = collections.deque(maxlen=TAIL_BYTES)
        self._line = b""
        self._write_failed = False
        os.set_blocking(fd, False)

    async def run_reader(self) -> None:
        """Read until every writer has closed the pipe; the owner cancels it when the satellite has died."""
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            size = self._read_nowait()
            if size == 0:
                return
            await trio.sleep(FULL_PAUSE_S if size == CHUNK_BYTES else 0)

    def finish(self) -> None:
        """Read what is left in the pipe (at most its capacity) and close it. Call once, after `run_reader` has ended."""
        try:
            with contextlib.suppress(BlockingIOError):
                self._read_nowait()
        finally:
            os.close(self._fd)
        if self._line:
            self._log_line(self._line)

    def last_lines(self) -> str:
        """The last lines on one line, unprintable characters replaced. Empty if nothing was printed."""
        lines = bytes(self._tail).decode(errors="replace").splitlines()
        joined = " | ".join([line.strip() for line in lines if line.strip()][-REASON_LINES:])
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in joined)[-REASON_CHARS:]

    def _read_nowait(self) -> int:
        """Read one chunk. Returns its size, 0 at the end. Raises BlockingIOError."""
        data = os.read(self._fd, CHUNK_BYTES)
        self._tail.extend(data[-TAIL_BYTES:])
        if self._log_file is not None:
            self._write(self._log_file, data)
        elif log.isEnabledFor(logging.DEBUG):
            *lines, self._line = (self._line + data).split(b"\n")
            for line in lines:
                self._log_line(line)
            if len(self._line) > TAIL_BYTES:  # a line without end is cut
                self._log_line(self._line)
                self._line = b""
        return len(data)

    def _log_line(self, line: bytes) -> None:
        text = line[:TAIL_BYTES].decode(errors="replace")
        log.debug("printed", extra={"fields": {"machine": self._machine, "line": text}})

    def _write(self, log_file: Path, data: bytes) -> None:
        """Append to the log. If the disk fails, log that once and drop the output; the satellite goes on."""
        try:
            with log_file.open("ab") as file:
                file.write(data)
                size = file.tell()
            if size >= LOG_FILE_BYTES:
                log_file.replace(log_file.with_name(log_file.name + ".1"))
        except OSError as error:
            if not self._write_failed:
                self._write_failed = True
                fields = {"machine": self._machine, "file": str(log_file), "error": str(error)}
                log.warning("cannot write a satellite's log", extra={"fields": fields})
