"""The records by which the data plane (D) admits clients itself, as the control plane (C) has told it to.

    record    from  answer         meaning
    GRANT     C     -              one token of the next table: whose it is, which satellites it may use, until when
    GRANTS    C     GRANTED        that table is complete, and replaces the one before
    GATE      C     -              an awake satellite that clients may be brought to: its address, its TLS; until when
    RENEW     C     -              these gates are good until a later moment
    SHUT_GATE C     GATED          nobody is let through this gate any more
    CREDIT    C     CREDITED       how many clients of one principal D may admit in all, since C sits
    ADMITTED  D     -              D has brought a client to its satellite: as if C had sent a GO

A gate has a number of C's, which is not used again in a seat. Everything that C has told ends when the next C sits, which
tells it again. While no C sits, a gate is good until it runs out. That is a moment of CLOCK_BOOTTIME, which both sides read
alike: a record may lie in the socket for long if D was stopped, and the machine may have been suspended meanwhile.

D only ever says yes. A client that it cannot admit is offered to C (ARRIVED), with what it has said and heard by then.

SHUT_GATE. D shuts the gate, then sends ADMITTED for all that have come through, and GATED after them. So when C reads GATED,
it has read of every client that came through the gate. A client that D is still connecting is offered to C instead.
"""

import dataclasses
import enum
import time


def boot_us() -> int:
    """Microseconds of CLOCK_BOOTTIME (clock_gettime(2)): it does not stand still while the machine is suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class PlaneFeature(enum.IntFlag):
    """What a side can do besides what its version says: HELLO tells it."""

    NONE = 0
    SNAPSHOTS = 2
    """It knows the records of this module. (1 stood for gates that were good from the moment in which they were read.)"""


@dataclasses.dataclass(frozen=True, slots=True)
class GrantRecord:
    """One token that may be used."""

    id: int
    expires_us: int
    """Since the epoch; 0: never."""
    digest: bytes
    """SHA-256 of the token."""
    principal: str
    grants: str
    """As `org/name`, `org/prefix*` or `org/*`, separated by line feeds."""
    credentials: str
    """What a cut may name, separated by line feeds."""


@dataclasses.dataclass(frozen=True, slots=True)
class GrantsRecord:
    """The table is complete with `count` tokens.

    `streams` and `window_bytes` are what D's SETTINGS announce to a client that waits for SETTINGS.
    """

    id: int
    generation: int
    count: int
    streams: int
    window_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class GrantedRecord:
    """No client is admitted by an earlier table from now on."""

    id: int
    generation: int


@dataclasses.dataclass(frozen=True, slots=True)
class GateRecord:
    """A satellite that is awake. `id` is the gate's number.

    If `owned` is set, D makes sure before it sends a byte that the socket that listens there has the user `uid`, or one of
    `inodes` if there are any: a local process may have taken the port over.
    """

    id: int
    port: int
    until_us: int
    """When it runs out, by CLOCK_BOOTTIME."""
    owned: bool
    uid: int
    org: str
    name: str
    host: str
    trust: str
    """As in OPEN."""
    server_name: str
    """As in OPEN."""
    inodes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class RenewRecord:
    """These gates run out at `until_us` of CLOCK_BOOTTIME. Those that are shut stay shut."""

    id: int
    until_us: int
    gates: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ShutGateRecord:
    """Let nobody through the gate `id` any more."""

    id: int


@dataclasses.dataclass(frozen=True, slots=True)
class GatedRecord:
    """The gate `id` is shut."""

    id: int


@dataclasses.dataclass(frozen=True, slots=True)
class CreditRecord:
    """So many clients of a principal may be admitted in all. It may be less than before."""

    id: int
    allowed: int
    principal: str


@dataclasses.dataclass(frozen=True, slots=True)
class CreditedRecord:
    """`used` clients of the principal were admitted so far: no more than `allowed`, or than that many already."""

    id: int
    allowed: int
    used: int
    principal: str


@dataclasses.dataclass(frozen=True, slots=True)
class AdmittedRecord:
    """A client that D is joining with its satellite. WENT or FAILED follows, and ENDED after WENT.

    `moments` are microseconds from the accept to the complete request, the admission, the satellite's connection, and its
    first byte (0: it was not waited for).
    """

    id: int
    gate: int
    start_us: int
    """Of CLOCK_BOOTTIME, as in LIVE."""
    age_us: int
    """Since the accept."""
    up: int
    """What the client has sent, and was sent, so far."""
    down: int
    streams: int
    """What the satellite's SETTINGS announce; 0 if they were not read."""
    window_bytes: int
    peer: str
    tag: bytes
    traceparent: str
    tracestate: str
    moments: tuple[int, ...] = ()


SnapshotRecord = (
    GrantRecord
    | GrantsRecord
    | GrantedRecord
    | GateRecord
    | RenewRecord
    | ShutGateRecord
    | GatedRecord
    | CreditRecord
    | CreditedRecord
    | AdmittedRecord
)
