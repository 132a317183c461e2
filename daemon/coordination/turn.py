"""One host's turn on one satellite, and the clocks that end it.

The holder of a turn renews its version. Another host that wants the turn watches the version on its own clock, which runs on
while the machine is suspended, and takes the turn when the version has not changed for a whole lease. The holder counts from
the moment before it sent its last confirmed write, and acts only in the first WINDOW of the lease. So the rest of the lease
lies between the holder's last call and the first moment at which another host may take over. It covers the call's way to the
provider, and clocks that run at different speeds.

    the holder:     send ── confirmed ── acts ─┤ WINDOW      acts no more
    another host:          └ first seen at the earliest ───────────────────────┤ lease: may take the turn
"""

import collections
import time
import uuid
from collections.abc import Awaitable, Callable, Collection

import trio

from bentpipe.daemon.coordination.rows import Row, Rows, Written
from bentpipe.daemon.model import SatelliteKey

WINDOW = 0.5
"""Share of a lease in which its holder acts."""
RENEWALS = 6
"""Renewals in one lease: two may fail before the window is over."""
UNSURE = RENEWALS + 2
"""How many writes in a row without an answer are remembered: a lease's renewals, a close and a release. After these the turn
is over."""


def boot_clock() -> float:
    """Seconds since boot, including the time in which the machine was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class VersionWatch:
    """For how long versions have been the same, on this host's clock."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, float]] = {}

    def unchanged_s(self, name: str, version: str, now: float) -> float:
        """Note the version of `name` that is seen now. Returns for how many seconds it has been the same."""
        before, since = self._seen.get(name, (None, now))
        if before != version:
            since = now
        self._seen[name] = (version, since)
        return now - since

    def keep_only(self, names: Collection[str]) -> None:
        """Forget all other names."""
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}


class SharedTurn:
    """See Turn. `SharedCoordination.acting` makes it."""

    alone = False

    def __init__(
        self,
        rows: Rows,
        key: SatelliteKey,
        row: Row,
        *,
        sent: float,
        lease_s: float,
        clock: Callable[[], float],
        close: Callable[["SharedTurn", Callable[[], bool]], Awaitable[None]],
    ) -> None:
        self.key = key
        self.epoch = row.epoch
        self._rows = rows
        self._version = row.version
        self._unsure: collections.deque[str] = collections.deque(maxlen=UNSURE)
        """Versions of which one may be in the row: their writes were not confirmed."""
        self._sent = sent
        self._window_s = WINDOW * lease_s
        self._clock = clock
        self._close = close
        self._over = False
        self._scope = trio.CancelScope()
        self._one_step = trio.Lock()

    def is_ours(self) -> bool:
        """See Turn."""
        return not self._over and self._clock() - self._sent < self._window_s

    def while_ours(self) -> trio.CancelScope:
        """See Turn."""
        self._scope = trio.CancelScope()
        self._bound()
        return self._scope

    def _bound(self) -> None:
        self._scope.deadline = trio.current_time() + self._sent + self._window_s - self._clock()
        if self._over:
            self._scope.cancel()

    async def renew(self) -> None:
        """Keep the turn for another lease. Raises StoreError."""
        await self.write(lambda seen, version: self._rows.renew(self.key, seen=seen, version=version))

    async def close(self, is_used: Callable[[], bool]) -> None:
        """See Turn."""
        await self._close(self, is_used)

    async def close_row(self, incarnation: str) -> Row | None:
        """Close the row if at most `incarnation` has entered. Returns None if it is closed, else the row that forbids it."""
        written = await self.write(
            lambda seen, version: self._rows.close(self.key, seen=seen, version=version, incarnation=incarnation)
        )
        return None if written.done else written.row

    async def release(self) -> None:
        """Give the turn up. Raises StoreError."""
        self._over = True
        async with self._one_step:
            for version in (self._version, *self._unsure):
                await self._rows.release(self.key, seen=version)

    @property
    def over(self) -> bool:
        """Whether another host has taken the turn, or this one gave it up."""
        return self._over

    async def write(self, step: Callable[[str, str], Awaitable[Written]]) -> Written:
        """Carry out a step from our version to a new one. If the row has another host's version, the turn is over."""
        async with self._one_step:
            sent, version = self._clock(), uuid.uuid4().hex
            self._unsure.append(version)
            written = await step(self._version, version)
            if not written.done and written.row.version in self._unsure:
                self._version = written.row.version
                sent = self._clock()
                written = await step(self._version, version)
            self._unsure.clear()
            if written.done:
                self._version, self._sent = version, sent
            elif written.row.version != self._version:
                self._over = True
            self._bound()
            return written
