"""Carries records to their store: a bounded queue and one task. No connection ever waits for a disk.

While the store fails, records wait in the queue. Once it is full, the oldest are lost, and counted: what people ask about is
what has just happened. Records of strangers are kept as the log has their lines: some of each kind in a while, the rest is
counted.
"""

import collections
import dataclasses
import logging
import operator
import time
from collections.abc import Callable
from typing import Self

import trio

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.log_rates import LogRates
from bentpipe.daemon.records.contract import RecordStore, StoredRecord
from bentpipe.daemon.records.lines import kind_of
from bentpipe.daemon.records.record import Record

log = logging.getLogger("bentpipe.store")

QUEUE_LIMIT = 10_000
"""Records that wait, of some 2 KiB each: 20 MiB at most while the store fails."""
BATCH_LIMIT = 500
"""Records in one call."""
GATHER_S = 0.5
"""After the first record of a batch: a busy host writes twice a second."""
RETRY_S = 5.0
"""Between attempts while the store fails."""
CLOSE_DEADLINE_S = 5.0
"""For what is left to write when the daemon stops."""


@dataclasses.dataclass(frozen=True, slots=True)
class WriterStatistics:
    """Counts since the start; `queued` is now."""

    kept: int = 0
    lost: int = 0
    """The queue was full, or the daemon ended before they were written."""
    left_out: int = 0
    """Of strangers, over the number of a kind in a while."""
    failures: int = 0
    """Attempts to write that failed."""
    queued: int = 0

    def __add__(self, other: Self) -> Self:
        """Both together."""
        return type(self)(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))


class RecordWriter:
    """Owns the store: `run_writer` writes to it and closes it. `keep` is a sink of the book."""

    def __init__(
        self,
        store: RecordStore,
        host: str,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = trio.current_time,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        self._store = store
        self._host = host
        self._wall = wall
        self._clock = clock
        self._queue_limit = queue_limit
        self._queue: collections.deque[StoredRecord] = collections.deque()
        self._writing: list[StoredRecord] = []
        self._rates = LogRates()
        self._woken = trio.Event()
        self._failing = ""
        self._kept = self._lost = self._failures = 0
        self._ending = False
        self.is_over = False
        """Whether it has written what there was, and has closed the store."""

    async def find(self, connection_id: str) -> StoredRecord | None:
        """The record of this id, written or not; None if there is none. Raises StoreError."""
        waiting = (each for each in self._waiting() if each.id == connection_id)
        return next(waiting, None) or await self._store.find(connection_id)

    async def newest(self, most: int, *, satellite: str = "", principal: str = "") -> list[StoredRecord]:
        """See RecordStore; those that are not written yet are among them. Raises StoreError."""
        stored = await self._store.newest(most, satellite=satellite, principal=principal)
        found = {each.id: each for each in stored}
        for each in self._waiting():
            if satellite in ("", each.satellite) and principal in ("", each.principal):
                found[each.id] = each
        return sorted(found.values(), key=lambda each: each.at_us, reverse=True)[:most]

    def _waiting(self) -> list[StoredRecord]:
        return [*self._writing, *self._queue]

    @property
    def failing(self) -> str:
        """Why the last attempt to write has failed; "" if it has not."""
        return self._failing

    def statistics(self) -> WriterStatistics:
        """What was kept and lost so far."""
        return WriterStatistics(self._kept, self._lost, self._rates.withheld, self._failures, len(self._queue))

    def keep(self, record: Record) -> None:
        """Take a record that is closed. Never waits."""
        if not record.principal and not self._rates.admit(kind_of(record), record.end.level, self._clock()):
            return
        fields = record.fields()
        satellite = str(fields["satellite"])
        at_us = int(self._wall() * 1e6)
        self._put(StoredRecord(record.id, at_us, self._host, satellite, record.principal, fields))
        self._woken.set()

    def bound(self, keep: int, keep_s: float) -> None:
        """From the next write on the store keeps so many records, for so long."""
        self._store.bound(keep, keep_s)

    def end(self) -> None:
        """Let `run_writer` write what waits, and return. Records may not be kept any more."""
        self._ending = True
        self._woken.set()

    def _put(self, record: StoredRecord) -> None:
        if len(self._queue) >= self._queue_limit:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(record)

    async def run_writer(self) -> None:
        """Write until cancelled, or until `end`; then write what is left."""
        try:
            while not self._ending:
                await self._woken.wait()
                await trio.sleep(GATHER_S)
                self._woken = trio.Event()
                if not await self._write() and not self._ending:
                    self._woken.set()
                    await trio.sleep(RETRY_S)
        finally:
            with trio.move_on_after(CLOSE_DEADLINE_S, shield=True):
                await self._write()
                await self._store.aclose()
            self._lost += len(self._queue)
            self._queue.clear()
            self.is_over = True
            if self._lost:
                log.warning("records of connections were lost", extra={"fields": {"records": self._lost}})

    async def _write(self) -> bool:
        """Write all that waits. If the store fails, returns False and logs it once."""
        while self._queue:
            self._writing = [self._queue.popleft() for _ in range(min(BATCH_LIMIT, len(self._queue)))]
            try:
                await self._store.add(self._writing)
            except StoreError as exc:
                self._put_back()
                self._failures += 1
                if str(exc) != self._failing:
                    log.error("records cannot be written", extra={"fields": {"error": str(exc)}})
                self._failing = str(exc)
                return False
            except BaseException:
                self._put_back()
                raise
            self._kept += len(self._writing)
            self._writing = []
        if self._failing:
            log.warning("records can be written again", extra={"fields": {"lost": self._lost}})
            self._failing = ""
        return True

    def _put_back(self) -> None:
        """Queue again what was not written. The oldest are lost, if newer records have taken their places."""
        batch, self._writing = self._writing, []
        room = max(0, self._queue_limit - len(self._queue))
        kept = batch[len(batch) - room :] if room < len(batch) else batch
        self._lost += len(batch) - len(kept)
        self._queue.extendleft(reversed(kept))
