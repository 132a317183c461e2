"""The daemon's log as a whole: every record and every other output of this process becomes a line in the queue.

While it is set up, only the queue's thread writes to standard error. Our loggers, the loggers of libraries, warnings,
tracebacks and a stray print all go through the queue. So if nobody reads standard error, nothing stops.
"""

import contextlib
import dataclasses
import io
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Literal

from bentpipe.daemon.log_rates import LogRates
from bentpipe.daemon.logs import kind_of, log_limited
from bentpipe.daemon.service.journal import NORMAL, PRIORITIES, JournalOutput, entry_of
from bentpipe.daemon.service.log_formatters import JsonFormatter, TextFormatter
from bentpipe.daemon.service.log_queue import FdOutput, LogQueue

STDERR = 2
FLUSH_S = 2.0
"""For the last lines at the end. If writing takes longer, nobody reads them."""
STRAY_CHARS = 2_000
"""Characters of a line that a library writes to standard error; longer ones are split."""

LogFormat = Literal["text", "json"]

log = logging.getLogger("bentpipe")


@dataclasses.dataclass(frozen=True, slots=True)
class LogStatistics:
    """Lines since the start; `queued` is now."""

    written: int = 0
    dropped: int = 0
    """Lines that found the queue full, or could not be written."""
    withheld: int = 0
    """Lines that were too many of one kind in a while. The log has their number."""
    queued: int = 0


def is_journal(fd: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `fd` goes to systemd's journal (systemd.exec(5): JOURNAL_STREAM is its device and inode)."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def fill_standard_descriptors() -> None:
    """Open descriptors 0, 1 and 2 if they are closed. Otherwise the first sockets would get these numbers, and stray output.

    Raises OSError.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(fd, True)
    os.close(fd)


class LogHandler(logging.Handler):
    """Takes records from any thread; writes to `fd`, which it borrows, or to `entries`. Never waits for a reader, never
    raises.

    `journal`: the journal reads `fd`, so lines have their priority before them (sd-daemon(3)). `entries`: what takes entries
    instead of lines.
    """

    def __init__(
        self, fd: int, formatter: logging.Formatter, *, journal: bool, entries: JournalOutput | None = None
    ) -> None:
        super().__init__()
        self._line_of = formatter.format
        self._journal = journal
        self.entries = entries
        self._rates = LogRates()
        self._rates_lock = threading.RLock()
        self._queue = LogQueue(entries or FdOutput(fd), self._dropped_line, self._tell_withheld)

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        urgent = record.levelno >= logging.WARNING
        try:
            kind = kind_of(record)
            if kind is not None and not self._admit(kind, record.levelno):
                return
            if self._queue.is_full(urgent=urgent):
                self._queue.drop()
            else:
                self._queue.put(self._line(record), urgent=urgent)
        except Exception:  # an error in a line must not reach its caller
            self._queue.drop()

    def change_format(self, formatter: logging.Formatter) -> None:
        """Lines look like this from now on."""
        self._line_of = formatter.format

    def statistics(self) -> LogStatistics:
        """The counters now."""
        queue = self._queue.statistics()
        return LogStatistics(queue.written, queue.dropped, self._rates.withheld, queue.queued)

    def finish(self, deadline_s: float) -> bool:
        """Write all waiting lines, for `deadline_s` at most. Returns whether all are written."""
        self._tell_withheld(all_of_it=True)
        return self._queue.flush(deadline_s)

    def _admit(self, kind: str, level: int) -> bool:
        with self._rates_lock:
            return self._rates.admit(kind, level, time.monotonic())

    def _tell_withheld(self, *, all_of_it: bool = False) -> None:
        with self._rates_lock:
            withheld = self._rates.ended(time.monotonic(), all_of_them=all_of_it)
        for each in withheld:
            log.log(each.level, "more of the same", extra={"fields": {"kind": each.kind, "lines": each.lines}})

    def _dropped_line(self, lines: int) -> bytes:
        return self._line(_record(logging.WARNING, f"{lines} lines were dropped", {"lines": lines}))

    def _line(self, record: logging.LogRecord) -> bytes:
        try:
            text = self._line_of(record)
        except Exception as exc:
            fields = {"of": record.name, "template": repr(record.msg), "error": type(exc).__name__}
            text = self._line_of(_record(logging.ERROR, "a line could not be made", fields))
        if self.entries is not None:
            return entry_of(record, text)
        if self._journal:
            prefix = f"<{PRIORITIES.get(record.levelno, NORMAL)}>"
            text = prefix + text.replace("\n", "\n" + prefix)
        return text.encode(errors="backslashreplace") + b"\n"


def _record(level: int, message: str, fields: Mapping[str, object]) -> logging.LogRecord:
    made = logging.LogRecord(log.name, level, __file__, 0, message, None, None)
    made.__dict__["fields"] = fields
    return made


class _Stray(io.TextIOBase):
    """Replaces sys.stderr and sys.stdout: output becomes records, line by line."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._rest = ""
        self._lock = threading.RLock()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            if len(self._rest) > STRAY_CHARS:
                lines.append(self._rest)
                self._rest = ""
        for line in lines:
            if line.strip():
                log_limited(log, self._name, line[:STRAY_CHARS], {"to": self._name}, logging.WARNING)
        return len(text)


def _log_thread_crash(crash: threading.ExceptHookArgs) -> None:
    if crash.exc_value is not None:
        error = (crash.exc_type, crash.exc_value, crash.exc_traceback)
        log.error("a thread crashed", exc_info=error)


def _log_unraisable(found: "sys.UnraisableHookArgs") -> None:
    if found.exc_value is not None:
        fields = {"where": found.err_msg or ""}
        log.error("nobody took an error", exc_info=found.exc_value, extra={"fields": fields})


_handler: LogHandler | None = None


def log_statistics() -> LogStatistics:
    """The counters of this process's log; zeros if none is set up."""
    return _handler.statistics() if _handler is not None else LogStatistics()


def change_log(log_format: LogFormat, level: str) -> None:
    """Another format and another level hold from now on, if this process's log is set up."""
    if _handler is not None:
        _handler.change_format(_formatter_of(log_format, stamped=_handler.entries is None))
        log.setLevel(level.upper())


def _formatter_of(log_format: LogFormat, *, stamped: bool) -> logging.Formatter:
    return JsonFormatter() if log_format == "json" else TextFormatter(stamped=stamped)


@contextlib.contextmanager
def daemon_log(log_format: LogFormat, level: str) -> Iterator[None]:
    """Have the log of this process inside the block: to standard error, or to systemd's journal if that reads it anyway.

    At the end its last lines are written within FLUSH_S, or never, and the former logging is restored. If nobody reads,
    the former logging is not restored, since its next line on standard error would wait for ever.
    """
    global _handler
    fd = os.dup(STDERR)  # our own descriptor, even if 2 is closed
    journal = is_journal(fd)
    # A pipe that stands for the journal is read by something else.
    entries = JournalOutput.open() if journal and stat.S_ISSOCK(os.fstat(fd).st_mode) else None
    formatter = _formatter_of(log_format, stamped=entries is None)
    handler = _handler = LogHandler(fd, formatter, journal=journal, entries=entries)
    root, ours = logging.getLogger(), log
    before = root.handlers[:], ours.handlers[:], root.level, ours.level
    hooks = sys.stdout, sys.stderr, threading.excepthook, sys.unraisablehook
    root.handlers[:], ours.handlers[:] = [handler], []
    root.setLevel(logging.WARNING)  # output of libraries
    ours.setLevel(level.upper())
    sys.stdout, sys.stderr = _Stray("standard output"), _Stray("standard error")
    threading.excepthook, sys.unraisablehook = _log_thread_crash, _log_unraisable
    logging.captureWarnings(True)
    try:
        yield
    finally:
        if handler.finish(FLUSH_S):
            logging.captureWarnings(False)
            sys.stdout, sys.stderr, threading.excepthook, sys.unraisablehook = hooks
            root.handlers[:], ours.handlers[:] = before[:2]
            root.setLevel(before[2])
            ours.setLevel(before[3])
            _handler = None
