"""Tells the control plane how connections ended that were never offered to it, so that they are in its records too.

Their lines in the log are written by one process alone: by the control plane if it is told, else by this one.
"""

import time
from collections.abc import Callable

from bentpipe.daemon.dataplane.reports import ControlReports
from bentpipe.daemon.planes.bounds import NAME_BYTES, WORDS_BYTES
from bentpipe.daemon.planes.records import LINK_ID, UnofferedRecord
from bentpipe.daemon.records.lines import write_line
from bentpipe.daemon.records.record import Phase, Record

TOLD_PER_S = 200
"""A flood of peers that leave at once must not keep the control plane busy: of more only the counters tell."""


class UnofferedEnds:
    """A sink of the book of records; `clock` returns seconds."""

    def __init__(self, reports: ControlReports, clock: Callable[[], float] = time.monotonic) -> None:
        self._reports = reports
        self._clock = clock
        self._second = 0
        self._told = 0
        self.untold = 0
        """How many of them the control plane was not told of."""

    def note(self, record: Record) -> None:
        """A connection has ended that was never offered."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._told = second, 0
        if not self._reports.may_offer or self._told >= TOLD_PER_S:
            self.untold += 1
            write_line(record)
            return
        self._told += 1
        lasted_s = record.marks[Phase.ENDED] - record.marks[Phase.ACCEPTED]
        self._reports.send(
            UnofferedRecord(
                *(LINK_ID, round(record.wall_s * 1e6), max(0, round(lasted_s * 1e6))),
                *(record.up_bytes, record.down_bytes),
                *(record.peer[: NAME_BYTES // 4], record.end.code, record.error[: WORDS_BYTES // 4]),
            )
        )
