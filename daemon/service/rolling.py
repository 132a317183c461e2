"""Adds up the ledger's past days, then runs of days, deletes intervals that are old, and forgets days that are too old.

It takes one step at a time, with pauses. A day is added up outside the Trio thread. That takes some tens of milliseconds of
Python's time, so a ledger of a year, which an upgrade may find, is added up over hours.
"""

import logging
import time

import trio

from bentpipe.config.store import StoreSection
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.ledger.contract import DAY_US, SETTLE_US, DaySums, Interval, RolledLedger, RolledState
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.report.days import add_up, write_day
from bentpipe.daemon.report.tally import tallies_of

log = logging.getLogger("bentpipe.ledger")

FIRST_S = 60.0
"""After the start, which is busy enough."""
STEP_EACH_S = 10.0
"""Between two steps."""
LOOK_S = 3600.0
"""Between looks at whether a day is over."""


class Rolling:
    """`run_rolling` must run."""

    def __init__(self, ledger: RolledLedger, section: StoreSection) -> None:
        self._ledger = ledger
        self._section = section
        self._asked = trio.Event()

    def follow(self, section: StoreSection) -> None:
        """Other times hold from now on, and it looks at once whether anything is due by them."""
        if (section.deleted_after_s, section.keep_s) != (self._section.deleted_after_s, self._section.keep_s):
            self._asked.set()
        self._section = section

    async def run_rolling(self) -> None:
        """Roll up until cancelled. While the store fails, it tries again at the next look."""
        await trio.sleep(FIRST_S)
        while True:
            self._asked = trio.Event()
            try:
                more = await roll_up_step(self._ledger, self._section, time.time_ns() // 1000)
            except StoreError as exc:
                log.warning("a day of the ledger could not be rolled up", extra={"fields": {"error": str(exc)}})
                more = False
            with trio.move_on_after(STEP_EACH_S if more else LOOK_S):
                await self._asked.wait()


async def roll_up_step(ledger: RolledLedger, section: StoreSection, now_us: int) -> bool:
    """Do the next thing that is due. Returns whether there was any. Raises StoreError."""
    if section.keep_s:
        await ledger.forget_days(now_us - int(section.keep_s * 1e6))
    state = await ledger.rolled()
    if state is None:
        return False
    detail_us = int(section.deleted_after_s * 1e6)
    clear_us = (now_us - detail_us) // DAY_US * DAY_US if detail_us else 0
    if min(clear_us, state.until_us) > state.cleared_us:
        await ledger.clear(clear_us)
        return True
    return await _add_day(ledger, state, now_us) or await _add_run(ledger)


async def _add_day(ledger: RolledLedger, state: RolledState, now_us: int) -> bool:
    day_us = state.until_us
    if day_us + DAY_US + SETTLE_US > min(now_us, await ledger.settled_us()):
        return False
    intervals = await ledger.day(day_us)
    await ledger.roll_up(day_us, await trio.to_thread.run_sync(_day_sums, intervals, day_us))
    return True


async def _add_run(ledger: RolledLedger) -> bool:
    found = await ledger.next_parts()
    if found is None:
        return False
    days, begin_us, parts = found
    await ledger.add_run(days, begin_us, await trio.to_thread.run_sync(_run_sums, parts))
    return True


def _day_sums(intervals: list[Interval], day_us: int) -> dict[SatelliteKey, str]:
    """Each satellite's sums, as they are stored."""
    return {key: write_day(tally) for key, tally in tallies_of(intervals, day_us, day_us + DAY_US).items()}


def _run_sums(parts: list[DaySums]) -> dict[SatelliteKey, str]:
    return {key: write_day(tally) for key, tally in add_up(parts).items()}
