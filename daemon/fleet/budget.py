"""The awake budget: which satellites may wake, and which must sleep for that. Pure. No other module decides it.

The fleet is a cache of awake satellites. The idle one that was used least recently is evicted first. Rules:

- A satellite holds its place from the moment of the grant until it is seen asleep. Grants never exceed a limit. Satellites
  that others start count too, and may exceed it.
- The first request is served first. If only the limit of its own org holds a request up, it holds up no request of another
  org, and it keeps its turn: no place that it could use goes to a later request.
- Clients come before upkeep (hours to be awake, renewals). Upkeep evicts no satellite.
- A satellite with a lease is not evicted, nor one before its minimum awake time. Those kept awake by the hours go last.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence

from bentpipe.daemon.fleet.machine.known import Known
from bentpipe.daemon.model import SatelliteKey, SatelliteState


@dataclasses.dataclass(frozen=True, slots=True)
class AwakeLimits:
    """How many may be awake: in all, and in each org (those not in `by_org`: `per_org`); None means no limit."""

    fleet: int | None = None
    per_org: int | None = None
    by_org: tuple[tuple[str, int], ...] = ()

    def of(self, org: str) -> float:
        """The org's limit."""
        limit = dict(self.by_org).get(org, self.per_org)
        return math.inf if limit is None else limit

    @property
    def total(self) -> float:
        """The limit of all."""
        return math.inf if self.fleet is None else self.fleet


@dataclasses.dataclass(frozen=True, slots=True)
class Holder:
    """A satellite that has a place."""

    key: SatelliteKey
    idle_since: float | None = None
    """None: it is in use, or on its way up or down."""
    evictable_at: float = 0.0
    kept_awake: bool = False
    leaving: bool = False
    """It is on its way down, so its place will be free."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A satellite that asks to wake."""

    key: SatelliteKey
    upkeep: bool = False
    """No client waits for it."""


def place_of(key: SatelliteKey, known: Known, now: float) -> Holder | Request | None:
    """Say how the awake budget sees a satellite: it holds a place, asks for one, or neither."""
    if known.holds_place:
        leaving = known.state is SatelliteState.STOPPING
        return Holder(key, known.idle_since, known.evictable_at, known.keep_awake, leaving)
    return Request(key, upkeep=not known.waiting) if known.wants_place(now) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, and when to plan again if nothing happens before."""

    grants: tuple[SatelliteKey, ...] = ()
    evictions: tuple[SatelliteKey, ...] = ()
    again_at: float | None = None


class _Count:
    """KnownAddresses taken, in all and by org, against the limits."""

    def __init__(self, limits: AwakeLimits, keys: Sequence[SatelliteKey]) -> None:
        self._limits = limits
        self._total = len(keys)
        self._by_org = collections.Counter(key.org for key in keys)

    def org_is_full(self, org: str) -> bool:
        return self._by_org[org] >= self._limits.of(org)

    def has_room(self, org: str) -> bool:
        return self._total < self._limits.total and not self.org_is_full(org)

    def take(self, org: str) -> None:
        self._total += 1
        self._by_org[org] += 1

    def give(self, org: str) -> None:
        self._total -= 1
        self._by_org[org] -= 1


def plan(limits: AwakeLimits, holders: Sequence[Holder], requests: Sequence[Request], now: float) -> Plan:
    """Decide. `requests` are in the order in which they came. `now` is on the same clock as the holders' times."""
    taken = _Count(limits, [holder.key for holder in holders])
    # The future count: without satellites on their way down, and with all that were promised a place.
    coming = _Count(limits, [holder.key for holder in holders if not holder.leaving])
    idle = sorted(
        (holder for holder in holders if holder.idle_since is not None and not holder.leaving),
        key=lambda holder: (holder.kept_awake, holder.idle_since, holder.key),
    )
    grants: list[SatelliteKey] = []
    evictions: list[SatelliteKey] = []
    again_at = math.inf
    for request in sorted(requests, key=lambda request: request.upkeep):
        org = request.key.org
        if not coming.has_room(org) and not request.upkeep:
            # The satellites whose eviction makes room for this one: those of its own org if that is full, otherwise all.
            fitting = [holder for holder in idle if holder.key.org == org or not coming.org_is_full(org)]
            ripe = next((holder for holder in fitting if holder.evictable_at <= now), None)
            if ripe is None:
                again_at = min([again_at, *(holder.evictable_at for holder in fitting)])
                continue
            idle.remove(ripe)
            evictions.append(ripe.key)
            coming.give(ripe.key.org)
        if not coming.has_room(org):
            continue
        coming.take(org)
        # There is no room now, so it waits for a place to become free. It could use none of the places that are free now.
        if taken.has_room(org):
            taken.take(org)
            grants.append(request.key)
    return Plan(tuple(grants), tuple(evictions), None if again_at == math.inf else again_at)
