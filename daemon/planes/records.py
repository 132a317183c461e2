"""The records of the protocol between the control plane (C) and the data plane (D), one class each.

    record    from  answer                     meaning
    HELLO     both  HELLO or BYE               first record of each side: versions, build, plane
    SEAT      C     SEATED, LIVE..., SYNCED    C takes the one seat, or takes it over from a C that hangs
    YIELD     D     -                          another C has taken the seat over
    NOTE      C     DONE                       what C's successor has to know; D keeps the newest, whole
    LIVE      D     -                          one connection that is spliced, or that a GO has taken
    ARRIVED   D     SAY, GO or SHUT            a client, with its handshake done and its first bytes
    BYTES     D     WINDOW                     more bytes of a client, or of a satellite's half
    GONE      D     -                          the peer of a connection hung up, or the connection broke
    WINDOW    both  -                          how far the other side may send, and what was taken
    SAY       C     WINDOW                     words for a client or a half; what to drop of the transcript; the mark
    TRUST     C     DONE                       certificates that are in no file: by which a satellite is trusted
    OPEN      C     WENT or FAILED             connect to a satellite: a half, with an id of C's
    GO        C     WENT or FAILED, ENDED      join a client and a half, replay the transcript, splice
    SHUT      C     CLOSED, ENDED or BUSY      close a connection, or end a splice
    ENDED     D     KEPT                       a splice is over
    METERS    C     METERED                    what splices have moved; without an id: COUNTERS first
    LIMITS, WORDS, DRAIN    C    DONE          limits of arrivals; the answer while C is away; stop
    CREDENTIAL C    DONE                       a newer credential of the unit, for the next RELOAD and later ones
    RELOAD    C     DONE                       read the files again; DONE comes when they are read
    COUNTERS  D     -                          D's counters, once a second
    UNOFFERED D     -                          a connection has ended that was never offered: for C's records
    PING      both  PONG                       is the other side alive
    LISTENERS D     LISTENERS                  between two data planes: the listening sockets, as descriptors
    BYE       both  -                          the sender ends the link, and says why

Those by which D admits clients itself are in snapshots.py.

Ids. A client has an id of D's; a half, a connection to a satellite, has one of C's, with HALF_BIT. An id is not used again
in a plane's life. Id 0 is the link itself. A record for an id that is gone is ignored. A record for an id that was never
given out ends the link with BYE.

Offsets count the bytes of one connection, from ARRIVED on for a client and from WENT on for a half. So the offsets of a
client that is offered again begin again at 0, without the bytes that were dropped.

If a side dies, the other one first reads the socket to its end. D carries out every GO that it has read. Of a client without
a GO it keeps the transcript, and offers the client to the next C, unless C had said OWN: then D finishes the words of C and
closes the connection. D closes halves that no GO has taken.
"""

import dataclasses
import enum

from bentpipe.daemon.planes.snapshots import SnapshotRecord

HALF_BIT = 1 << 63
"""Set in the ids that the control plane gives to halves."""

LINK_ID = 0
"""The id of a record that is about the link itself."""


class ArrivalFlag(enum.IntFlag):
    """What is special about a client."""

    NONE = 0
    PLAINTEXT = 1
    """It speaks in the clear to a port with TLS."""
    AGAIN = 2
    """It was offered to an earlier control plane."""
    BY_PROXY = 4
    """A trusted proxy has named its address."""
    HASHED = 8
    """`certificate` is the SHA-256 of a certificate that is too long to be sent."""
    LOCAL = 16
    """It has no IP address: the peer of a Unix socket, or a proxy that connects for itself on such a socket."""


class SayFlag(enum.IntFlag):
    """What follows from a SAY."""

    NONE = 0
    OWN = 1
    """The control plane answers this connection itself: nobody else can go on with it, and its transcript is not kept."""


class GoFlag(enum.IntFlag):
    """How a GO is to be done."""

    NONE = 0
    ACK_OWED = 1
    """The client will acknowledge SETTINGS that the satellite never sent: take the ACK out."""


class Hangup(enum.IntEnum):
    """What GONE says of a connection's peer."""

    HUNG_UP = 1
    """It has ended or reset the connection, though bytes of it wait for a WINDOW."""
    LEFT = 2
    """It left by RST, or ended TLS without close_notify."""
    BROKEN = 3
    """The connection broke."""
    FLOOD = 4
    """It sent too much that carries no data; `words` name the limit. It is not read any more, and can be written to."""


class Shutting(enum.IntEnum):
    """How to close or end a connection."""

    GRACEFUL = 1
    """Send the words that wait, FIN, read the rest for a moment, close. A splice: give both sides their FIN."""
    RESET = 2
    """At once; with unread input or for a splice by RST."""
    IF_QUIET = 3
    """A splice: GRACEFUL if it has moved at most `moved` bytes, both directions added; else BUSY is the answer."""
    IF_QUIET_RESET = 4
    """The same by RST."""


class FailedAt(enum.IntEnum):
    """Where a FAILED happened."""

    DIAL = 1
    TLS = 2
    """The satellite's TLS handshake, or no context for it."""
    REPLAY = 3
    """After the client could hear the satellite: its connection was closed."""
    REFUSED = 4
    """The plane could not do it: a limit, or an id that is gone. Nothing was sent."""


class Stage(enum.IntEnum):
    """What LIVE says of a connection."""

    UNDER_WAY = 1
    SPLICED = 2


class ByeCode(enum.IntEnum):
    """Why a link ends."""

    LEAVING = 1
    """The sender goes away in good order."""
    BROKEN = 2
    """The receiver of this record has broken the protocol."""
    VERSION = 3
    """No common version."""
    SEAT_TAKEN = 4
    SLOW = 5
    """The receiver of this record does not read."""
    DENIED = 6
    """The peer's user may not connect."""


@dataclasses.dataclass(frozen=True, slots=True)
class HelloRecord:
    """The oldest and the newest version that the sender speaks; the link speaks the newest that both do."""

    id: int
    oldest: int
    newest: int
    features: int
    pid: int
    build: str
    plane: str
    """Names the data plane, for as long as it lives."""
    digest: bytes
    """SHA-256 of what the sender knows of listeners and satellites; empty if it does not say."""
    holder: tuple[int, ...] = ()
    """Of D: the process of the C that sits, and for how many milliseconds that has said nothing. Empty if none sits."""


@dataclasses.dataclass(frozen=True, slots=True)
class SeatRecord:
    """C takes the seat. `take_over`: even if another C has it, which then gets YIELD."""

    id: int
    take_over: bool


@dataclasses.dataclass(frozen=True, slots=True)
class SeatedRecord:
    """C has the seat. `note` is what the last C left."""

    id: int
    session: int
    """Rises with every C."""
    note: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class SyncedRecord:
    """The snapshot is complete: so many LIVE records came. Ends from number `next_end` on follow."""

    id: int
    count: int
    next_end: int


@dataclasses.dataclass(frozen=True, slots=True)
class YieldRecord:
    """The seat was taken over by another C."""

    id: int
    words: str


@dataclasses.dataclass(frozen=True, slots=True)
class NoteRecord:
    """What the successor of this C has to know."""

    id: int
    note: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class DoneRecord:
    """A NOTE, TRUST, LIMITS, WORDS, RELOAD or DRAIN was carried out. `asked` is that record's kind.

    `words` say what went wrong.
    """

    id: int
    asked: int
    words: str


@dataclasses.dataclass(frozen=True, slots=True)
class LiveRecord:
    """A connection that is spliced or that a GO has taken. Times are microseconds of CLOCK_BOOTTIME."""

    id: int
    stage: Stage
    start_us: int
    up: int
    down: int
    last_us: int
    """When it last moved anything."""
    peer: str
    tag: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class ArrivedRecord:
    """A client. `kept` bytes of it are there; `first` has the beginning of them, and BYTES the rest."""

    id: int
    listener: int
    """The index of the listener in the configuration."""
    port: int
    """The client's port."""
    flags: ArrivalFlag
    mark: int
    kept: int
    age_ms: int
    """Since accept."""
    host: str
    """The client's address, or the one that its proxy names; "" with LOCAL."""
    server_name: str
    """"" if the client sent none."""
    alpn: str
    tls_version: str
    """"" without TLS."""
    certificate: bytes
    """Its certificate (DER); empty if it showed none."""
    first: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class BytesRecord:
    """Bytes of a connection from `offset` on; `end`: it has ended after them."""

    id: int
    offset: int
    end: bool
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class GoneRecord:
    """What has become of a connection's peer."""

    id: int
    hangup: Hangup
    words: str


@dataclasses.dataclass(frozen=True, slots=True)
class WindowRecord:
    """The other side may send the connection's bytes up to offset `allowed`; those before `taken` were taken."""

    id: int
    allowed: int
    taken: int


@dataclasses.dataclass(frozen=True, slots=True)
class SayRecord:
    """Words for a connection. D sends them, drops ranges (offset, length) of the transcript, and keeps `mark`: all or
    nothing."""

    id: int
    flags: SayFlag
    mark: int
    data: bytes
    drops: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class TrustRecord:
    """What OPEN may call `name` from now on, until this C is gone. The rest is PEM. No authorities: D forgets the name."""

    id: int
    name: str
    authorities: bytes
    certificate: bytes
    """That the satellite is shown, with those that lead to its authority; empty if none is."""
    key: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class OpenRecord:
    """Connect to a satellite. `trust` names the TLS context: in D's configuration, or of a TRUST. "" is plaintext."""

    id: int
    port: int
    deadline_ms: int
    host: str
    trust: str
    server_name: str
    """The name that the satellite's certificate must have; "" for its address."""


@dataclasses.dataclass(frozen=True, slots=True)
class GoRecord:
    """Join client `id` and half `half`, which both are D's from now on.

    D sends the client `words`, then what the half has said from `half_from` on. It sends the half the client's transcript
    from `client_from` on. With ACK_OWED it reads frames from `frame_at` on, and takes the ACK of SETTINGS out.
    """

    id: int
    half: int
    flags: GoFlag
    client_from: int
    frame_at: int
    half_from: int
    deadline_ms: int
    tag: bytes
    words: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class WentRecord:
    """A half is connected, or a GO is spliced."""

    id: int


@dataclasses.dataclass(frozen=True, slots=True)
class FailedRecord:
    """An OPEN or a GO failed. After a GO the client's connection is closed, unless `step` is REFUSED."""

    id: int
    step: FailedAt
    error: int
    """errno, or 0."""
    outcome: str
    """How the connection counts: a value of `daemon.edge.outcomes.Outcome`; "" for an OPEN."""
    words: str


@dataclasses.dataclass(frozen=True, slots=True)
class ShutRecord:
    """Close a connection, or end a splice."""

    id: int
    how: Shutting
    moved: int


@dataclasses.dataclass(frozen=True, slots=True)
class ClosedRecord:
    """A client or half that was never spliced is closed, as SHUT asked."""

    id: int


@dataclasses.dataclass(frozen=True, slots=True)
class BusyRecord:
    """The splice has moved so many bytes by now, so IF_QUIET left it alone."""

    id: int
    moved: int


@dataclasses.dataclass(frozen=True, slots=True)
class EndedRecord:
    """A splice is over. Times are microseconds of CLOCK_BOOTTIME."""

    id: int
    seq: int
    """Rises by one with each end."""
    reason: int
    """enum bp_reason."""
    error: int
    """errno, or 0."""
    up: int
    down: int
    start_us: int
    end_us: int
    peer: str
    tag: bytes
    moments: tuple[int, ...] = ()
    """When the client's first byte was delivered, and the last byte of all: microseconds of CLOCK_MONOTONIC, 0: never."""
    before: tuple[int, ...] = ()
    """Bytes before the splice: those that the client had said, and those that it had been sent, by whichever process."""


@dataclasses.dataclass(frozen=True, slots=True)
class KeptRecord:
    """C has accounted for all ends up to number `seq`."""

    id: int
    seq: int


@dataclasses.dataclass(frozen=True, slots=True)
class MetersRecord:
    """What have these splices moved? One such question at a time."""

    id: int
    ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class MeteredRecord:
    """(id, bytes up, bytes down, last activity in microseconds of CLOCK_BOOTTIME), for each that still lives."""

    id: int
    meters: tuple[tuple[int, int, int, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class LimitsRecord:
    """How many arrivals D may have: in all, of one address prefix, and handshakes a second; how long a client may take."""

    id: int
    clients: int
    per_prefix: int
    handshakes_per_s: int
    greeting_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class WordsRecord:
    """What D answers parked clients whose time is over."""

    id: int
    words: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class CredentialRecord:
    """A credential as its file is now: systemd gives a service those of its start alone (systemd.exec(5))."""

    id: int
    name: str
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class ReloadRecord:
    """Read certificates and configuration again."""

    id: int


@dataclasses.dataclass(frozen=True, slots=True)
class DrainRecord:
    """Accept no more; splices go on to their end. `deadline_ms`: then they are reset, 0: never. D exits after the last."""

    id: int
    deadline_ms: int


PORT_COUNTERS = "port."
"""How the names of counters begin that have a listening TCP port; a number follows."""
LISTENER_COUNTERS = "listener."
"""How the names of counters begin that say where a listener is (`place_number`). Its number follows, as in ARRIVED."""
THREAD_COUNTERS = "thread."
"""How the names of counters begin that are of one thread in C. Its name follows: the engine's threads are numbers."""

CERTIFICATE_COUNTERS = "certificate_end."
"""How the names of counters begin that say until when a certificate holds, in seconds since the epoch; its file follows."""


UNADMITTED_COUNTERS = "unadmitted."
"""How the names of counters begin that say how many clients were offered instead of being admitted, and why."""


@dataclasses.dataclass(frozen=True, slots=True)
class CountersRecord:
    """D's counters since its start, by name."""

    id: int
    counters: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class UnofferedRecord:
    """A connection that ended before it was offered. `wall_us`: its accept, in microseconds since the epoch."""

    id: int
    wall_us: int
    lasted_us: int
    up: int
    down: int
    peer: str
    outcome: str
    """A value of `daemon.connections.outcomes.Outcome`."""
    error: str
    """What went wrong, for the operator."""


@dataclasses.dataclass(frozen=True, slots=True)
class PingRecord:
    """Answered by PONG with the same number."""

    id: int
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class PongRecord:
    """The answer."""

    id: int
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class ListenersRecord:
    """Between two data planes. The older one sends the names of the sockets that the message passes, `left` follow."""

    id: int
    left: int
    names: str
    """Separated by line feeds."""


@dataclasses.dataclass(frozen=True, slots=True)
class ByeRecord:
    """The sender ends the link."""

    id: int
    code: ByeCode
    words: str


Record = (
    HelloRecord
    | SeatRecord
    | SeatedRecord
    | SyncedRecord
    | YieldRecord
    | NoteRecord
    | DoneRecord
    | LiveRecord
    | ArrivedRecord
    | BytesRecord
    | GoneRecord
    | WindowRecord
    | SayRecord
    | TrustRecord
    | OpenRecord
    | GoRecord
    | WentRecord
    | FailedRecord
    | ShutRecord
    | ClosedRecord
    | BusyRecord
    | EndedRecord
    | KeptRecord
    | MetersRecord
    | MeteredRecord
    | LimitsRecord
    | WordsRecord
    | CredentialRecord
    | ReloadRecord
    | DrainRecord
    | CountersRecord
    | UnofferedRecord
    | PingRecord
    | PongRecord
    | ListenersRecord
    | ByeRecord
    | SnapshotRecord
)
