"""Log lines on their way out: a bounded queue, and one thread that writes it. No other thread ever waits for a reader.

A thread that logs takes a lock, which is never held over a system call.
The writing thread is a daemon thread: if it is stuck in write(2), the process can still end.
"""

import collections
import contextlib
import dataclasses
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

QUEUE_LINES = 10_000
QUEUE_BYTES = 4 << 20
"""Bytes that wait at most while nobody reads: some minutes of a busy daemon."""
LESS_URGENT = 3 / 4
"""The share of the queue for all lines. The rest is for warnings and errors only: other lines must not keep them out."""
WRITE_BYTES = 64 << 10
"""Bytes of waiting lines in one write(2): a pipe's capacity."""
LOOK_S = 1.0
"""Time between two calls of `tick` while there is something to log later."""


@dataclasses.dataclass(frozen=True, slots=True)
class QueueStatistics:
    """Lines since the start; `queued` is now."""

    written: int = 0
    dropped: int = 0
    """Lines that found the queue full, or could not be written."""
    queued: int = 0


class LineOutput(Protocol):
    """Where lines go."""

    def write(self, lines: Sequence[bytes]) -> int:
        """Write them, however long that takes. Returns how many were lost."""
        ...


class FdOutput:
    """Lines one after the other on a descriptor, which it borrows."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, lines: Sequence[bytes]) -> int:
        """See LineOutput. If one is lost, all are counted."""
        rest = memoryview(b"".join(lines))
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                # Another process that shares the open file has made it non-blocking (fcntl(2): a flag of the file).
                with contextlib.suppress(OSError):
                    poll = select.poll()
                    poll.register(self._fd, select.POLLOUT)
                    poll.poll()
            except OSError:
                return len(lines)
        return 0


class LogQueue:
    """Writes lines to `output`.

    `dropped_line` makes the line that says how many were dropped; `tick` is called by the thread every LOOK_S.
    """

    def __init__(self, output: LineOutput, dropped_line: Callable[[int], bytes], tick: Callable[[], None]) -> None:
        self._output = output
        self._dropped_line = dropped_line
        self._tick = tick
        # An RLock: a finaliser that the garbage collector runs inside `put` may log too.
        self._changed = threading.Condition(threading.RLock())
        self._lines: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._writing = 0
        self._written = self._dropped = self._told = 0
        self._idle = False
        self._thread = threading.Thread(target=self._run, name="bp-log", daemon=True)
        self._thread.start()

    def statistics(self) -> QueueStatistics:
        """The counters now."""
        with self._changed:
            return QueueStatistics(self._written, self._dropped, len(self._lines) + self._writing)

    def is_full(self, *, urgent: bool) -> bool:
        """Whether `put` would drop a small line; for a caller that would have to make the line first."""
        share = 1.0 if urgent else LESS_URGENT
        return len(self._lines) >= QUEUE_LINES * share or self._bytes >= QUEUE_BYTES * share

    def put(self, line: bytes, *, urgent: bool) -> None:
        """Queue a line, or drop and count it. Never waits for a reader, never raises."""
        with self._changed:
            if self.is_full(urgent=urgent):
                self._dropped += 1
                return
            self._tell_dropped()
            self._append(line)
            if self._idle:
                self._changed.notify_all()

    def drop(self) -> None:
        """Count a line that was not even made."""
        with self._changed:
            self._dropped += 1

    def flush(self, deadline_s: float) -> bool:
        """Wait until all queued lines are written, `deadline_s` at most.

        Returns whether they are. For the end of the process.
        """
        until = time.monotonic() + deadline_s
        with self._changed:
            while self._lines or self._writing:
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def _tell_dropped(self) -> None:
        """Put a line in the place of the dropped lines, now that there is room again."""
        if self._dropped > self._told:
            missing, self._told = self._dropped - self._told, self._dropped
            self._append(self._dropped_line(missing))

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._bytes += len(line)

    def _run(self) -> None:
        while True:
            batch = self._take()
            lost = self._output.write(batch) if batch else 0
            with self._changed:
                self._written += len(batch) - lost
                self._dropped += lost
                self._writing = 0
                self._changed.notify_all()
            if lost:
                time.sleep(LOOK_S)  # a full disk, or no reader at the other end: neither ends at once
            else:
                self._tick()

    def _take(self) -> list[bytes]:
        """The next lines to write; none after LOOK_S without any."""
        with self._changed:
            if not self._lines:
                self._tell_dropped()
            if not self._lines:
                self._idle = True
                self._changed.wait(LOOK_S)
                self._idle = False
            batch: list[bytes] = []
            size = 0
            while self._lines and size < WRITE_BYTES:
                batch.append(self._lines.popleft())
                size += len(batch[-1])
            self._bytes -= size
            self._writing = len(batch)
            return batch
