"""Rolls up the ledger's old days, one at a time and with pauses, and forgets those that are too old.

A day is added up outside the Trio thread. That takes some tens of milliseconds of Python's time, so a ledger of a year,
which an upgrade may find, is rolled up over hours.
"""

import itertools
import logging
import time

import trio

from bentpipe.config.model import StoreSection
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.ledger.contract import DAY_US, Interval, RolledLedger
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.report.days import write_day
from bentpipe.daemon.report.tally import tally_of

log = logging.getLogger("bentpipe.ledger")

FIRST_S = 60.0
"""After the start, which is busy enough."""
DAY_EACH_S = 10.0
"""Between two old days."""
LOOK_S = 3600.0
"""Between looks at whether a day has become old."""


async def run_rolling(ledger: RolledLedger, section: StoreSection) -> None:
    """Roll up until cancelled. While the store fails, it tries again at the next look."""
    await trio.sleep(FIRST_S)
    while True:
        try:
            more = await roll_up_day(ledger, section, time.time_ns() // 1000)
        except StoreError as exc:
            log.warning("a day of the ledger could not be rolled up", extra={"fields": {"error": str(exc)}})
            more = False
        await trio.sleep(DAY_EACH_S if more else LOOK_S)


async def roll_up_day(ledger: RolledLedger, section: StoreSection, now_us: int) -> bool:
    """Roll up the oldest day, if it is old enough. Returns whether it did. Raises StoreError."""
    if section.keep_s:
        await ledger.forget_days(now_us - int(section.keep_s * 1e6))
    day_us = await ledger.rolled_until_us()
    if not section.detail_s or day_us is None or day_us + DAY_US > now_us - int(section.detail_s * 1e6):
        return False
    intervals = await ledger.oldest(day_us + DAY_US)
    sums = await trio.to_thread.run_sync(_sums_of, intervals, day_us)
    await ledger.roll_up(day_us, sums)
    return True


def _sums_of(intervals: list[Interval], day_us: int) -> dict[SatelliteKey, str]:
    """Each satellite's sums, as they are stored. A satellite that was not configured all day has none."""
    sums = {}
    for key, group in itertools.groupby(intervals, key=lambda interval: interval.key):
        chain = list(group)
        if any(interval.state is not SatelliteState.OFFLINE for interval in chain):
            sums[key] = write_day(tally_of(chain, day_us, day_us + DAY_US))
    return sums
