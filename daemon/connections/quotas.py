"""Quotas: every connection and every byte kept for it is charged to exactly one quota, and each quota has a limit.

Pure bookkeeping; only the Trio thread calls it. A connection has one `Place`, from accept to its very end:

    accept ──▶ stranger (its address prefix's) ──promote──▶ principal (and satellite)
                  │ too many strangers                        │
                  ▼                                           ▼
                evicted                                     released

- A stranger is a client that has shown no proof yet. It cannot be told from a caller with a token. Strangers have few
  places. If all of them are taken, a newcomer is let in nevertheless, and the oldest stranger of the most crowded prefix is
  evicted. A caller needs a moment to show its token. Nobody is evicted before that moment is over to make a place free:
  `pause_s` says for how long the listener must not accept, and new connections wait in the kernel meanwhile. The moment is
  shorter in a prefix that floods.
- A client that has shown a token is charged to its principal's quota. No stranger and no other principal can fill that quota
  (`shares.py`). A claim with several proofs is charged to the first one, the token: else a place would be counted twice.
- The bytes are those that are really kept (`held_bytes.py` has what is counted besides the client's own bytes). Strangers'
  bytes are bounded as memory. Principals' bytes are bounded by what their clients have sent; what else these cost is bounded
  by their number.
"""

import collections
import dataclasses
import enum
import logging
from collections.abc import Callable
from typing import Protocol

from bentpipe.daemon.connections.held_bytes import FAIR_BYTES, PLACE_BYTES
from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.strangers import Path, Strangers, prefix_of
from bentpipe.daemon.errors import LimitReached
from bentpipe.daemon.logs import log_limited
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.shares import Loan, Reserve

log = logging.getLogger("bentpipe.edge")

GRACE_S, GRACE_MOST_S = 1.0, 5.0
"""A stranger is not evicted to make a place free before this time has passed: TLS and the opening take three round trips."""
GRACE_FACTOR = 3.0
"""The grace is this many times the usual time from accept to a token: if there is much to do, all clients are slow."""
FLOOD_PART, FLOOD_GRACE_S, FLOOD_S = 16, 0.25, 10.0
"""A prefix floods if it has more than 1/FLOOD_PART of the strangers' places and one of its strangers was evicted in the last
FLOOD_S to make a place free. Its strangers then have FLOOD_GRACE_S: else newcomers would wait behind the flood in the
kernel's queue."""
NEWEST_WEIGHT = 0.1
"""Weight of the newest value in the moving average."""
CONNECTION_FDS = 2
"""Descriptors that a client may take: its own, and its satellite's from the dial to the end of the splice."""
LEND_PART = 2
"""Places are lent to data planes until 1/LEND_PART of all are taken, and of a principal's."""
LOAN_PART = 16
"""At most 1/LOAN_PART of all places is lent at once, and of a principal's: a client that has to ask is refused for them."""
UNLIMITED = 1 << 40
"""More places than there can be."""
DESCRIPTORS = "descriptors"
"""A name in `reached` besides those of the limits: the process itself has no descriptors left."""
STRANGER_BYTES = 128 << 10
"""A single stranger may always hold this much: its greeting (proto/limits.py), TLS, and its place."""


class QuotaKind(enum.Enum):
    """The quota that a place is charged to."""

    STRANGER = "stranger"
    PRINCIPAL = "principal"
    NONE = "none"
    """Released, or evicted."""


class Cancellable(Protocol):
    """The scope that a connection runs in: a trio.CancelScope."""

    def cancel(self) -> None: ...  # noqa: D102


def _most(limit: int | None) -> int:
    return UNLIMITED if limit is None else limit


class Place:
    """One connection's place. After its release every method does nothing, except `promote` and `keep`."""

    __slots__ = (
        *("_handed_off", "_quotas", "cost_bytes", "eviction_words", "kind", "path", "principal", "said_bytes"),
        *("satellite", "scope", "since", "waiting"),
    )

    def __init__(self, quotas: "Quotas", path: Path, now: float) -> None:
        self._quotas = quotas
        self.scope: Cancellable | None = None
        """Is cancelled when the place is evicted; the place is off its quota by then, and `eviction_words` has the
        reason. None: the place cannot be evicted now. A stranger's always can; an admitted client's only while the client is
        held."""
        self._handed_off = False
        self.kind = QuotaKind.NONE
        self.path = path
        self.since = now
        self.principal = ""
        self.satellite: SatelliteKey | None = None
        self.cost_bytes = PLACE_BYTES
        """What the connection costs, without what the client has sent."""
        self.said_bytes = 0
        """How much is kept of what the client has sent, or of what has to be sent to it."""
        self.eviction_words: str | None = None
        """Why the place was evicted, in words for the client; None if it was not."""
        self.waiting: _Waiting | None = None
        """Set while the client is connected without a request."""

    @property
    def held_bytes(self) -> int:
        """All bytes of the place."""
        return self.cost_bytes + self.said_bytes

    @property
    def can_end(self) -> bool:
        """Whether the place can be evicted now."""
        return self.scope is not None

    def readdress(self, host: str) -> None:
        """Count the place for another address: the one that a trusted proxy names. Until then the peer's own counts."""
        self._quotas._readdress(self, prefix_of(host))

    def promote(self, principal: str, satellite: SatelliteKey | None) -> None:
        """Charge the place to the principal's quota, since its client has shown a proof. Raises LimitReached.

        A place is promoted once. If it must not be promoted, it stays a stranger's.
        """
        self._quotas._promote(self, principal, satellite)

    def wait_for_request(self) -> None:
        """The client stays without a request: among strangers, it is the first to be evicted."""
        self._quotas._wait(self)

    def has_request(self) -> None:
        """It has made one."""
        self._quotas._end_wait(self)

    def keep(self, said_bytes: int) -> None:
        """Say how much is kept now of what the client has sent. Raises LimitReached if that is too much; it is counted
        still.

        A stranger is not refused: the stranger that holds most is evicted, this one or another.
        """
        self._quotas._keep(self, said_bytes)

    def note(self, said_bytes: int) -> None:
        """Say the same without a check: for what is kept only to end the connection."""
        self._quotas._note(self, said_bytes)

    def cost(self, more_bytes: int) -> None:
        """Count that the connection costs so much more, or less."""
        self._quotas._cost(self, more_bytes)

    def hand_off(self) -> None:
        """Give the place to the splice, which releases it. The control plane keeps no byte of the connection any more."""
        self._handed_off = True
        self.scope = None
        self._quotas._note(self, 0)
        self._quotas._cost(self, -self.cost_bytes)

    def release(self) -> None:
        """Free the place, since the connection is over. Idempotent."""
        self._quotas._release(self)

    def __enter__(self) -> "Place":
        """Run the connection's session in the block."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Release the place, unless it was handed off."""
        if not self._handed_off:
            self.release()


@dataclasses.dataclass(eq=False, slots=True)
class _Waiting:
    """A stranger without a request, as `Strangers` counts it. Its bytes are counted with all strangers'."""

    place: Place
    path: Path
    since: float
    held_bytes: int = 0


class Quotas:
    """All places. `clock` returns seconds of a monotonic clock, `principals` the number of principals."""

    def __init__(
        self, limits: QuotaLimits, clock: Callable[[], float], principals: Callable[[], int] = lambda: 1
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._principals = principals
        self._strangers: Strangers[Place] = Strangers()
        self._waiting: Strangers[_Waiting] = Strangers()
        """Those of them that are connected without a request."""
        self._admitted = Reserve(limits.admitted, limits.per_principal)
        self._satellites: dict[SatelliteKey, Reserve] = {}
        self._said: Loan[Place] = Loan(limits.said_bytes, limits.said_bytes_per_principal)
        self._lent = 0
        self._admitted_bytes = 0
        self._stranger_said = 0
        self._usual_s = 0.0
        self._floods_until: dict[str, float] = {}
        self.reached: collections.Counter[str] = collections.Counter()
        """How often each limit was reached, by its name: a client was refused or evicted."""

    def limit_strangers(self, strangers: int, per_prefix: int) -> None:
        """Let there be so many strangers from now on. Those that are there stay until a newcomer needs their place."""
        strangers = max(1, strangers)
        self._limits = dataclasses.replace(
            self._limits, strangers=strangers, per_prefix=max(1, min(per_prefix or strangers, strangers))
        )

    def change_limits(self, limits: QuotaLimits) -> None:
        """Other limits hold from now on. No connection is ended for them: they are for those that come."""
        self._limits = limits
        self._admitted.resize(limits.admitted, limits.per_principal)
        self._said.resize(limits.said_bytes, limits.said_bytes_per_principal)
        for reserve in self._satellites.values():
            reserve.resize(_most(limits.per_satellite), None)

    # -- what is taken ------------------------------------------------------------------------------------------------

    @property
    def strangers(self) -> int:
        """Connections without a proof."""
        return len(self._strangers)

    @property
    def waiting(self) -> int:
        """Those of them that stay without a request."""
        return len(self._waiting)

    @property
    def admitted(self) -> int:
        """Connections with a proof, spliced or not."""
        return self._admitted.total - self._lent

    @property
    def taken(self) -> int:
        """Their places, and those that are lent."""
        return self._admitted.total

    @property
    def total(self) -> int:
        """Connections open now."""
        return self.strangers + self.admitted

    @property
    def stranger_bytes(self) -> int:
        """The bytes of all strangers."""
        return self._strangers.held_bytes

    @property
    def admitted_bytes(self) -> int:
        """The bytes of all principals' clients before their hand-off."""
        return self._admitted_bytes

    @property
    def held_bytes(self) -> int:
        """The bytes of all connections before their hand-off."""
        return self.stranger_bytes + self.admitted_bytes

    @property
    def used_bytes(self) -> int:
        """How much is kept of what clients have sent: the part of `held_bytes` that they choose."""
        return self._stranger_said + self._said.total

    # -- strangers ---------------------------------------------------------------------------------------------------

    @property
    def grace_s(self) -> float:
        """For how long a stranger may show its token before it can be evicted to make a place free."""
        return self._grace_s(GRACE_S)

    def _grace_s(self, least_s: float) -> float:
        return min(max(least_s, GRACE_FACTOR * self._usual_s), GRACE_MOST_S)

    def _is_crowded(self, path: Path) -> bool:
        return self._strangers.count_of(path[:1]) >= max(2, self._limits.strangers // FLOOD_PART)

    def _floods(self, path: Path) -> bool:
        return self._floods_until.get(path[0], 0.0) > self._clock() and self._is_crowded(path)

    def _evict_for_places(self, place: Place | None) -> None:
        if place is not None and self._is_crowded(place.path):
            self._floods_until.pop(place.path[0], None)
            self._floods_until[place.path[0]] = self._clock() + FLOOD_S
            if len(self._floods_until) > FLOOD_PART:
                del self._floods_until[next(iter(self._floods_until))]
        self._evict(place, "max_strangers")

    def pause_s(self) -> float:
        """For how long the listener must not accept: strangers have all their places, and the oldest one is still too
        new."""
        if len(self._strangers) < self._limits.strangers:
            return 0.0
        first = self._first_to_go()
        return 0.0 if first is None else self._due_in_s(first)

    def _first_to_go(self) -> Place | None:
        """The stranger to evict if there are too many: one without a request, if there is one."""
        waiting = self._waiting.oldest_of_the_most_crowded()
        return self._strangers.oldest_of_the_most_crowded() if waiting is None else waiting.place

    def _first_of(self, path: Path) -> Place | None:
        """The same among those of a prefix."""
        waiting = self._waiting.oldest_of(path)
        return self._strangers.oldest_of(path) if waiting is None else waiting.place

    def _wait(self, place: Place) -> None:
        if place.kind is QuotaKind.STRANGER and place.waiting is None:
            place.waiting = _Waiting(place, place.path, place.since)
            self._waiting.add(place.waiting)

    def _end_wait(self, place: Place) -> None:
        if place.waiting is not None:
            self._waiting.remove(place.waiting)
            place.waiting = None

    def _due_in_s(self, stranger: Place) -> float:
        """For how long the stranger must not be evicted yet to make a place free."""
        grace_s = self._grace_s(FLOOD_GRACE_S) if self._floods(stranger.path) else self.grace_s
        return max(0.0, stranger.since + grace_s - self._clock())

    def open(self, host: str) -> Place:
        """Give an accepted connection a stranger's place. Another stranger may be evicted for it."""
        place = Place(self, prefix_of(host), self._clock())
        if len(self._strangers) >= self._limits.strangers:
            self._evict_for_places(self._first_to_go())
        place.kind = QuotaKind.STRANGER
        self._enter(place)
        return place

    def adopt(self, host: str, principal: str, satellite: SatelliteKey, *, lent: bool = False) -> Place:
        """Give a connection the place of a principal that another process gave it. No limit refuses it: it lives.

        `lent`: it is one of those that were lent.
        """
        place = Place(self, prefix_of(host), self._clock())
        place.kind, place.principal = QuotaKind.PRINCIPAL, principal
        if lent:
            self._lent -= 1
        else:
            self._admitted.take(principal)
        if self._limits.per_satellite is not None:
            self._satellites.setdefault(satellite, Reserve(self._limits.per_satellite)).take(principal)
            place.satellite = satellite
        self._admitted_bytes += place.cost_bytes
        return place

    def lend(self, principal: str, most: int) -> int:
        """Take places of the principal ahead of time, for clients that another process admits. Returns how many.

        They count as taken. So that nobody is refused for them, none are lent once a part of all places is taken.
        """
        self._admitted.know(self._principals())
        limits, cap, count = self._limits, self._principals_cap, 0
        while (
            count < most
            and self._lent + count < limits.admitted // LOAN_PART
            and self._admitted.total < limits.admitted // LEND_PART
            and self._admitted.held(principal) < cap // LEND_PART
            and self._admitted.refusal(principal) is None
        ):
            self._admitted.take(principal)
            count += 1
        self._lent += count
        return count

    @property
    def most_lent(self) -> int:
        """How many of a principal's places may be lent at once."""
        return self._principals_cap // LOAN_PART

    @property
    def _principals_cap(self) -> int:
        limits = self._limits
        return limits.admitted if limits.per_principal is None else min(limits.admitted, limits.per_principal)

    def take_back(self, principal: str, count: int) -> None:
        """So many places that were lent are free."""
        self._lent -= count
        for _ in range(count):
            self._admitted.give_back(principal)

    @property
    def limits_satellites(self) -> bool:
        """Whether there is a limit for each satellite."""
        return self._limits.per_satellite is not None

    def _enter(self, place: Place) -> None:
        if (
            self._strangers.count_of(place.path) >= self._limits.per_prefix
            and (oldest := self._first_of(place.path)) is not None
            and oldest.since + self.grace_s <= self._clock()
        ):
            # Strangers that have come within the grace stay, as they may all have a token; `max_strangers` bounds them.
            self._evict(oldest, "max_connections_per_address")
        self._strangers.add(place)
        self._stranger_said += place.said_bytes
        self._bound_bytes(place)

    def _readdress(self, place: Place, path: Path) -> None:
        if place.kind is QuotaKind.STRANGER and place.path != path:
            self._end_wait(place)
            self._strangers.remove(place)
            self._stranger_said -= place.said_bytes
            place.path = path
            self._enter(place)
        elif place.kind is not QuotaKind.STRANGER:
            place.path = path

    def make_room(self) -> bool:
        """Put out as many strangers as a client needs descriptors: the process has run out of descriptors or memory.

        Returns whether there were so many. No stranger is evicted within its grace.
        """
        for _ in range(CONNECTION_FDS):
            first = self._first_to_go()
            if first is None or self._due_in_s(first) > 0:
                return False
            self._evict(first, DESCRIPTORS, "the daemon has run out of descriptors")
        return True

    def _bound_bytes(self, place: Place) -> None:
        limit, share = self._limits.strangers_bytes, self._limits.per_prefix / self._limits.strangers
        most = max(int(limit * share), STRANGER_BYTES)
        if self._strangers.held_bytes <= min(most, max(limit, STRANGER_BYTES)):
            return  # nearly always so: no prefix has more than all together
        while self._strangers.bytes_of(place.path) > most:
            waiting = self._waiting.oldest_of(place.path)
            found = self._strangers.most_expensive(place.path) if waiting is None else waiting.place
            self._evict(found, "stranger_bytes")
        while self._strangers.held_bytes > max(limit, STRANGER_BYTES):
            waiting = self._waiting.oldest_of_the_most_crowded()
            self._evict(self._strangers.most_expensive() if waiting is None else waiting.place, "stranger_bytes")

    def _evict(self, found: Place | None, limit: str, cause: str | None = None) -> None:
        if found is None:
            return
        words = f"{cause or f'limits.{limit} is reached'}, and this connection had to make room for others"
        fields = {"limit": limit, "prefix": found.path[-1], "age_s": round(self._clock() - found.since, 1)}
        log_limited(log, f"evicted: {limit}", "evicted", fields, logging.WARNING)
        self.reached[limit] += 1
        found.eviction_words = words
        scope, found.scope = found.scope, None
        if found.kind is QuotaKind.STRANGER:
            self._release(found)
        else:
            self._note(found, 0)  # it keeps its place until the client has been told
        if scope is not None:
            scope.cancel()

    # -- principals --------------------------------------------------------------------------------------------------

    def _promote(self, place: Place, principal: str, satellite: SatelliteKey | None) -> None:
        if place.kind is QuotaKind.PRINCIPAL:
            return
        if place.kind is QuotaKind.NONE:
            raise LimitReached("promoted too late", peer_hint=place.eviction_words)
        known = self._principals()
        self._admitted.know(known)
        limit = "max_connections" if self._limits.per_principal is None else "max_connections_per_principal"
        self._check(self._admitted, limit, principal, self.admitted, "connections")
        if satellite is not None:
            # Counted without a limit too, since a limit may be set while connections are open.
            reserve = self._satellites.get(satellite)
            if reserve is None:
                reserve = self._satellites[satellite] = Reserve(_most(self._limits.per_satellite))
            reserve.know(known)
            self._check(reserve, "max_connections_per_satellite", principal, reserve.total, "connections to it")
            reserve.take(principal)
            place.satellite = satellite
        if place.waiting is None:  # one that has waited for a request says nothing of how long a proof takes
            self._usual_s += NEWEST_WEIGHT * (self._clock() - place.since - self._usual_s)
        self._end_wait(place)
        self._strangers.remove(place)
        self._stranger_said -= place.said_bytes
        self._admitted.take(principal)
        place.kind, place.principal = QuotaKind.PRINCIPAL, principal
        place.scope = None
        said, place.said_bytes = place.said_bytes, 0
        self._admitted_bytes += place.cost_bytes
        self._keep(place, said)

    def _check(self, reserve: Reserve, limit: str, principal: str, total: int, what: str) -> None:
        words = reserve.refusal(principal)
        if words is not None:
            self.reached[limit] += 1
            raise LimitReached(f"limits.{limit} is reached: {total} {what}, {words}", peer_hint=None)

    # -- bytes -------------------------------------------------------------------------------------------------------

    def _keep(self, place: Place, said_bytes: int) -> None:
        more = said_bytes - place.said_bytes
        words = None
        if more > 0 and place.kind is QuotaKind.PRINCIPAL and said_bytes > FAIR_BYTES:
            words = self._said.refusal(place.principal, more)
            while words is None and (found := self._said.excess(more, place.principal, lambda item: item.can_end)):
                self._evict(found, "held_bytes")
        self._note(place, said_bytes)
        if words is not None:
            self.reached["held_bytes"] += 1
            raise LimitReached(f"limits.held_bytes is used up: of its bytes {words}")
        if more > 0 and place.kind is QuotaKind.STRANGER:
            self._bound_bytes(place)

    def _note(self, place: Place, said_bytes: int) -> None:
        more, place.said_bytes = said_bytes - place.said_bytes, said_bytes
        if place.kind is QuotaKind.STRANGER:
            self._strangers.grew(place, more)
            self._stranger_said += more
        elif place.kind is QuotaKind.PRINCIPAL:
            self._said.change(place.principal, place, said_bytes)
            self._admitted_bytes += more

    def _cost(self, place: Place, more_bytes: int) -> None:
        place.cost_bytes += more_bytes
        if place.kind is QuotaKind.STRANGER:
            self._strangers.grew(place, more_bytes)
            self._bound_bytes(place)
        elif place.kind is QuotaKind.PRINCIPAL:
            self._admitted_bytes += more_bytes

    def _release(self, place: Place) -> None:
        kind, place.scope = place.kind, None
        self._end_wait(place)
        if kind is QuotaKind.STRANGER:
            self._strangers.remove(place)
            self._stranger_said -= place.said_bytes
        elif kind is QuotaKind.PRINCIPAL:
            self._admitted_bytes -= place.held_bytes
            self._said.change(place.principal, place, 0)
            self._admitted.give_back(place.principal)
            if place.satellite is not None:
                reserve = self._satellites[place.satellite]
                reserve.give_back(place.principal)
                if not reserve.total:
                    del self._satellites[place.satellite]
        place.kind = QuotaKind.NONE
