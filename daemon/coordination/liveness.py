"""Tells the other hosts that this one is alive, and knows which of them are.

A host is alive by its **incarnation**, which is good while its last confirmed heartbeat is so recent that no host can have
declared it dead (see `turn` for the two clocks). When it is not good, the host begins another one. If a host sees an
incarnation's version unchanged for the whole expiry, it declares the incarnation dead. A dead incarnation never comes back,
and what it had entered counts no more.

A host whose connections outlive its control plane says so in its incarnation's name, with the time for which the control
plane may be away: the other hosts wait for that time instead of the expiry. Its next control plane begins an incarnation of
its own, enters by that what is still used, and then declares the earlier one dead itself.
"""

import logging
import math
import uuid
from collections.abc import Awaitable, Callable, Iterable

import trio

from bentpipe.daemon.coordination.rows import Rows
from bentpipe.daemon.coordination.turn import WINDOW, VersionWatch

log = logging.getLogger("bentpipe.store")


MOST_INHERITED = 64
"""Incarnations of earlier control planes; a note with more of them is not one of ours."""


async def tell_nobody() -> None:
    """No connection outlives this process."""


def patience_s(incarnation: str, expiry_s: float) -> float:
    """For how long an incarnation's version must have been the same before it may be declared dead."""
    parts = incarnation.split("/")
    survives = parts[2] if len(parts) > 2 else ""
    return max(expiry_s, float(survives)) if survives.isascii() and survives.isdigit() else expiry_s


class Liveness:
    """`lapsed` is called when an incarnation is given up. `host` is a name for people: it need not be unique."""

    def __init__(
        self,
        rows: Rows,
        host: str,
        *,
        expiry_s: float,
        clock: Callable[[], float],
        lapsed: Callable[[], None],
        survives_s: float = 0.0,
    ) -> None:
        """`survives_s`: how long this host's connections may live without its control plane, if they can."""
        self._survives_s = survives_s
        self.announce: Callable[[], Awaitable[None]] = tell_nobody
        """Is awaited before another incarnation is used."""
        self._rows = rows
        self._host = host
        self._expiry_s = expiry_s
        self._clock = clock
        self._lapsed = lapsed
        self.incarnation = self._new_incarnation()
        self._old: set[str] = set()
        self._begun = False
        self._alive_at = float("-inf")
        self._watch = VersionWatch()
        self._one_beat = trio.Lock()

    def is_good(self) -> bool:
        """Whether no host can have declared the incarnation dead yet."""
        return self._begun and self._clock() - self._alive_at < WINDOW * self._expiry_s

    async def beat(self) -> None:
        """Send a heartbeat and look at the others'. If the incarnation may be dead, begin another. Raises StoreError."""
        async with self._one_beat:
            if self._begun and not self.is_good():
                self._begin_another()
            while True:
                sent, version = self._clock(), uuid.uuid4().hex
                if not self._begun:
                    await self.announce()
                    await self._rows.begin_incarnation(self.incarnation, version)
                    self._begun = True
                    break
                if await self._rows.beat(self.incarnation, version):
                    break
                self._begin_another()
            self._alive_at = sent
            # Every host watches all others all the time, so that a dead one is known when it keeps a satellite from sleep.
            known = await self._rows.incarnations()
            self._watch.keep_only(known)
            for incarnation, seen in known.items():
                self._watch.unchanged_s(incarnation, seen, self._clock())

    async def dead_among(self, incarnations: frozenset[str]) -> frozenset[str]:
        """Those of them that are dead. Raises StoreError.

        `incarnations` were read from a satellite's row. Each had a row of its own before it entered, so one that has none
        now is dead.
        """
        if not incarnations:
            return incarnations
        known = await self._rows.incarnations()
        dead = {incarnation for incarnation in incarnations if incarnation not in known}
        for incarnation in incarnations & known.keys():
            unchanged_s = self._watch.unchanged_s(incarnation, known[incarnation], self._clock())
            patience = patience_s(incarnation, self._expiry_s)
            if unchanged_s >= patience and await self._rows.expire(incarnation, known[incarnation]):
                log.warning("a host is gone", extra={"fields": {"host": incarnation}})
                dead.add(incarnation)
        return frozenset(dead)

    @property
    def stays(self) -> tuple[str, ...]:
        """The incarnations by which this host may be entered somewhere, the present one first."""
        return self.incarnation, *sorted(self._old)

    def inherit(self, incarnations: Iterable[str]) -> None:
        """Those of an earlier control plane: `expire_old` declares them dead."""
        self._old.update(list(incarnations)[:MOST_INHERITED])
        self._old.discard(self.incarnation)

    async def expire_old(self) -> None:
        """Declare dead the incarnations that were given up, so that no host waits for them. Raises StoreError."""
        if self._old:
            known = await self._rows.incarnations()
            for incarnation in self._old & known.keys():
                await self._rows.expire(incarnation, known[incarnation])
            self._old.clear()

    async def end(self) -> None:
        """Declare the current incarnation dead too. Raises StoreError."""
        self._begin_another()
        await self.expire_old()

    def _begin_another(self) -> None:
        log.debug("incarnation ends", extra={"fields": {"incarnation": self.incarnation}})
        self._old.add(self.incarnation)
        self.incarnation = self._new_incarnation()
        self._begun = False
        self._lapsed()

    def _new_incarnation(self) -> str:
        name = f"{self._host}/{uuid.uuid4().hex}"
        return f"{name}/{math.ceil(self._survives_s)}" if self._survives_s else name
