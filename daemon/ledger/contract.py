"""The contract between the daemon and its ledger: who was in which state, from when to when, and why.

The ledger is a chain of intervals per satellite. Its laws, which `tests/beds/contracts/ledger.py` has as tests:

1. No overlaps, no holes: an interval begins at the very moment at which the one before it ended; only the last is open.
2. Nothing lies in the future. If the wall clock steps back, what was recorded past the new time is drawn in to it.
3. How long an interval lasted is measured by the boot clock, so a step of the wall clock changes no sum.
4. What nobody watched is UNKNOWN: after a crash the open intervals end at the last sign of life, not at the restart.
   What the configuration no longer names is OFFLINE.
5. Who called `begin` last keeps the books: a daemon that was taken over gets StoreUnusable and writes nothing more.
6. A change is recorded once: serial numbers make it harmless to repeat a call that failed half-way.

Changes are atomic: whatever kills the process or cancels the call, each is in the ledger wholly or not at all, and so
is a beginning of those that were to be recorded. Where several hosts share a fleet, each keeps books of its own under
these laws, and who reads gets one chain a satellite (see `merge`).
"""

import dataclasses
import time
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol, Self

from bentpipe.daemon.model import NO_WAITS, Resume, SatelliteKey, SatelliteState, Waits, WakePhase
from bentpipe.daemon.store.malformed import MalformedRow, number_of, text_of, whole_of

STOPPED = "the daemon stopped"
ENDED_BADLY = "the daemon was gone without a word"
NOT_CONFIGURED = "not in the configuration"
CAUSE_CHARS = 500
"""Longest cause that is kept: some are a provider's own words."""


def storable(words: str) -> str:
    """What a provider says may hold half a surrogate pair, which no store takes."""
    return words[:CAUSE_CHARS].encode(errors="replace").decode()


def _read_boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(uuid.uuid4())


BOOT_ID = _read_boot_id()
"""Names this boot of the machine: boot clocks are comparable within one. Unreadable: within this process only."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stamp:
    """One moment on two clocks: microseconds since the epoch (UTC), and since boot, suspension included."""

    wall_us: int
    boot_us: int
    boot_id: str

    @classmethod
    def now(cls) -> Self:
        """This moment."""
        return cls(time.time_ns() // 1000, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000, BOOT_ID)

    def until_us(self, later: "Stamp") -> int:
        """Time that passed to `later`; by the wall clock only if the machine was booted in between. Never negative."""
        if self.boot_id == later.boot_id:
            return max(0, later.boot_us - self.boot_us)
        return max(0, later.wall_us - self.wall_us)


def stamp_of(wall_us: object, boot_us: object, boot_id: object) -> Stamp:
    """Read a stamp's columns, whatever is in them. Raises MalformedRow."""
    return Stamp(whole_of(wall_us, "wall_us"), whole_of(boot_us, "boot_us"), text_of(boot_id, "boot_id"))


def phases_of(phases: object) -> tuple[tuple[WakePhase, float], ...]:
    """Read phases by name, whatever they are. Raises MalformedRow, ValueError (no such phase)."""
    if not isinstance(phases, dict):
        raise MalformedRow("phases is no table")
    return tuple((WakePhase(phase), number_of(seconds, "phases")) for phase, seconds in phases.items())


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A satellite's new state. `serial` rises with every change of one run of the daemon.

    `phases`, `waits` and `resume` belong to the interval that ends with this change, `cause` and `who` to the one that
    begins.
    """

    serial: int
    key: SatelliteKey
    state: SatelliteState
    at: Stamp
    cause: str
    who: str = ""
    phases: tuple[tuple[WakePhase, float], ...] = ()
    waits: Waits = NO_WAITS
    resume: Resume = Resume.UNKNOWN


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of one state. An open one ends, for a reader, at the ledger's last sign of life."""

    key: SatelliteKey
    state: SatelliteState
    from_us: int
    to_us: int
    elapsed_us: int
    """How long it really lasted; differs from `to_us - from_us` if the wall clock was stepped meanwhile."""
    cause: str
    who: str
    phases: tuple[tuple[WakePhase, float], ...]
    waits: Waits
    is_open: bool
    resume: Resume = Resume.UNKNOWN
    """Of OPERATIONAL: what the wake before it found of the machine's memory."""


class Ledger(Protocol):
    """Keeps the books of one daemon. Every method raises StoreError (StoreUnusable if it is no use to try again)."""

    async def begin(self, keys: Collection[SatelliteKey], at: Stamp) -> None:
        """Open the books for these satellites, all UNKNOWN, and close what a crash left open. Starts a new run.

        Called once before all else but `intervals`; may be repeated if it failed.
        """
        ...

    async def record(self, changes: Sequence[Change]) -> None:
        """Write changes, in their order. If it fails some may be written; those already recorded are passed over."""
        ...

    async def beat(self, at: Stamp) -> None:
        """Write a sign of life: all that was to be recorded until now is."""
        ...

    async def end(self, at: Stamp) -> None:
        """Close the books: from now on nobody watches, every satellite is UNKNOWN."""
        ...

    async def intervals(self, since_us: int, until_us: int) -> list[Interval]:
        """All intervals that touch the span, whole, in the order of satellites and of the chain."""
        ...

    async def aclose(self) -> None:
        """Give up what is held open; nothing may be called afterwards."""
        ...
