"""Tells data planes how they may admit clients themselves: gates of awake satellites, tokens, credits (planes/snapshots.py).

The rules:

- A gate is open while a client would get its lease at once, if the satellite proves itself when it is dialled: by a TLS
  certificate of its own, or as a local process whose listening socket is known.
- It is shut in the step in which that ends. `kept_shut` waits until every data plane has said so. A plane that cannot be
  asked any more but may live counts as one that lets clients through.
- While a plane lives that has not told what it has, nothing counts as shut: it may have clients of any satellite.
- A host tells the others of its fleet that it does not use a satellite any more only after the gate is shut.
- A client takes a place of its principal's quota. Places are lent to the planes ahead of time, so no limit can be exceeded.
- What planes know of a gate is good for a limited time without this process.
"""

import collections
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable

import trio

from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.edge.announcements import Announcements
from bentpipe.daemon.edge.gate_facts import GateFacts, GateFinder
from bentpipe.daemon.edge.grant_table import grant_records
from bentpipe.daemon.edge.plane import RemotePlane
from bentpipe.daemon.edge.plane_gates import PlaneGates
from bentpipe.daemon.errors import SleepVetoed
from bentpipe.daemon.fleet.gates import Gated
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.records import LINK_ID
from bentpipe.daemon.planes.snapshots import (
    AdmittedRecord,
    CreditedRecord,
    GatedRecord,
    GrantedRecord,
    GrantRecord,
    GrantsRecord,
    boot_us,
)
from bentpipe.daemon.tasks import Owner, contained
from bentpipe.native.tls import TlsError
from bentpipe.proto.first_settings import Announcement

log = logging.getLogger("bentpipe.edge")

VALID_S = 60.0
"""For how long a data plane may let clients through a gate after this process has said something of it last."""
HOST_EXPIRY_PART = 4
"""With a shared store at most this part of `host_expiry`: then other hosts may put the satellite to sleep."""
RENEW_S = 2.0
"""Between two looks at all gates. It is short beside all of the above, and a new satellite's gate opens within it."""
GATED_S = 2.0
"""For a data plane to shut a gate before its satellite is put to sleep. If it does not answer, the satellite stays awake."""
SETTLE_S = 5.0
"""For data planes to take over what has changed, before a reload says that it is done."""
GRANTS_A_TURN = 64
"""Records of tokens that are written before other tasks have their turn, each in some 10 us."""

NOT_SHUT = "a data plane that may let clients in does not answer"
UNHEARD = "a data plane lives that does not answer: it may have clients"


def valid_s_of(host_expiry_s: float | None) -> float:
    """For how long gates are good; `host_expiry_s` is the shared store's, None without one."""
    return VALID_S if host_expiry_s is None else min(VALID_S, host_expiry_s / HOST_EXPIRY_PART)


class Gatekeeper:
    """See fleet.gates.Gates. All planes that can admit clients; none is told anything while `enabled` is false."""

    def __init__(
        self,
        finder: GateFinder,
        admission: Admission,
        quotas: Quotas,
        announcements: Announcements,
        *,
        enabled: bool,
        valid_s: float = VALID_S,
        clock_us: Callable[[], int] = boot_us,
    ) -> None:
        """`clock_us` is the data planes' clock, too."""
        self._finder = finder
        self._admission = admission
        self._quotas = quotas
        self._announcements = announcements
        self._enabled = enabled
        self._valid_us = round(1e6 * valid_s)
        self._clock_us = clock_us
        self._planes: dict[int, PlaneGates] = {}
        """By the planes' numbers."""
        self._unheard: set[str] = set()
        """Names of planes that live and have not told what they have."""
        self._satellites: dict[SatelliteKey, Gated] = {}
        self._leaving: dict[SatelliteKey, Gated] = {}
        """Those whose gate was asked to be shut."""
        self._generation = 1
        self._announced: Announcement | None = None
        """What planes were told to announce."""
        self._kept_shut: collections.Counter[SatelliteKey] = collections.Counter()
        self._changed = trio.Event()
        self._stale = trio.Event()
        self.admitted = 0
        """Clients that data planes have admitted."""
        admission.on_change(self.tokens_changed)

    # -- the configuration, tokens -------------------------------------------------------------------------------------

    def follow(self, *, enabled: bool) -> None:
        """Another configuration holds. Begin or cease to tell planes anything.

        Places that are lent come back, and are lent anew by the limits as they are now. They are back when `settle` has
        returned.
        """
        self._enabled = enabled
        for gates in self._planes.values():
            if not enabled:
                gates.shut_all()
            gates.recall()
        self.tokens_changed()
        self._look_at_all()

    def tokens_changed(self) -> None:
        """The planes get the tokens as they are now, very soon."""
        self._generation += 1
        self._stale.set()

    async def settle(self) -> list[str]:
        """Wait until every plane holds to what is known now. Returns what went wrong."""
        with trio.move_on_after(SETTLE_S):
            while any(gates.shutting or gates.generation < self._generation for gates in self._planes.values()):
                await self._changed.wait()
            return []
        return [NOT_SHUT]

    # -- satellites: see Gates -----------------------------------------------------------------------------------------

    def stepped(self, satellite: Gated) -> None:
        """See Gates."""
        known, address = self._satellites.get(satellite.key), satellite.open_address
        if address is None or self._kept_shut[satellite.key]:
            if known is not None:
                self.gone(satellite.key)
                if not self.is_shut(satellite.key):
                    self._leaving[satellite.key] = satellite
        elif known is not satellite or self._is_elsewhere(satellite.key, address):
            self._satellites[satellite.key] = satellite
            self._look_at(satellite)

    def _is_elsewhere(self, key: SatelliteKey, address: Address) -> bool:
        for gates in self._planes.values():
            facts = gates.facts_of(key)
            if facts is not None and facts.address != address:
                return True
        return False

    def gone(self, key: SatelliteKey) -> None:
        """See Gates."""
        self._satellites.pop(key, None)
        for gates in self._planes.values():
            gates.shut(key)

    @contextlib.asynccontextmanager
    async def kept_shut(self, key: SatelliteKey) -> AsyncIterator[None]:
        """See Gates."""
        satellite = self._satellites.get(key)
        self._kept_shut[key] += 1
        try:
            self.gone(key)
            if self._unheard:
                raise SleepVetoed(UNHEARD)  # at once: a client that comes now is not held up for it
            with trio.move_on_after(GATED_S):
                while not self.is_shut(key):
                    await self._changed.wait()
            if not self.is_shut(key):
                raise SleepVetoed(NOT_SHUT)
            yield
        finally:
            self._kept_shut[key] -= 1
            if self._kept_shut[key] == 0:
                del self._kept_shut[key]
            if satellite is not None and key not in self._kept_shut:
                self.stepped(satellite)

    def is_shut(self, key: SatelliteKey) -> bool:
        """Whether nobody comes through the gate, and everybody that has come is known."""
        return not self._unheard and not any(gates.lets_in(key) for gates in self._planes.values())

    def look(self) -> None:
        """Look at all gates again, and renew them."""
        self._look_at_all()
        for gates in self._planes.values():
            gates.renew(self._clock_us() + self._valid_us)
            if self._enabled:
                gates.top_up_all()
            else:
                gates.recall()

    def _look_at_all(self, planes: Iterable[PlaneGates] | None = None) -> None:
        for satellite in list(self._satellites.values()):
            with contained(Owner("gate", str(satellite.key))):
                self._look_at(satellite, planes)

    def _look_at(self, satellite: Gated, planes: Iterable[PlaneGates] | None = None) -> None:
        if not self._planes or not self._enabled:
            return
        key, facts = satellite.key, self._facts_of(satellite)
        for gates in self._planes.values() if planes is None else planes:
            if gates.facts_of(key) not in (None, facts):
                gates.shut(key)
            if facts is not None:
                try:
                    gates.open(key, facts, self._clock_us() + self._valid_us)
                except TlsError as exc:
                    log.warning("no gate", extra={"fields": {"satellite": str(key), "error": str(exc)}})

    def _facts_of(self, satellite: Gated) -> GateFacts | None:
        # A limit for each satellite is not lent: clients of its satellites have to ask.
        return None if self._quotas.limits_satellites else self._finder.find(satellite)

    # -- planes --------------------------------------------------------------------------------------------------------

    def expect(self, name: str) -> None:
        """A plane lives, by its name. Until `heard` it may have clients of any satellite."""
        self._unheard.add(name)

    def heard(self, name: str) -> None:
        """The plane has told everything that it has, or is gone."""
        self._unheard.discard(name)
        self._tell_changed()

    async def hear_late(self, name: str, told: trio.Event) -> None:
        """Wait until the plane has told everything."""
        await told.wait()
        self.heard(name)

    def only_these_live(self, names: Iterable[str]) -> None:
        """No other planes live than these."""
        for name in self._unheard.difference(names):
            self.heard(name)

    @property
    def unheard(self) -> bool:
        """Whether a plane lives that has not told what it has."""
        return bool(self._unheard)

    def seated(self, plane: RemotePlane) -> None:
        """The plane was seated: it knows nothing of what it was told before, and has told everything that it has."""
        self.forget(plane)
        if plane.takes_snapshots:
            self._planes[plane.number] = PlaneGates(plane, self._quotas)
            self._stale.set()

    def forget(self, plane: RemotePlane) -> None:
        """The plane is gone."""
        if (gates := self._planes.pop(plane.number, None)) is not None:
            gates.forget()
            self._tell_changed()

    def answered(self, plane: RemotePlane, record: GatedRecord | GrantedRecord | CreditedRecord) -> None:
        """The plane holds to what it was told. Raises ProtocolBroken."""
        gates = self._planes.get(plane.number)
        if gates is None:
            raise ProtocolBroken("an answer to what was never told")
        match record:
            case GatedRecord():
                gates.gated(record.id)
            case GrantedRecord():
                gates.generation = max(gates.generation, min(record.generation, gates.sent_generation))
            case CreditedRecord():
                gates.credited(record)
        self._tell_changed()

    def take_admitted(self, plane: RemotePlane, record: AdmittedRecord, key: SatelliteKey, principal: str) -> None:
        """The plane has admitted a client. One place is lent less from now on. Raises ProtocolBroken."""
        gates = self._planes.get(plane.number)
        if gates is None or gates.key_of(record.gate) != key:
            raise ProtocolBroken("a client of another satellite than the gate's")
        gates.admitted(principal)
        self.admitted += 1

    def top_up(self, plane: RemotePlane, principal: str) -> None:
        """A client of the principal was taken over: lend more places, if few are left."""
        if self._enabled and (gates := self._planes.get(plane.number)) is not None:
            gates.top_up(principal)

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        for key, satellite in list(self._leaving.items()):
            if self.is_shut(key):
                del self._leaving[key]
                with contained(Owner("gate", str(key))):
                    satellite.leave_if_unused()

    # -- tasks ---------------------------------------------------------------------------------------------------------

    async def run_gates(self) -> None:
        """Look at all gates again and renew them, for ever."""
        while True:
            await trio.sleep(RENEW_S)
            self.look()
            if self._announced != self._announcements.announce(None):
                self.tokens_changed()

    async def run_grants(self) -> None:
        """Tell planes the tokens when they change, for ever."""
        while True:
            await self._stale.wait()
            self._stale = trio.Event()
            generation = self._generation
            records = grant_records(self._admission) if self._enabled else []
            for gates in list(self._planes.values()):
                if gates.sent_generation < generation:
                    await self._tell_tokens(gates, generation, records)

    async def _tell_tokens(self, gates: PlaneGates, generation: int, records: list[GrantRecord]) -> None:
        for number, record in enumerate(records, 1):
            gates.plane.send_nowait(record)
            if number % GRANTS_A_TURN == 0:
                await trio.lowlevel.checkpoint()
        least = self._announced = self._announcements.announce(None)
        gates.plane.send_nowait(GrantsRecord(LINK_ID, generation, len(records), least.streams, least.window_bytes))
        self.told(gates.plane, generation, records)

    def told(self, plane: RemotePlane, generation: int, records: list[GrantRecord]) -> None:
        """The plane was sent this table of tokens: it may get credits for them, and gates."""
        gates = self._planes.get(plane.number)
        if gates is not None and gates.plane is plane:
            gates.sent_generation = generation
            gates.lend(dict.fromkeys(record.principal for record in records))
            self._look_at_all([gates])

    @property
    def generation(self) -> int:
        """Of the tokens as they are now."""
        return self._generation

    @property
    def enabled(self) -> bool:
        """Whether planes may be told anything."""
        return self._enabled

    @property
    def open_gates(self) -> frozenset[SatelliteKey]:
        """The satellites that data planes may bring clients to themselves."""
        return frozenset(key for gates in self._planes.values() for key in gates.open_gates)

    def lent(self, plane: RemotePlane) -> int:
        """How many places the plane has ahead of time."""
        gates = self._planes.get(plane.number)
        return 0 if gates is None else gates.lent

    def confirmed(self, plane: RemotePlane) -> int:
        """By which table of tokens the plane admits clients, or by a later one; 0: by none."""
        gates = self._planes.get(plane.number)
        return 0 if gates is None else gates.generation
