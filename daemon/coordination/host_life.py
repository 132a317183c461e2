"""Whether this host lives, for the others, and which of the others do.

A host lives by **stays**. One is good while its last confirmed sign of life is so young that nobody can have declared it
dead (see `turn` for the two clocks); when it is not, the host begins another. Who finds a stay's version unchanged for
the whole expiry buries it: from then on it is dead for good, and so is what it had entered.
"""

import logging
import uuid
from collections.abc import Callable

import trio

from bentpipe.daemon.coordination.rows import Rows
from bentpipe.daemon.coordination.turn import WINDOW, Watch

log = logging.getLogger("bentpipe.store")


class HostLife:
    """`lapsed` is called when a stay is given up; `host` is for people."""

    def __init__(
        self, rows: Rows, host: str, *, expiry_s: float, clock: Callable[[], float], lapsed: Callable[[], None]
    ) -> None:
        self._rows = rows
        self._host = host
        self._expiry_s = expiry_s
        self._clock = clock
        self._lapsed = lapsed
        self.stay = self._new_stay()
        self._old: set[str] = set()
        self._begun = False
        self._alive_at = float("-inf")
        self._watch = Watch()
        self._one_beat = trio.Lock()

    def is_good(self) -> bool:
        """Whether nobody can have declared the stay dead yet."""
        return self._begun and self._clock() - self._alive_at < WINDOW * self._expiry_s

    async def beat(self) -> None:
        """Give a sign of life, by another stay if this one may be dead, and look at the others'. Raises StoreError."""
        async with self._one_beat:
            if self._begun and not self.is_good():
                self._begin_another()
            while True:
                sent, version = self._clock(), uuid.uuid4().hex
                if not self._begun:
                    await self._rows.begin_stay(self.stay, version)
                    self._begun = True
                    break
                if await self._rows.beat(self.stay, version):
                    break
                self._begin_another()
            self._alive_at = sent
            # Everybody watches everybody, so that a dead host is known for one when it stands in the way.
            known = await self._rows.stays()
            self._watch.keep_only(known)
            for stay, seen in known.items():
                self._watch.unchanged_s(stay, seen, self._clock())

    async def dead_among(self, stays: frozenset[str]) -> frozenset[str]:
        """Those that are dead for good. Raises StoreError.

        `stays` were read from a satellite's row before: who stands there has had a row of its own until it died.
        """
        if not stays:
            return stays
        known = await self._rows.stays()
        dead = {stay for stay in stays if stay not in known}
        for stay in stays & known.keys():
            unchanged_s = self._watch.unchanged_s(stay, known[stay], self._clock())
            if unchanged_s >= self._expiry_s and await self._rows.bury(stay, known[stay]):
                log.warning("a host is gone", extra={"fields": {"host": stay}})
                dead.add(stay)
        return frozenset(dead)

    async def bury_old(self) -> None:
        """Let nobody wait for the stays that were given up. Raises StoreError."""
        if self._old:
            known = await self._rows.stays()
            for stay in self._old & known.keys():
                await self._rows.bury(stay, known[stay])
            self._old.clear()

    async def end(self) -> None:
        """Be gone. Raises StoreError."""
        self._begin_another()
        await self.bury_old()

    def _begin_another(self) -> None:
        log.debug("stay ends", extra={"fields": {"stay": self.stay}})
        self._old.add(self.stay)
        self.stay = self._new_stay()
        self._begun = False
        self._lapsed()

    def _new_stay(self) -> str:
        return f"{self._host}/{uuid.uuid4().hex}"
