"""Looks: what may wait for the machine, each in a thread of its own. Answers read the last result and its age."""

from __future__ import annotations

import collections
import sys
import threading
import time
from typing import Callable, Generic, TypeVar

from bentpipe.daemon.responder.scheduling import real_time
from bentpipe.daemon.responder.wire import Fields, encode_fields

MAX_ERROR_CHARS = 200
MAX_LOG_LINES = 256
"""Lines that wait for a log that does not take them; the oldest are dropped."""
WARNING, INFO = 4, 6
"""Levels of syslog, as sd-daemon(3) reads them from the beginning of a line."""
LOG_RETRY_S = 1.0

Result = TypeVar("Result")
log_lines: collections.deque[str] = collections.deque(maxlen=MAX_LOG_LINES)
log_news = threading.Event()


def log(level: int, text: str) -> None:
    """Say something in the log, without waiting for it."""
    log_lines.append(f"<{level}>{text[:1000]}\n".encode("ascii", "backslashreplace").decode())
    log_news.set()


def write_log() -> None:
    """Write what is to be said, for ever. It is a thread's."""
    while True:
        log_news.wait()
        log_news.clear()
        while log_lines:
            _write_line(log_lines.popleft())


def _write_line(line: str) -> None:
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except OSError:  # the log is full or gone: the line is lost, and the next one is tried later
        time.sleep(LOG_RETRY_S)


def uptime_s() -> float:
    """CLOCK_BOOTTIME, which goes on while the machine is suspended: ages are true after a resume."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def milliseconds(seconds: float) -> int:
    """Of an age or an uptime. Never negative."""
    return max(0, int(seconds * 1000))


class Look(Generic[Result]):
    """One subject, read again and again. A subclass says how (`read`), and what an answer says of it (`fields`)."""

    name = ""
    period_s = 1.0
    deadline_s = 5.0
    """After this, a look that has not returned is reported as an error; nothing can end it."""

    def __init__(self) -> None:
        self.result: Result | None = None
        self.done_at: float | None = None
        self.began_at: float | None = None
        self.error = "no look has been made"
        self.stopped = threading.Event()

    def read(self) -> Result:
        """Look. Raises OSError and others, which are reported."""
        raise NotImplementedError

    def fields(self, result: Result, now: float) -> Fields:
        """The fields of the section, from number 2 on. It must not wait."""
        raise NotImplementedError

    def wait(self) -> None:
        """Wait for the time of the next look."""
        self.stopped.wait(self.period_s)

    def look(self) -> None:
        """Look once."""
        self.began_at = uptime_s()
        try:
            self.result = self.read()
        except Exception as exc:  # a look that fails is reported, and ends nothing
            error = f"{type(exc).__name__}: {exc}"[:MAX_ERROR_CHARS]
            if error != self.error:
                log(WARNING, f"{self.name}: {error}")
            self.error = error
        else:
            self.done_at, self.error = uptime_s(), ""
        self.began_at = None

    def run(self) -> None:
        """Look for ever."""
        while not self.stopped.is_set():
            self.look()
            self.wait()

    def age_s(self, now: float) -> float | None:
        """Since the last look that succeeded."""
        done_at = self.done_at
        return None if done_at is None else now - done_at

    def state(self, now: float) -> str:
        """What is wrong with the newest look, or nothing."""
        began_at = self.began_at
        if began_at is not None and now - began_at > self.deadline_s:
            return f"the look has run for {int(now - began_at)} s"
        return self.error

    def section(self, now: float) -> bytes:
        """The section of an answer."""
        age_s, result = self.age_s(now), self.result
        look: Fields = [(1, None if age_s is None else milliseconds(age_s)), (2, self.state(now))]
        fields: Fields = [(1, encode_fields(look))]
        if age_s is not None and result is not None:
            fields += self.fields(result, now)
        return encode_fields(fields)


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread that does not outlive the program, with the priority of the others."""

    def run() -> None:
        real_time.ask()
        target()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
