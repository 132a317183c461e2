"""In which condition an awake satellite is, by its newest reading: a busy one is told from one that cannot answer. Pure.

Nothing is done about a condition: a satellite that is slow under a build must not be stopped for that. It is for people.
"""

import enum
from collections.abc import Iterable

from bentpipe.daemon.model import Peaks
from bentpipe.daemon.readings.reading import Reading, Stall, Stalls

BUSY_PERCENT = 60.0
"""Of the last 10 s: more waiting for CPU or IO than that is felt by everybody on the machine."""
BUSY_MEMORY_PERCENT = 20.0
"""For memory less is needed: a machine that waits for memory a fifth of the time is thrashing."""
FULL_DISK = 0.95
"""Share of the cache's file system, or of its inodes."""
SILENT_AFTER = 2
"""Readings in a row that fail before the satellite counts as silent: one may be lost to a burst."""


class Condition(enum.Enum):
    """The condition of an awake satellite; the value is for the log, the metrics and the API."""

    UNKNOWN = "unknown"
    """It was not read yet."""
    WELL = "well"
    BUSY = "busy"
    """It answers, and its tasks wait for CPU, memory or IO."""
    FULL = "full"
    """It answers, and its cache's disk has no room."""
    DEAF = "deaf"
    """The responder answers, and BuildKit does not: builds cannot work, though the machine is up."""
    SILENT = "silent"
    """Not even the responder answers, though the machine is up and its slice should always run."""


def condition_of(reading: Reading) -> Condition:
    """Judge a reading; what keeps builds from working comes first."""
    if reading.running is None:
        return Condition.DEAF
    if reading.disk is not None and max(reading.disk.used, reading.disk.inodes_used) >= FULL_DISK:
        return Condition.FULL
    return Condition.BUSY if _is_busy(_stalls_of(reading)) else Condition.WELL


def after_failures(before: Condition, failures: int) -> Condition:
    """The condition after this many readings in a row that failed."""
    return Condition.SILENT if failures >= SILENT_AFTER else before


def peaks_of(reading: Reading) -> Peaks:
    """The shares of the last 10 s in which some task waited, on the whole machine or in its builds."""
    stalls = _stalls_of(reading)
    return Peaks(
        _highest(each.cpu for each in stalls),
        _highest(each.memory for each in stalls),
        _highest(each.io for each in stalls),
    )


def _highest(stalls: Iterable[Stall | None]) -> float:
    return max((each.some_percent for each in stalls if each is not None), default=0.0)


def _stalls_of(reading: Reading) -> list[Stalls]:
    return [each.stalls for each in (reading.machine, reading.builds) if each is not None]


def _is_busy(stalls: Iterable[Stalls]) -> bool:
    for each in stalls:
        if each.memory is not None and each.memory.some_percent >= BUSY_MEMORY_PERCENT:
            return True
        if any(found is not None and found.some_percent >= BUSY_PERCENT for found in (each.cpu, each.io)):
            return True
    return False
