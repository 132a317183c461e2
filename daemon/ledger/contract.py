"""The ledger's contract: which satellite was in which state, from when to when, and why.

A ledger is a chain of intervals for each satellite. `tests/beds/contracts/ledger.py` tests these laws:

1. No overlaps and no holes: an interval begins at the very moment at which the one before it ended. Only the last is open.
2. Nothing lies in the future. If the wall clock steps back, what was recorded past the new time is moved to it.
3. The boot clock measures how long an interval lasted, so a step of the wall clock changes no sum.
4. What no daemon watched is UNKNOWN: after a crash the open intervals end at the last heartbeat, not at the restart.
   But a satellite that was OPERATIONAL or about to be, and that clients have used all the while, goes on: their connections
   are the proof.
   A satellite that the configuration no longer names is OFFLINE.
5. One daemon writes. The run that called `begin` last may write; every earlier run gets LedgerTakenOver from then on.
6. A transition is recorded once: it has a serial number, so a call that failed half-way can be repeated.

Transitions are atomic: whatever kills the process or cancels the call, each one is wholly in the ledger or not at all. What
was written of a batch is a beginning of it. Where several hosts share a fleet, each host has chains of its own under these
laws, and a reader gets one chain for each satellite (see `merge`).
"""

import dataclasses
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

from bentpipe.daemon.errors import StoreUnusable
from bentpipe.daemon.model import NO_FACTS, SatelliteKey, SatelliteState, StateFacts, Transition
from bentpipe.daemon.store.malformed import text_of, whole_of

STOPPED = "the daemon stopped"
ENDED_BADLY = "the daemon was gone without a word"
NOT_CONFIGURED = "not in the configuration"
NOT_LOOKED_AT = "not looked at yet"
CAUSE_CHARS = 500
"""Longest cause that is kept, in characters: some causes are a provider's own words."""


class LedgerTakenOver(StoreUnusable):
    """Another run of the daemon has called `begin` since, and only that one may write."""

    def __init__(self) -> None:
        super().__init__("another daemon keeps this ledger now")


def storable(words: str) -> str:
    """Cut the words to CAUSE_CHARS and replace half a surrogate pair, which a provider may send and no store takes."""
    return words[:CAUSE_CHARS].encode(errors="replace").decode()


def _read_boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(uuid.uuid4())


BOOT_ID = _read_boot_id()
"""Names this boot of the machine: boot clocks can be compared within one boot. If unreadable, it names this process."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stamp:
    """One moment on two clocks, in microseconds: since the epoch (UTC), and since boot (time in suspension included)."""

    wall_us: int
    boot_us: int
    boot_id: str

    @classmethod
    def now(cls) -> Self:
        """This moment."""
        return cls(time.time_ns() // 1000, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000, BOOT_ID)

    def until_us(self, later: "Stamp") -> int:
        """Microseconds until `later`, by the wall clock only if the machine was booted in between. Never negative."""
        if self.boot_id == later.boot_id:
            return max(0, later.boot_us - self.boot_us)
        return max(0, later.wall_us - self.wall_us)


def stamp_of(wall_us: object, boot_us: object, boot_id: object) -> Stamp:
    """Check a stamp's columns, whatever they hold. Raises MalformedRow."""
    return Stamp(whole_of(wall_us, "wall_us"), whole_of(boot_us, "boot_us"), text_of(boot_id, "boot_id"))


@dataclasses.dataclass(frozen=True, slots=True)
class StampedTransition:
    """A transition as the ledger records it: with its moment, and a serial number that rises within a run of the daemon.

    Its cause and its principal belong to the interval that begins, its facts to the interval that ends.
    """

    serial: int
    at: Stamp
    transition: Transition


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of one state. For a reader, an open interval ends at the ledger's last heartbeat."""

    key: SatelliteKey
    state: SatelliteState
    from_us: int
    to_us: int
    elapsed_us: int
    """How long it really lasted; differs from `to_us - from_us` if the wall clock was stepped meanwhile."""
    cause: str
    who: str
    is_open: bool
    facts: StateFacts = NO_FACTS


DAY_US = 86_400_000_000
"""A day of UTC, in microseconds."""
SETTLE_US = 3_600_000_000
"""How long after its end a day is added up, and how far around it a chain is read: a wake or a short run that goes over
midnight is known whole by then."""


@dataclasses.dataclass(frozen=True, slots=True)
class DaySums:
    """The sums of a satellite over a day of UTC, or over some days, from `day_us`, as `report/days.py` writes them."""

    key: SatelliteKey
    day_us: int
    sums: str


@dataclasses.dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a span, with the intervals that touch it or begin or end up to SETTLE_US beyond its ends."""

    since_us: int
    until_us: int
    intervals: list[Interval]


@dataclasses.dataclass(frozen=True, slots=True)
class LedgerSpan:
    """What a ledger has of a span of time, read at one moment: stretches of intervals, and between them sums.

    `since_us` is the begin that was asked for, or that of its UTC day if only the day's sums are left.
    """

    since_us: int
    until_us: int
    stretches: tuple[Stretch, ...]
    sums: list[DaySums]
    detail_us: int
    """From here on the ledger has intervals, within the span."""


@dataclasses.dataclass(frozen=True, slots=True)
class RolledState:
    """Until when days are added up, and until when the intervals that had ended were deleted."""

    until_us: int
    cleared_us: int


class RolledLedger(Protocol):
    """A ledger that keeps the sums of past days, and deletes intervals that are old. Every method raises StoreError.

    Up to `until_us` of its state there are sums of whole days. Of intervals that ended by `cleared_us`, only sums are left.
    """

    async def rolled(self) -> RolledState | None:
        """Before the first day is added up, both are the begin of the ledger's first day. None without intervals."""
        ...

    async def settled_us(self) -> int:
        """Up to here all that happened is recorded: the last heartbeat."""
        ...

    async def day(self, day_us: int) -> list[Interval]:
        """What `Stretch` says of this day, in the order of `Ledger.intervals`."""
        ...

    async def days(self, since_us: int, until_us: int) -> list[DaySums]:
        """The sums of all days that begin in the span, in the order of satellites."""
        ...

    async def roll_up(self, day_us: int, sums: Mapping[SatelliteKey, str]) -> None:
        """Keep the sums of the day at which `rolled` ends.

        It may be repeated: a day that is rolled up already is left as it is.
        """
        ...

    async def clear(self, until_us: int) -> None:
        """Delete intervals that have ended by then and of whose days there are sums."""
        ...

    async def next_parts(self) -> tuple[int, int, list[DaySums]] | None:
        """A run of days that can be added up and is not yet: its number of days, its begin, and the sums of its parts."""
        ...

    async def add_run(self, days: int, begin_us: int, sums: Mapping[SatelliteKey, str]) -> None:
        """Keep the sums of the run that `next_parts` has named. It may be repeated."""
        ...

    async def forget_days(self, before_us: int) -> None:
        """Delete the sums of days that begin before this time."""
        ...


class Ledger(Protocol):
    """Records for one daemon. Every method raises StoreError, or StoreUnusable if another attempt would fail too."""

    async def begin(self, keys: Collection[SatelliteKey], at: Stamp, in_use: Collection[SatelliteKey] = ()) -> None:
        """Start a new run: end what a crash left open, and open an UNKNOWN interval for each satellite.

        `in_use` are satellites that clients have used since before the last run ended: law 4.

        Called once, before every other method except `intervals`. It may be repeated if it failed.
        """
        ...

    async def record(self, transitions: Sequence[StampedTransition]) -> None:
        """Write transitions in their order. If it fails, some may be written; a repeated call passes over those."""
        ...

    async def beat(self, at: Stamp) -> None:
        """Write a heartbeat: all that happened until `at` is recorded."""
        ...

    async def end(self, at: Stamp, in_use: Collection[SatelliteKey] = ()) -> None:
        """End the run: from now on no daemon watches, and every satellite is UNKNOWN, except those that are used: law 4."""
        ...

    async def intervals(self, since_us: int, until_us: int) -> list[Interval]:
        """All intervals that touch the span, whole, in the order of satellites and of each chain."""
        ...

    async def span(self, since_us: int, until_us: int) -> LedgerSpan:
        """The same for a report, with sums instead of intervals where there are sums: a year of them is quick to read."""
        ...

    async def aclose(self) -> None:
        """Close files and connections. No method may be called afterwards."""
        ...
