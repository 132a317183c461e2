"""Which sums a report of many days needs: those of 64, 16 or 4 days at once, and single days at both ends. Pure.

A run of n days begins at a day whose number since the epoch is a multiple of n, so a longer run always consists of whole
shorter ones. A year has at most some 20 runs instead of 365 days.
"""

import dataclasses
from collections.abc import Mapping

from bentpipe.daemon.ledger.contract import DAY_US

RUN_DAYS = (64, 16, 4)
"""How many days are added up at once, longest first. Each is four of the next shorter run, the last of four days."""
RUN_PARTS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """Some days that are added up at once, or one."""

    days: int
    begin_us: int

    @property
    def end_us(self) -> int:
        """Where it ends."""
        return self.begin_us + self.days * DAY_US


def run_begin_us(days: int, at_us: int) -> int:
    """The begin of the run of so many days that contains a moment."""
    return at_us // (days * DAY_US) * days * DAY_US


def runs_within(begin_us: int, end_us: int, known: Mapping[int, tuple[int, int]]) -> list[Run]:
    """The fewest runs that are a span of whole days. `known` says for each length from when until when there are such
    runs; there are sums of single days for all of the span."""
    found: list[Run] = []
    at_us = begin_us
    while at_us < end_us:
        run = next((run for run in _longest_first(at_us) if run.end_us <= end_us and _is_known(run, known)), None)
        run = run or Run(1, at_us)
        found.append(run)
        at_us = run.end_us
    return found


def _longest_first(at_us: int) -> list[Run]:
    return [Run(days, at_us) for days in RUN_DAYS if run_begin_us(days, at_us) == at_us]


def _is_known(run: Run, known: Mapping[int, tuple[int, int]]) -> bool:
    if run.days not in known:
        return False
    from_us, until_us = known[run.days]
    return from_us <= run.begin_us and run.end_us <= until_us
