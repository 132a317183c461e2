"""What one data plane was told for admitting clients, and what it has answered: gates, tokens, credits.

It stays until the plane is gone or was seated anew. Until then a plane whose link is over may let clients through the gates
that it knows.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.edge.gate_facts import GateFacts
from bentpipe.daemon.edge.plane import RemotePlane
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.planes.bounds import GATES_A_RECORD, GATES_OPEN
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.records import LINK_ID
from bentpipe.daemon.planes.snapshots import (
    CreditedRecord,
    CreditRecord,
    GateRecord,
    RenewRecord,
    ShutGateRecord,
)

LENT = 64
"""Places of a principal that a plane has ahead of time, at most: so many clients come in while this process is away."""


@dataclasses.dataclass(slots=True)
class _Loan:
    """Places of one principal."""

    used: int = 0
    """Clients that the plane has said it admitted."""
    allowed: int = 0
    """Up to how many it may, as it was told."""
    lent: int = 0
    """Places that are taken from the quota for clients which the plane may admit."""


class PlaneGates:
    """`generation` is that of the tokens that the plane has confirmed; `sent_generation` was sent to it."""

    def __init__(self, plane: RemotePlane, quotas: Quotas) -> None:
        self.plane = plane
        self.sent_generation = self.generation = 0
        self._quotas = quotas
        self._numbers = itertools.count(1)
        self._open: dict[SatelliteKey, tuple[int, GateFacts]] = {}
        self._keys: dict[int, SatelliteKey] = {}
        """By number: the open ones, and those whose GATED has not come."""
        self._loans: dict[str, _Loan] = {}
        self._recalled = False

    # -- gates ---------------------------------------------------------------------------------------------------------

    def open(self, key: SatelliteKey, facts: GateFacts, until_us: int) -> None:
        """Let the plane bring clients to the satellite, if it may not already. Raises TlsError."""
        if key in self._open or len(self._open) >= GATES_OPEN:
            return
        if facts.tls is not None:
            self.plane.teach(facts.tls)
        number = next(self._numbers)
        self._open[key] = number, facts
        self._keys[number] = key
        owner, tls = facts.owner, facts.tls
        self.plane.send_nowait(
            GateRecord(
                id=number,
                port=facts.address.port,
                until_us=until_us,
                owned=owner is not None,
                uid=0 if owner is None or owner.uid is None else owner.uid,
                org=key.org,
                name=key.name,
                host=facts.address.host,
                trust="" if tls is None else tls.trust,
                server_name="" if tls is None else tls.server_name or "",
                inodes=() if owner is None or owner.uid is not None else tuple(sorted(owner.inodes)),
            )
        )

    def facts_of(self, key: SatelliteKey) -> GateFacts | None:
        """What was told of an open gate."""
        found = self._open.get(key)
        return None if found is None else found[1]

    def shut(self, key: SatelliteKey) -> None:
        """Ask the plane to shut it."""
        if (found := self._open.pop(key, None)) is not None:
            self.plane.send_nowait(ShutGateRecord(found[0]))

    def shut_all(self) -> None:
        """Ask it to shut all."""
        for key in list(self._open):
            self.shut(key)

    def renew(self, until_us: int) -> None:
        """All gates that are open are good for longer."""
        numbers = [number for number, _ in self._open.values()]
        for at in range(0, len(numbers), GATES_A_RECORD):
            self.plane.send_nowait(RenewRecord(LINK_ID, until_us, tuple(numbers[at : at + GATES_A_RECORD])))

    def gated(self, number: int) -> None:
        """The plane has shut a gate. Raises ProtocolBroken."""
        key = self._keys.get(number)
        if key is None or (key in self._open and self._open[key][0] == number):
            raise ProtocolBroken("GATED for a gate that was not to be shut")
        del self._keys[number]

    def lets_in(self, key: SatelliteKey) -> bool:
        """Whether the plane may bring clients to the satellite, as far as is known."""
        return key in self._open or key in self._keys.values()

    @property
    def shutting(self) -> bool:
        """Whether a GATED has yet to come."""
        return len(self._keys) > len(self._open)

    def key_of(self, number: int) -> SatelliteKey:
        """The satellite of a gate through which a client has come. Raises ProtocolBroken if the gate is not open."""
        try:
            return self._keys[number]
        except KeyError as exc:
            raise ProtocolBroken("a client came through a gate that is shut") from exc

    # -- credits -------------------------------------------------------------------------------------------------------

    @property
    def lent(self) -> int:
        """Places that the plane has ahead of time."""
        return sum(loan.lent for loan in self._loans.values())

    def lend(self, principals: Iterable[str]) -> None:
        """Let the plane admit clients of these principals, as far as there are places."""
        self._recalled = False
        for principal in principals:
            self._top_up(principal, self._loans.setdefault(principal, _Loan()))

    def _top_up(self, principal: str, loan: _Loan) -> None:
        most = min(LENT, self._quotas.most_lent)
        more = self._quotas.lend(principal, most - loan.lent) if loan.lent <= most // 2 else 0
        if more:
            loan.lent += more
            loan.allowed = loan.used + loan.lent
            self.plane.send_nowait(CreditRecord(LINK_ID, loan.allowed, principal))

    def recall(self) -> None:
        """Ask for all that is lent: it comes back with CREDITED. Places of clients on their way take another call."""
        self._recalled = True
        for principal, loan in self._loans.items():
            if loan.lent:
                loan.allowed = loan.used
                self.plane.send_nowait(CreditRecord(LINK_ID, loan.allowed, principal))

    def admitted(self, principal: str) -> None:
        """The plane has admitted a client of the principal: one of the places is the client's. Raises ProtocolBroken."""
        loan = self._loans.get(principal)
        if loan is None or not loan.lent:
            raise ProtocolBroken("a client was admitted without a credit")
        loan.used += 1
        loan.lent -= 1

    def top_up(self, principal: str) -> None:
        """Lend more, if little is left."""
        if not self._recalled and (loan := self._loans.get(principal)) is not None:
            self._top_up(principal, loan)

    def top_up_all(self) -> None:
        """Lend more to all that have little left: there may be places again."""
        for principal in self._loans:
            self.top_up(principal)

    def credited(self, record: CreditedRecord) -> None:
        """The plane knows a credit, and says how many clients it has admitted or is about to."""
        loan = self._loans.get(record.principal)
        if loan is None or record.allowed != loan.allowed:
            return  # a newer one is on its way
        may_come = max(0, max(record.allowed, record.used) - loan.used)
        if may_come < loan.lent:
            self._quotas.take_back(record.principal, loan.lent - may_come)
            loan.lent = may_come

    def forget(self) -> None:
        """The plane is gone, or knows nothing of all this any more."""
        for principal, loan in self._loans.items():
            self._quotas.take_back(principal, loan.lent)
        self._loans.clear()
        self._open.clear()
        self._keys.clear()

    @property
    def open_gates(self) -> Sequence[SatelliteKey]:
        """Satellites whose gates are open."""
        return tuple(self._open)
