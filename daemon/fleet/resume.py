"""Finds out whether a wake was a true resume. It is measured and never assumed: a provider only knows what it was asked to
do.

The satellite may offer its kernel's boot id, which is kept over a resume and new at every boot, or its uptime. The fleet
does not ask for it itself: the edge passes a `ReadBootInfo` in.
"""

import dataclasses
from collections.abc import Awaitable, Callable

import trio

from bentpipe.daemon.model import Address, Resume, SatelliteKey

BOOT_INFO_DEADLINE_S = 10.0
"""Deadline of the satellite's answer. Clients do not wait for it."""
UPTIME_SLACK_S = 2.0
"""If a machine was up for longer than this before it was asked to start, it was not booted for that start."""


@dataclasses.dataclass(frozen=True, slots=True)
class BootInfo:
    """What a satellite tells of its kernel. Either value may be missing."""

    boot_id: str = ""
    uptime_s: float | None = None


ReadBootInfo = Callable[[SatelliteKey, Address], Awaitable[BootInfo | None]]
"""Asks a satellite that is ready; None if it offers nothing or cannot be asked. Must not raise an Exception. Cancelled
after BOOT_INFO_DEADLINE_S."""


def judge(before: BootInfo | None, after: BootInfo | None, since_start_s: float | None) -> Resume:
    """Compare what it told when it was last awake with what it tells now, this long after our start (None: not ours)."""
    if after is None:
        return Resume.UNKNOWN
    if before is not None and before.boot_id and after.boot_id:
        return Resume.RESUMED if before.boot_id == after.boot_id else Resume.COLD
    if after.uptime_s is None or since_start_s is None:
        return Resume.UNKNOWN
    return Resume.RESUMED if after.uptime_s > since_start_s + UPTIME_SLACK_S else Resume.COLD


class ResumeDetector:
    """What one satellite has told, from one wake to the next. Times are trio.current_time() seconds."""

    def __init__(self, key: SatelliteKey, read_boot_info: ReadBootInfo | None) -> None:
        self._key = key
        self._read_boot_info = read_boot_info
        self._last: BootInfo | None = None
        self._asked_at: float | None = None

    def start_asked(self, now: float) -> None:
        """We start it now, from sleep."""
        self._asked_at = now

    async def recognises(self, address: Address) -> bool:
        """Whether the machine at `address` has the boot id that the satellite had when it was woken. Never raises."""
        if self._read_boot_info is None or self._last is None or not self._last.boot_id:
            return False
        with trio.move_on_after(BOOT_INFO_DEADLINE_S):
            found = await self._read_boot_info(self._key, address)
            return found is not None and found.boot_id == self._last.boot_id
        return False

    async def detect(self, address: Address) -> Resume:
        """Ask a satellite that has just become ready. Takes BOOT_INFO_DEADLINE_S at most; never raises."""
        asked_at, self._asked_at = self._asked_at, None
        info: BootInfo | None = None
        if self._read_boot_info is not None:
            with trio.move_on_after(BOOT_INFO_DEADLINE_S):
                info = await self._read_boot_info(self._key, address)
        since_start_s = None if asked_at is None else trio.current_time() - asked_at
        found = judge(self._last, info, since_start_s)
        self._last = info or self._last
        return found
