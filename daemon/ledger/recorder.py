"""Carries the fleet's transitions to the ledger: a bounded queue and one task. Never slows or stops routing.

While the ledger fails, changes wait in the queue and are tried again. Once the queue is full only each satellite's
newest change is kept, and the ledger is told that what came before it is UNKNOWN: it may miss a thing, it does not lie.
"""

import collections
import dataclasses
import logging
from collections.abc import Callable, Iterable

import trio

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.ledger.contract import Change, Ledger, Stamp
from bentpipe.daemon.model import SatelliteKey, SatelliteState, Transition

log = logging.getLogger("bentpipe.store")

QUEUE_LIMIT = 10_000
"""Changes that wait while the ledger fails; at some hundred bytes each this is a few MiB."""
BATCH_LIMIT = 500
"""Changes a transaction: large enough for a herd, small enough to be written within a second on a slow disk."""
BEAT_S = 10.0
"""Between signs of life: what a crash can make UNKNOWN though it was watched."""
RETRY_S = 5.0
"""Between attempts while the ledger fails."""
CLOSE_DEADLINE_S = 10.0
"""For the last words at the end of the daemon."""


@dataclasses.dataclass(frozen=True, slots=True)
class RecorderStatistics:
    """Counts since the start; `queued` is now."""

    recorded: int
    lost: int
    failures: int
    queued: int


@dataclasses.dataclass(slots=True)
class _Missed:
    """What is left of a satellite's changes that found the queue full."""

    first: Change
    newest: Change
    lost: int = 0


class Recorder:
    """Owns the ledger from `run_recorder`'s begin to its end."""

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
        self._begun = False
        self._queue: collections.deque[Change] = collections.deque()
        self._missed: dict[SatelliteKey, _Missed] = {}
        self._serial = 0
        self._woken = trio.Event()
        self._failing = ""
        self._recorded = self._lost = self._failures = 0

    def statistics(self) -> RecorderStatistics:
        """What was recorded, lost, and failed so far."""
        return RecorderStatistics(self._recorded, self._lost, self._failures, len(self._queue) + len(self._missed))

    def record_nowait(self, transition: Transition) -> None:
        """Take a transition, stamped with this moment. Never blocks, never raises."""
        change = Change(
            self._next_serial(),
            transition.key,
            transition.after,
            self._now(),
            transition.cause,
            transition.who,
            transition.phases,
            transition.waits,
            transition.resume,
        )
        if not self._missed and len(self._queue) < self._queue_limit:
            self._queue.append(change)
        elif transition.key in self._missed:
            missed = self._missed[transition.key]
            missed.newest = change
            missed.lost += 1
            self._lost += 1
        else:
            self._missed[transition.key] = _Missed(change, change)
        self._woken.set()

    async def run_recorder(self) -> None:
        """Record for ever; when cancelled, write what is left and close the books."""
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
        """Write all that waits and a sign of life (or the end). Returns False, and says so once, if the ledger fails."""
        self._woken = trio.Event()
        try:
            if not self._begun:
                await self._ledger.begin(self._keys, self._began_at)
                self._begun = True
            if not self._queue and not last:
                await self._ledger.beat(self._now())
            while self._queue or self._missed:
                await self._write_batch()
            if last:
                await self._ledger.end(self._now())
        except StoreError as exc:
            self._failed(str(exc))
            return False
        except Exception:
            # A bug in a store is worth a traceback and an alarm, but no client's connection.
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
        """Queue what is left of the missed changes, in the order of time, as the ledger must have it."""
        left: list[Change] = []
        for missed in self._missed.values():
            if missed.lost:
                cause = f"{missed.lost} changes could not be recorded"
                left.append(dataclasses.replace(missed.first, state=SatelliteState.UNKNOWN, cause=cause, who=""))
            left.append(missed.newest)
        self._missed.clear()
        left.sort(key=lambda change: change.serial)
        self._queue.extend(dataclasses.replace(change, serial=self._next_serial()) for change in left)

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _failed(self, why: str) -> None:
        self._failures += 1
        if why != self._failing:
            log.error("ledger fails", extra={"fields": {"error": why, **dataclasses.asdict(self.statistics())}})
        self._failing = why
