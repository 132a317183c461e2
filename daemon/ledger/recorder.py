"""Carries the fleet's transitions to the ledger: a bounded queue and one task. Never slows or stops routing.

While the ledger fails, transitions wait in the queue and are tried again. Once the queue is full, only each satellite's
newest transition is kept, and the time before it is UNKNOWN: the ledger may lack something, but it says nothing false.
"""

import collections
import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable

import trio

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.ledger.contract import Ledger, Stamp, StampedTransition
from bentpipe.daemon.model import SatelliteKey, SatelliteState, Transition

log = logging.getLogger("bentpipe.store")

QUEUE_LIMIT = 10_000
"""Transitions that wait while the ledger fails; at some hundred bytes each this is a few MiB."""
BATCH_LIMIT = 500
"""Transitions in one call: large enough for a herd, small enough to be written within a second on a slow disk."""
BEAT_S = 10.0
"""Between heartbeats: the time before a crash that becomes UNKNOWN though the daemon watched."""
RETRY_S = 5.0
"""Between attempts while the ledger fails."""
CLOSE_DEADLINE_S = 10.0
"""For what is left to write when the daemon stops."""


@dataclasses.dataclass(frozen=True, slots=True)
class RecorderStatistics:
    """Counts since the start; `queued` is now."""

    recorded: int
    lost: int
    failures: int
    queued: int


@dataclasses.dataclass(slots=True)
class _Missed:
    """What is kept of a satellite's transitions that found the queue full."""

    first: StampedTransition
    newest: StampedTransition
    lost: int = 0


class Recorder:
    """Owns the ledger: `run_recorder` begins it, writes to it, ends and closes it."""

    def __init__(
        self,
        ledger: Ledger,
        keys: Iterable[SatelliteKey],
        *,
        queue_limit: int = QUEUE_LIMIT,
        now: Callable[[], Stamp] = Stamp.now,
    ) -> None:
        self._ledger = ledger
        self._keys = tuple(keys)
        self._queue_limit = queue_limit
        self._now = now
        self._began_at = now()
        self.in_use: Collection[SatelliteKey] = ()
        """Satellites that clients used when the run began; set again before it ends, if their connections outlive it."""
        self._begun = False
        self._queue: collections.deque[StampedTransition] = collections.deque()
        self._missed: dict[SatelliteKey, _Missed] = {}
        self._serial = 0
        self._woken = trio.Event()
        self._failing = ""
        self._recorded = self._lost = self._failures = 0

    @property
    def failing(self) -> str:
        """Why the last attempt to write has failed; "" if it has not."""
        return self._failing

    def statistics(self) -> RecorderStatistics:
        """What was recorded, lost, and failed so far."""
        return RecorderStatistics(self._recorded, self._lost, self._failures, len(self._queue) + len(self._missed))

    def record_nowait(self, transition: Transition) -> None:
        """Take a transition, stamped with this moment. Never blocks, never raises."""
        stamped = StampedTransition(self._next_serial(), self._now(), transition)
        if not self._missed and len(self._queue) < self._queue_limit:
            self._queue.append(stamped)
        elif transition.key in self._missed:
            missed = self._missed[transition.key]
            missed.newest = stamped
            missed.lost += 1
            self._lost += 1
        else:
            self._missed[transition.key] = _Missed(stamped, stamped)
        self._woken.set()

    async def run_recorder(self) -> None:
        """Record until cancelled; then write what is left and end the run."""
        try:
            while True:
                if await self._write():
                    with trio.move_on_after(BEAT_S):
                        await self._woken.wait()
                else:
                    await trio.sleep(RETRY_S)
        finally:
            with trio.move_on_after(CLOSE_DEADLINE_S, shield=True):
                if await self._write(last=True):
                    log.debug("ledger closed", extra={"fields": dataclasses.asdict(self.statistics())})
                await self._ledger.aclose()

    async def _write(self, *, last: bool = False) -> bool:
        """Write all that waits and a heartbeat (or the end). If the ledger fails, returns False and logs it once."""
        self._woken = trio.Event()
        try:
            if not self._begun:
                await self._ledger.begin(self._keys, self._began_at, self.in_use)
                self.in_use = ()
                self._begun = True
            if not self._queue and not last:
                await self._ledger.beat(self._now())
            while self._queue or self._missed:
                await self._write_batch()
            if last:
                await self._ledger.end(self._now(), self.in_use)
        except StoreError as exc:
            self._failed(str(exc))
            return False
        except Exception:
            # A bug in a ledger is worth a traceback and an alarm, but must not cost a client its connection.
            log.exception("ledger crashed")
            self._failed("crashed")
            return False
        if self._failing:
            log.warning("ledger works again", extra={"fields": dataclasses.asdict(self.statistics())})
            self._failing = ""
        return True

    async def _write_batch(self) -> None:
        if not self._queue:
            self._queue_missed()
        batch = [self._queue[index] for index in range(min(BATCH_LIMIT, len(self._queue)))]
        await self._ledger.record(batch)
        for _ in batch:
            self._queue.popleft()
        self._recorded += len(batch)

    def _queue_missed(self) -> None:
        """Queue what is kept of the missed transitions, in the order of time, as the ledger must have them."""
        left: list[StampedTransition] = []
        for missed in self._missed.values():
            if missed.lost:
                cause = f"{missed.lost} changes could not be recorded"
                first = missed.first.transition
                unknown = dataclasses.replace(first, after=SatelliteState.UNKNOWN, cause=cause, who="")
                left.append(dataclasses.replace(missed.first, transition=unknown))
            left.append(missed.newest)
        self._missed.clear()
        left.sort(key=lambda each: each.serial)
        self._queue.extend(dataclasses.replace(each, serial=self._next_serial()) for each in left)

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _failed(self, why: str) -> None:
        self._failures += 1
        if why != self._failing:
            log.error("ledger fails", extra={"fields": {"error": why, **dataclasses.asdict(self.statistics())}})
        self._failing = why
