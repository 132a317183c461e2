"""What the control plane has told for admitting clients here: tokens, gates of awake satellites, credits. Pure.

A token's table is replaced as a whole. A gate is open from its GATE to its SHUT_GATE, or until it runs out. Everything ends
with the control plane's seat: the next one tells it again. So a control plane that knows nothing of gates finds none open.

The tables only ever say yes. Whatever they do not know is a reason to ask the control plane, and never to refuse.
"""

import dataclasses
import enum

from bentpipe.daemon.model import Address, Grant, SatelliteKey
from bentpipe.daemon.planes.bounds import CREDITED_PRINCIPALS, GATES_OPEN, GRANTED_TOKENS
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.snapshots import CreditRecord, GateRecord, GrantRecord, GrantsRecord
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


@dataclasses.dataclass(frozen=True, slots=True)
class GrantedToken:
    """One token."""

    principal: str
    expires_us: int
    grants: tuple[Grant, ...]
    credentials: frozenset[str]

    def covers(self, key: SatelliteKey) -> bool:
        """Whether it may be used for the satellite."""
        return any(grant.covers(key) for grant in self.grants)

    def holds(self, wall_us: int) -> bool:
        """Whether it has not expired."""
        return not self.expires_us or wall_us < self.expires_us


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
    until_us: int
    is_open: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Admitted:
    """A client that may be brought to its satellite."""

    digest: bytes
    token: GrantedToken
    gate: SatelliteGate
    seat: int
    """Rises with each reset."""


@dataclasses.dataclass(slots=True)
class _Credit:
    allowed: int = 0
    used: int = 0


class AdmissionTables:
    """Tokens, gates and credits. `now_us` is in microseconds of CLOCK_BOOTTIME, `wall_us` since the epoch."""

    def __init__(self) -> None:
        self._seat = 0
        self._numbered: dict[int, SatelliteGate] = {}
        self.reset()

    def reset(self) -> None:
        """Another control plane sits: nobody is admitted until it has told everything again."""
        self._seat += 1
        for gate in self._numbered.values():
            gate.is_open = False
        self._numbered.clear()
        self.generation = 0
        self.announced = Announcement()
        self._tokens: dict[bytes, GrantedToken] = {}
        self._coming: dict[bytes, GrantedToken] = {}
        self._gates: dict[SatelliteKey, SatelliteGate] = {}
        self._newest = 0
        self._credits: dict[str, _Credit] = {}
        self._until_us = 0
        """When the last gate runs out, at the latest."""

    @property
    def gates(self) -> int:
        """How many are open, or have run out without being shut."""
        return len(self._gates)

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self._tokens)

    def may_admit(self, now_us: int) -> bool:
        """Whether there may be a gate through which a client can go now."""
        return bool(self._tokens and self._gates) and self._until_us > now_us

    # -- what the control plane tells ----------------------------------------------------------------------------------

    def add_token(self, record: GrantRecord) -> None:
        """One token of the next table. Raises ProtocolBroken."""
        if len(self._coming) >= GRANTED_TOKENS:
            raise ProtocolBroken("more tokens than a table may have")
        self._coming[record.digest] = GrantedToken(
            record.principal,
            record.expires_us,
            tuple(Grant.parse(each) for each in record.grants.split("\n") if each),
            frozenset(each for each in record.credentials.split("\n") if each),
        )

    def take_table(self, record: GrantsRecord) -> None:
        """The next table is complete, and counts from now on. Raises ProtocolBroken."""
        if record.count != len(self._coming) or record.generation <= self.generation:
            raise ProtocolBroken("a table of tokens that is not complete, or not newer than the one before")
        self._tokens, self._coming = self._coming, {}
        self.generation = record.generation
        self.announced = Announcement(record.streams, record.window_bytes)

    def open_gate(self, record: GateRecord) -> None:
        """Clients may go through. Raises ProtocolBroken."""
        key = SatelliteKey(record.org, record.name)
        if record.id <= self._newest or key in self._gates or len(self._gates) >= GATES_OPEN:
            raise ProtocolBroken("a gate with a number that was used, for a satellite that has one, or one too many")
        self._newest = record.id
        gate = SatelliteGate(
            *(record.id, key, Address(record.host, record.port), record.trust, record.server_name),
            *(record.owned, record.uid, frozenset(record.inodes), record.until_us),
        )
        self._gates[key] = self._numbered[record.id] = gate
        self._until_us = max(self._until_us, gate.until_us)

    def renew(self, number: int, until_us: int) -> None:
        """The gate is good for longer, if it is open."""
        gate = self._numbered.get(number)
        if gate is not None:
            gate.until_us = until_us
            self._until_us = max(self._until_us, until_us)

    def shut_gate(self, number: int) -> None:
        """Nobody goes through from now on. Raises ProtocolBroken for a number that there never was."""
        if number > self._newest:
            raise ProtocolBroken("a gate that was never opened is shut")
        gate = self._numbered.pop(number, None)
        if gate is not None:
            gate.is_open = False
            del self._gates[gate.key]

    def credit(self, record: CreditRecord) -> int:
        """So many clients of the principal may be admitted in all. Returns how many were. Raises ProtocolBroken."""
        found = self._credits.get(record.principal)
        if found is None:
            if len(self._credits) >= CREDITED_PRINCIPALS:
                raise ProtocolBroken("credits for more principals than there may be")
            found = self._credits[record.principal] = _Credit()
        found.allowed = record.allowed
        return found.used

    # -- clients -------------------------------------------------------------------------------------------------------

    def admit(self, digest: bytes, key: SatelliteKey, now_us: int, wall_us: int) -> Admitted | Unadmitted:
        """Take a credit for a client with this token, if it may use the satellite and the satellite's gate is open."""
        token = self._tokens.get(digest)
        if token is None:
            return Unadmitted.NO_TOKEN
        if not token.holds(wall_us):
            return Unadmitted.EXPIRED
        if not token.covers(key):
            return Unadmitted.NOT_GRANTED
        gate = self._gates.get(key)
        if gate is None:
            return Unadmitted.NO_GATE
        if gate.until_us <= now_us:
            return Unadmitted.RUN_OUT
        credit = self._credits.get(token.principal)
        if credit is None or credit.used >= credit.allowed:
            return Unadmitted.NO_CREDIT
        credit.used += 1
        return Admitted(digest, token, gate, self._seat)

    def still_holds(self, admitted: Admitted, now_us: int, wall_us: int) -> bool:
        """Whether the client may still be brought to its satellite, by the tables as they are now."""
        token = self._tokens.get(admitted.digest)
        return (
            admitted.seat == self._seat
            and admitted.gate.is_open
            and admitted.gate.until_us > now_us
            and token is not None
            and token.principal == admitted.token.principal
            and token.credentials
            == admitted.token.credentials  # else the control plane would not know them, and cut it
            and token.holds(wall_us)
            and token.covers(admitted.gate.key)
        )

    def give_back(self, admitted: Admitted) -> None:
        """The client was not brought to its satellite: its credit is free."""
        if admitted.seat == self._seat:
            self._credits[admitted.token.principal].used -= 1
