"""Measures the Trio thread's turns: how long it ran tasks before it looked for I/O again.

While a turn lasts, the thread reads no client, answers no PING and keeps no deadline. Long turns are only counted.
"""

import dataclasses
import time

import trio

LONG_TURN_S = 0.05
"""Nobody notices if a held client's PING, or a new client's first byte, waits this long."""


@dataclasses.dataclass(frozen=True, slots=True)
class TurnStatistics:
    """Since the start."""

    turns: int
    busy_s: float
    long_turns: int
    """Turns of over LONG_TURN_S."""
    longest_s: float
    longest_cpu_s: float
    """The most CPU time of one turn. If it is far below `longest_s`, other threads kept this one from its core."""


class TurnMeter(trio.abc.Instrument):
    """Install it with `trio.lowlevel.add_instrument`."""

    def __init__(self) -> None:
        self._began_s, self._began_cpu_s = time.perf_counter(), time.thread_time()
        self._turns = self._long_turns = 0
        self._busy_s = self._longest_s = self._longest_cpu_s = 0.0

    def after_io_wait(self, timeout: float) -> None:
        """Trio calls this when a turn begins."""
        self._began_s, self._began_cpu_s = time.perf_counter(), time.thread_time()

    def before_io_wait(self, timeout: float) -> None:
        """Trio calls this when a turn has ended."""
        took_s = time.perf_counter() - self._began_s
        self._turns += 1
        self._busy_s += took_s
        self._longest_s = max(self._longest_s, took_s)
        self._longest_cpu_s = max(self._longest_cpu_s, time.thread_time() - self._began_cpu_s)
        self._long_turns += took_s > LONG_TURN_S

    def statistics(self) -> TurnStatistics:
        """The counters now."""
        return TurnStatistics(self._turns, self._busy_s, self._long_turns, self._longest_s, self._longest_cpu_s)
