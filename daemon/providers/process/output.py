"""The output of a local satellite: its end explains the satellite's death, all of it goes to a log; both bounded.

The keeper reads the satellite's pipe and keeps the end. It is asked for the rest only if there is a log for it.
"""

import logging
from pathlib import Path

log = logging.getLogger("bentpipe.satellite")

LINE_BYTES = 4096
"""The longest line of the debug log; a longer one is cut."""
REASON_LINES = 8
REASON_CHARS = 1000
"""How much of the tail goes into a machine's reason, which clients get in their terminal and in gRPC trailers."""

LOG_FILE_BYTES = 8 * 1024 * 1024
"""Size at which a log file is renamed to `.1`: one satellite takes at most twice this on disk."""


def last_lines(tail: bytes) -> str:
    """The last lines on one line, unprintable characters replaced. Empty if nothing was printed."""
    lines = tail.decode(errors="replace").splitlines()
    joined = " | ".join([line.strip() for line in lines if line.strip()][-REASON_LINES:])
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in joined)[-REASON_CHARS:]


class OutputLog:
    """Where the output of one run goes: a file, or the debug log."""

    def __init__(self, machine: str, log_file: Path | None) -> None:
        self._machine = machine
        self._log_file = log_file
        self._line = b""
        self._write_failed = False
        self.offset = 0
        """Of the first byte that it has not got."""

    @property
    def is_wanted(self) -> bool:
        """Whether the output goes anywhere."""
        return self._log_file is not None or log.isEnabledFor(logging.DEBUG)

    def take(self, begin: int, data: bytes) -> None:
        """Log what was printed from the offset `begin` on. What is missing was dropped: the satellite printed too fast."""
        if lost := begin - self.offset:
            log.info("output was dropped", extra={"fields": {"machine": self._machine, "bytes": lost}})
        self.offset = begin + len(data)
        if self._log_file is not None:
            self._write(self._log_file, data)
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._log_line(line)
        if len(self._line) > LINE_BYTES:
            self.finish()

    def finish(self) -> None:
        """Log a last line that has no end."""
        if self._line:
            self._log_line(self._line)
            self._line = b""

    def _log_line(self, line: bytes) -> None:
        text = line[:LINE_BYTES].decode(errors="replace")
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
