"""The engines of the data planes, as their counters tell of them: what the metrics show if no engine is in this process.

The counters are a second old at most. Of threads those of the newest plane are shown, which accepts clients; a plane that
drains is in the sums of all.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from bentpipe.daemon.edge.plane import RemotePlane
from bentpipe.native.engine import EngineStatistics, ThreadTurns

US = 1e6
"""Microseconds of a second."""


class EngineReadings(Protocol):
    """What the metrics and the watch read of an engine; `Engine` has it, too."""

    def statistics(self) -> EngineStatistics: ...  # noqa: D102
    def thread_turns(self) -> tuple[ThreadTurns, ...]: ...  # noqa: D102
    def thread_cpu_s(self) -> tuple[float, ...]: ...  # noqa: D102


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

    def thread_turns(self) -> tuple[ThreadTurns, ...]:
        """See EngineReadings."""
        return tuple(
            ThreadTurns(
                *(self._read(f"thread.{number}.turns"), self._read(f"thread.{number}.long_turns")),
                longest_s=self._read(f"thread.{number}.longest_us") / US,
                running_s=self._read(f"thread.{number}.running_us") / US,
            )
            for number in range(self._threads())
        )

    def thread_cpu_s(self) -> tuple[float, ...]:
        """See EngineReadings."""
        return tuple(self._read(f"thread.{number}.cpu_us") / US for number in range(self._threads()))

    @property
    def _newest(self) -> RemotePlane | None:
        return next(iter(reversed(tuple(self._planes()))), None)

    def _read(self, name: str) -> int:
        return 0 if self._newest is None else self._newest.counters.get(name, 0)

    def _threads(self) -> int:
        number = 0
        while self._newest is not None and f"thread.{number}.turns" in self._newest.counters:
            number += 1
        return number


def _statistics_of(plane: RemotePlane) -> EngineStatistics:
    fields = ("live", "pipes_open", "pipe_fallbacks", "spliced_bytes", "copied_bytes")
    return EngineStatistics(*(plane.counters.get(f"engine.{field}", 0) for field in fields))
