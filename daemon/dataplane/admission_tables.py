"""What the control plane has told for admitting clients here: tokens, gates of awake satellites, credits.

A token's table is replaced as a whole. A gate is open from its GATE to its SHUT_GATE, or until it runs out. Everything ends
with the control plane's seat: the next one tells it again. So a control plane that knows nothing of gates finds none open.

The tables only ever say yes. Whatever they do not know is a reason to ask the control plane, and never to refuse.

What decides is in C (native/src/admission.c), since the joiner's thread admits clients by it. Here is what the records of
those clients need besides: whose a token is, and which satellite's a gate.
"""

import contextlib
import dataclasses
import enum
import functools
import ipaddress
from collections.abc import Callable

from bentpipe.daemon.connections.dial_once import SatelliteTls, numeric
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.planes.bounds import CREDITED_PRINCIPALS, GATES_OPEN, GRANTED_TOKENS
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.snapshots import CreditRecord, GateRecord, GrantRecord, GrantsRecord
from bentpipe.native.admission import PAYERS, TLS_NAME_BYTES, Entering, GateEntry, GateTarget, NativeAdmission
from bentpipe.native.tls import TlsClientContext
from bentpipe.proto.first_settings import Announcement


class Unadmitted(enum.Enum):
    """Why a client is offered to the control plane instead; the values name counters."""

    NO_TOKEN = "no-token"
    """The table does not have its token: sessions and CI jobs are the control plane's."""
    NOT_GRANTED = "not-granted"
    EXPIRED = "expired"
    NO_GATE = "no-gate"
    """Its satellite is not awake, as far as is known here."""
    RUN_OUT = "run-out"
    """The control plane has not renewed the gate."""
    NO_CREDIT = "no-credit"
    UNUSUAL = "unusual"
    """Its first request, or what it says before it, is for the control plane to judge."""
    CERTIFICATE = "certificate"
    SILENT = "silent"
    """Its first request does not come."""
    LEFT = "left"
    UNREACHED = "unreached"
    """Its satellite cannot be reached at once."""
    STRANGER = "stranger"
    """Another process listens where the satellite should."""
    CHANGED = "changed"
    """The gate was shut, or the token taken back, while it was on its way."""


UNADMITTED = {each: Unadmitted[each.name] for each in Entering if each.name in Unadmitted.__members__}
"""By what C says."""


@dataclasses.dataclass(frozen=True, slots=True)
class GrantedToken:
    """One token."""

    principal: str
    credentials: frozenset[str]


@dataclasses.dataclass(eq=False, slots=True)
class SatelliteGate:
    """One opening of a satellite's gate."""

    number: int
    key: SatelliteKey
    address: Address
    trust: str
    server_name: str
    owned: bool
    """Whether the socket that listens at the address must be one of a known process."""
    uid: int
    inodes: frozenset[int]


@dataclasses.dataclass(frozen=True, slots=True)
class Admitted:
    """A client that may be brought to its satellite."""

    token: GrantedToken
    gate: SatelliteGate
    entry: GateEntry


def _nothing() -> None:
    pass


class AdmissionTables:
    """Tokens, gates and credits. `now_us` is in microseconds of CLOCK_BOOTTIME, `wall_us` since the epoch."""

    def __init__(
        self,
        find_trust: Callable[[str], SatelliteTls | None] = lambda name: None,
        changed: Callable[[], None] = _nothing,
    ) -> None:
        """`find_trust`: by the name that a gate has. `changed` is called once something that was told has ended.

        In it those are heard of that were admitted by then, and `find` still finds what they were admitted by.
        """
        self.native = NativeAdmission()
        self._find_trust = find_trust
        self._changed = changed
        self._tokens: dict[int, dict[bytes, GrantedToken]] = {}
        """By generation: the table that counts, and the one before it while `changed` is called."""
        self._gates: dict[int, SatelliteGate] = {}
        self._forget()

    def _forget(self) -> None:
        self.generation = 0
        self.announced = Announcement()
        self._tokens = {0: {}}
        self._coming: dict[bytes, GrantedToken] = {}
        self._coming_count = 0
        self._gates.clear()
        self._open: set[SatelliteKey] = set()
        self._newest = 0
        self._credited: set[str] = set()
        self._payers: dict[str, int] = {}
        self._identities: dict[GrantedToken, int] = {}
        self._next_identity = 0

    def reset(self) -> None:
        """Another control plane sits: nobody is admitted until it has told everything again."""
        self.native.reset()
        with contextlib.suppress(ProtocolBroken):  # no control plane sits that could be told wrongly
            self._changed()
        self._forget()

    @property
    def gates(self) -> int:
        """How many are open, or have run out without being shut."""
        return len(self._gates)

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self._tokens[self.generation])

    def may_admit(self, now_us: int) -> bool:
        """Whether there may be a gate through which a client can go now."""
        return self.native.may_enter(now_us)

    # -- what the control plane tells ----------------------------------------------------------------------------------

    def _payer(self, principal: str) -> int:
        """The principal's number. Raises ProtocolBroken."""
        found = self._payers.setdefault(principal, len(self._payers))
        if found >= PAYERS:
            raise ProtocolBroken("more principals than one control plane may tell of")
        return found

    def _identity(self, token: GrantedToken) -> int:
        """A number for whose a token is: if it is another one's by then, the control plane is asked about the client."""
        found = self._identities.get(token)
        if found is None:
            found = self._identities[token] = self._next_identity
            self._next_identity = self._next_identity + 1 & 0xFFFFFFFF
        return found

    def add_token(self, record: GrantRecord) -> None:
        """One token of the next table. Raises ProtocolBroken."""
        if self._coming_count >= GRANTED_TOKENS or "\0" in record.grants:
            raise ProtocolBroken("more tokens than a table may have, or grants that are not text")
        token = GrantedToken(record.principal, frozenset(each for each in record.credentials.split("\n") if each))
        try:
            payer, grants = self._payer(record.principal), record.grants.encode()
            self.native.add_token(record.digest, record.expires_us, payer, self._identity(token), grants)
        except OSError as exc:
            raise ProtocolBroken(f"a token that cannot be kept: {exc}") from exc
        self._coming_count += 1
        self._coming[record.digest] = token

    def take_table(self, record: GrantsRecord) -> None:
        """The next table is complete, and counts from now on. Raises ProtocolBroken."""
        if record.count != len(self._coming) or record.generation <= self.generation:
            raise ProtocolBroken("a table of tokens that is not complete, or not newer than the one before")
        self._tokens[record.generation] = self._coming
        self.native.take_table(record.generation, record.streams, record.window_bytes)
        self._coming, self._coming_count = {}, 0
        before, self.generation = self.generation, record.generation
        self.announced = Announcement(record.streams, record.window_bytes)
        self._changed()
        del self._tokens[before]
        if len(self._identities) > 2 * GRANTED_TOKENS:
            present = set(self._tokens[self.generation].values())
            self._identities = {token: number for token, number in self._identities.items() if token in present}

    def open_gate(self, record: GateRecord) -> None:
        """Clients may go through. Raises ProtocolBroken."""
        key = SatelliteKey(record.org, record.name)
        if record.id <= self._newest or key in self._open or len(self._gates) >= GATES_OPEN:
            raise ProtocolBroken("a gate with a number that was used, for a satellite that has one, or one too many")
        self._newest = record.id
        gate = SatelliteGate(
            *(record.id, key, Address(record.host, record.port), record.trust, record.server_name),
            *(record.owned, record.uid, frozenset(record.inodes)),
        )
        context, server_name = self._trust_of(gate)
        facts = GateTarget(
            number=record.id,
            org=record.org,
            name=record.name,
            until_us=record.until_us,
            address=_packed(gate.address),
            port=record.port,
            wants_tls=bool(gate.trust),
            context=context,
            server_name=server_name,
            owned=record.owned,
            uid=record.uid,
            inodes=tuple(gate.inodes),
        )
        try:
            self.native.open_gate(facts)
        except OSError as exc:
            raise ProtocolBroken(f"a gate that cannot be kept: {exc}") from exc
        self._gates[record.id] = gate
        self._open.add(key)

    def _trust_of(self, gate: SatelliteGate) -> tuple[TlsClientContext | None, bytes]:
        """The context and the name that the certificate must have; no context if the satellite cannot be connected to."""
        trust = self._find_trust(gate.trust) if gate.trust else None
        if trust is None or trust.refused or trust.context is None:
            return None, b""
        try:
            name = (gate.server_name or trust.server_name or gate.address.host).encode("idna")
        except UnicodeError:
            return None, b""
        return (trust.context, name) if 0 < len(name) < TLS_NAME_BYTES else (None, b"")

    def look_at_trusts(self) -> None:
        """The TLS by which satellites are known may have changed: from now on it is the one that is found now."""
        for gate in self._gates.values():
            if gate.trust:
                self.native.trust_gate(gate.number, *self._trust_of(gate))
        self._changed()

    def renew(self, number: int, until_us: int) -> None:
        """The gate is good for longer, if it is open."""
        self.native.renew_gate(number, until_us)

    def shut_gate(self, number: int) -> None:
        """Nobody goes through from now on. Raises ProtocolBroken for a number that there never was."""
        if number > self._newest:
            raise ProtocolBroken("a gate that was never opened is shut")
        self.native.shut_gate(number)
        self._changed()
        gate = self._gates.pop(number, None)
        if gate is not None:
            self._open.discard(gate.key)

    def credit(self, record: CreditRecord) -> int:
        """So many clients of the principal may be admitted in all. Returns how many were. Raises ProtocolBroken."""
        if record.principal not in self._credited:
            if len(self._credited) >= CREDITED_PRINCIPALS:
                raise ProtocolBroken("credits for more principals than there may be")
            self._credited.add(record.principal)
        try:
            used = self.native.credit(self._payer(record.principal), record.allowed)
        except OSError as exc:
            raise ProtocolBroken(f"a credit that cannot be kept: {exc}") from exc
        self._changed()
        return used

    # -- clients -------------------------------------------------------------------------------------------------------

    def find(self, gate: int, generation: int, digest: bytes) -> tuple[SatelliteGate, GrantedToken]:
        """What a client was admitted by. Raises KeyError if that has ended, and all were heard of since."""
        return self._gates[gate], self._tokens[generation][digest]

    def admit(self, digest: bytes, key: SatelliteKey, now_us: int, wall_us: int) -> Admitted | Unadmitted:
        """Take a credit for a client with this token, if it may use the satellite and the satellite's gate is open."""
        found = self.native.enter(digest, key.org, key.name, now_us, wall_us)
        if isinstance(found, Entering):
            return UNADMITTED[found]
        gate, token = self.find(found.number, found.generation, digest)
        return Admitted(token, gate, found)

    def still_holds(self, admitted: Admitted, now_us: int, wall_us: int) -> bool:
        """Whether the client may still be brought to its satellite, by the tables as they are now."""
        return self.native.holds(admitted.entry, now_us, wall_us)

    def give_back(self, admitted: Admitted) -> None:
        """The client was not brought to its satellite: its credit is free."""
        self.native.leave(admitted.entry, back=True)

    def joined(self, admitted: Admitted) -> Callable[[], None]:
        """The client was brought to its satellite. Returns what gives its credit back at its end: see `give_back_of`."""
        give_back = self.give_back_of(admitted.entry.seat, admitted.entry.payer)
        self.native.leave(admitted.entry, back=False)
        return give_back

    def give_back_of(self, seat: int, payer: int) -> Callable[[], None]:
        """For a client that no control plane knows of: it does nothing once another one sits."""
        return functools.partial(self.native.give_back, seat, payer)


def _packed(address: Address) -> bytes:
    """The address as C has it; b"" if it is not one that is connected to here."""
    found = numeric(address)
    return b"" if found is None else ipaddress.ip_address(address.host).packed
