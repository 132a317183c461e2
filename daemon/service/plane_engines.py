"""The engines of the data planes, as their counters tell of them: what the metrics show if no engine is in this process.

The counters are a second old at most. Of threads those of the newest plane are shown, which accepts clients; a plane that
drains is in the sums of all.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from bentpipe.daemon.edge.plane import RemotePlane
from bentpipe.daemon.planes.records import THREAD_COUNTERS
from bentpipe.native.engine import EngineStatistics
from bentpipe.native.turns import ThreadTurns, ThreadUse

US = 1e6
"""Microseconds of a second."""
TURNS = ".turns"
"""How the name of one counter of each thread ends."""


class EngineReadings(Protocol):
    """What the metrics and the watch read of an engine; `Engine` has it, too."""

    def statistics(self) -> EngineStatistics: ...  # noqa: D102
    def threads(self) -> Mapping[str, ThreadUse]: ...  # noqa: D102


class PlaneEngines:
    """See EngineReadings. `planes` are those that there are now, the newest last."""

    def __init__(self, planes: Callable[[], Iterable[RemotePlane]]) -> None:
        self._planes = planes
        self._gone = EngineStatistics(0, 0, 0, 0, 0)

    def forget(self, plane: RemotePlane) -> None:
        """The plane is gone; what it has counted stays in the sums."""
        gone, found = self._gone, _statistics_of(plane)
        self._gone = EngineStatistics(
            *(0, 0, gone.pipe_fallbacks + found.pipe_fallbacks),
            *(gone.spliced_bytes + found.spliced_bytes, gone.copied_bytes + found.copied_bytes),
        )

    def statistics(self) -> EngineStatistics:
        """See EngineReadings: all planes together, also those that are gone."""
        found = [self._gone, *map(_statistics_of, self._planes())]
        return EngineStatistics(
            sum(each.live for each in found),
            sum(each.pipes_open for each in found),
            sum(each.pipe_fallbacks for each in found),
            sum(each.spliced_bytes for each in found),
            sum(each.copied_bytes for each in found),
        )

    def threads(self) -> Mapping[str, ThreadUse]:
        """See EngineReadings: also the threads that are not the engine's."""
        newest = next(iter(reversed(tuple(self._planes()))), None)
        return {} if newest is None else _threads_of(newest.counters)


def _threads_of(counters: Mapping[str, int]) -> dict[str, ThreadUse]:
    begin = len(THREAD_COUNTERS)
    names = [
        each[begin : -len(TURNS)] for each in counters if each.startswith(THREAD_COUNTERS) and each.endswith(TURNS)
    ]
    return {name: _thread_of(counters, f"{THREAD_COUNTERS}{name}") for name in names}


def _thread_of(counters: Mapping[str, int], thread: str) -> ThreadUse:
    turns, long_turns, longest_us, running_us, cpu_us = (
        counters.get(f"{thread}.{each}", 0) for each in ("turns", "long_turns", "longest_us", "running_us", "cpu_us")
    )
    return ThreadUse(ThreadTurns(turns, long_turns, longest_us / US, running_us / US), cpu_us / US)


def _statistics_of(plane: RemotePlane) -> EngineStatistics:
    fields = ("live", "pipes_open", "pipe_fallbacks", "spliced_bytes", "copied_bytes")
    return EngineStatistics(*(plane.counters.get(f"engine.{field}", 0) for field in fields))
