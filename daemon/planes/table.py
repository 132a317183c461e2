"""The table of the protocol: for each record its number, who sends it, and its fields as bytes.

A record is `RECORD_HEADER`, the fields of the fixed part in their order, then the fields of variable length as TLVs (their
number from 1 on, as u16, their length as u32). All numbers are little-endian.

What a later version may change: it may add a record, and a TLV to a record. It never changes or removes a field, nor a
number. A reader passes over a TLV that it does not know, takes the empty value for one that is missing, and passes over a
record that it does not know unless the record says that it is critical: so is each that no earlier version may miss.
"""

import dataclasses
import enum
import struct

from bentpipe.daemon.planes import bounds
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes import snapshots as s

OLDEST_VERSION, NEWEST_VERSION = 1, 1
"""The versions that this build speaks. A build that speaks N also speaks N-1."""

MESSAGE_HEADER = struct.Struct("<4sI")
"""`MAGIC`, and how many messages with records the sender has seen so far (modulo 2^32)."""
MAGIC = b"bpl1"

RECORD_HEADER = struct.Struct("<HHIQ")
"""Kind, flags, length of the body in bytes, id."""
CRITICAL = 1
"""The flag of a record that its reader must know."""

TLV_HEADER = struct.Struct("<HI")


class Plane(enum.Enum):
    """Who may send a record."""

    CONTROL = "control"
    DATA = "data"
    BOTH = "both"


class Wire(enum.Enum):
    """How a field is written."""

    BOOL = "?"
    U8 = "B"
    U16 = "H"
    U32 = "I"
    U64 = "Q"
    TEXT = "text"
    """UTF-8."""
    BLOB = "blob"
    IDS = "ids"
    """u64 each."""
    RANGES = "ranges"
    """Offset u64, length u32."""
    METERS = "meters"
    """Four u64 each."""
    COUNTERS = "counters"
    """Length of the name u8, name, u64."""


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """A field of a record's class. `most` bounds it: bytes of a text or blob, items of a list."""

    name: str
    wire: Wire
    most: int = 0
    kind: type[enum.IntEnum] | type[enum.IntFlag] | None = None


EMPTY: dict[Wire, str | bytes] = {Wire.TEXT: "", Wire.BLOB: b""}


def _members(kind: type[enum.IntEnum] | type[enum.IntFlag]) -> dict[int, int]:
    return {int(member): member for member in kind.__members__.values()}


class RecordRow:
    """One record of the protocol. Its class has the id and these fields, in this order."""

    def __init__(self, number: int, made: type[r.Record], sender: Plane, *fields: Field, critical: bool = True) -> None:
        self.number = number
        self.made = made
        self.sender = sender
        self.fixed = tuple(field for field in fields if len(field.wire.value) == 1)
        self.variable = tuple(field for field in fields if len(field.wire.value) > 1)
        self.layout = struct.Struct("<" + "".join(field.wire.value for field in self.fixed))
        self.critical = critical
        self.names = tuple(field.name for field in self.fixed)
        self.empty: tuple[str | bytes | tuple[()], ...] = tuple(EMPTY.get(each.wire, ()) for each in self.variable)
        """What each field of variable length is if it is missing."""
        self.kinds = tuple(
            (place, field, _members(field.kind)) for place, field in enumerate(self.fixed) if field.kind is not None
        )
        """Fields of the fixed part that hold an enum's value: their place, and the enum's members by their numbers."""

    @property
    def name(self) -> str:
        """As in the table of records.py."""
        return self.made.__name__.removesuffix("Record").upper()


def _u64(*names: str) -> tuple[Field, ...]:
    return tuple(Field(name, Wire.U64) for name in names)


def _u32(*names: str) -> tuple[Field, ...]:
    return tuple(Field(name, Wire.U32) for name in names)


_WORDS = Field("words", Wire.TEXT, bounds.WORDS_BYTES)
_TAG = Field("tag", Wire.BLOB, bounds.TAG_BYTES)
_PEER = Field("peer", Wire.TEXT, bounds.NAME_BYTES)
_PRINCIPAL = Field("principal", Wire.TEXT, bounds.NAME_BYTES)
_NOTE = Field("note", Wire.BLOB, bounds.NOTE_BYTES)
_C, _D, _BOTH = Plane.CONTROL, Plane.DATA, Plane.BOTH

ROWS = (
    RecordRow(
        1,
        r.HelloRecord,
        _BOTH,
        *(Field("oldest", Wire.U16), Field("newest", Wire.U16), *_u64("features"), *_u32("pid")),
        *(Field("build", Wire.TEXT, bounds.NAME_BYTES), Field("plane", Wire.TEXT, bounds.NAME_BYTES)),
        *(Field("digest", Wire.BLOB, bounds.NAME_BYTES), Field("holder", Wire.IDS, bounds.HOLDER_NUMBERS)),
    ),
    RecordRow(2, r.SeatRecord, _C, Field("take_over", Wire.BOOL)),
    RecordRow(3, r.SeatedRecord, _D, *_u64("session"), _NOTE),
    RecordRow(4, r.SyncedRecord, _D, *_u64("count", "next_end")),
    RecordRow(5, r.YieldRecord, _D, _WORDS),
    RecordRow(6, r.NoteRecord, _C, _NOTE),
    RecordRow(7, r.DoneRecord, _D, Field("asked", Wire.U16), _WORDS),
    RecordRow(
        8,
        r.LiveRecord,
        _D,
        Field("stage", Wire.U8, kind=r.Stage),
        *(*_u64("start_us", "up", "down", "last_us"), _PEER, _TAG),
    ),
    RecordRow(
        16,
        r.ArrivedRecord,
        _D,
        *(Field("listener", Wire.U16), Field("port", Wire.U16)),
        *(Field("flags", Wire.U32, kind=r.ArrivalFlag), *_u64("mark"), *_u32("kept", "age_ms")),
        Field("host", Wire.TEXT, bounds.NAME_BYTES),
        Field("server_name", Wire.TEXT, bounds.NAME_BYTES),
        *(Field("alpn", Wire.TEXT, bounds.NAME_BYTES), Field("tls_version", Wire.TEXT, bounds.NAME_BYTES)),
        Field("certificate", Wire.BLOB, bounds.CERTIFICATE_BYTES),
        Field("first", Wire.BLOB, bounds.FIRST_BYTES),
    ),
    RecordRow(
        17, r.BytesRecord, _D, *_u64("offset"), Field("end", Wire.BOOL), Field("data", Wire.BLOB, bounds.DATA_BYTES)
    ),
    RecordRow(18, r.GoneRecord, _D, Field("hangup", Wire.U8, kind=r.Hangup), _WORDS),
    RecordRow(19, r.WindowRecord, _BOTH, *_u64("allowed", "taken")),
    RecordRow(
        20,
        r.SayRecord,
        _C,
        *(Field("flags", Wire.U32, kind=r.SayFlag), *_u64("mark")),
        Field("data", Wire.BLOB, bounds.DATA_BYTES),
        Field("drops", Wire.RANGES, bounds.RANGES_A_RECORD),
    ),
    RecordRow(
        30,
        r.TrustRecord,
        _C,
        *(Field("name", Wire.TEXT, bounds.WORDS_BYTES), Field("authorities", Wire.BLOB, bounds.AUTHORITIES_BYTES)),
        Field("certificate", Wire.BLOB, bounds.CERTIFICATE_BYTES),
        Field("key", Wire.BLOB, bounds.KEY_BYTES),
        critical=False,  # a plane that does not know it lets each OPEN by such a name fail
    ),
    RecordRow(
        21,
        r.OpenRecord,
        _C,
        *(Field("port", Wire.U16), *_u32("deadline_ms")),
        Field("host", Wire.TEXT, bounds.NAME_BYTES),
        Field("trust", Wire.TEXT, bounds.WORDS_BYTES),
        Field("server_name", Wire.TEXT, bounds.NAME_BYTES),
    ),
    RecordRow(
        22,
        r.GoRecord,
        _C,
        *(*_u64("half"), Field("flags", Wire.U32, kind=r.GoFlag)),
        *(*_u64("client_from", "frame_at", "half_from"), *_u32("deadline_ms"), _TAG),
        Field("words", Wire.BLOB, bounds.DATA_BYTES),
    ),
    RecordRow(23, r.WentRecord, _D),
    RecordRow(
        24,
        r.FailedRecord,
        _D,
        *(Field("step", Wire.U8, kind=r.FailedAt), *_u32("error")),
        *(Field("outcome", Wire.TEXT, bounds.NAME_BYTES), _WORDS),
    ),
    RecordRow(25, r.ShutRecord, _C, Field("how", Wire.U8, kind=r.Shutting), *_u64("moved")),
    RecordRow(26, r.ClosedRecord, _D),
    RecordRow(27, r.BusyRecord, _D, *_u64("moved")),
    RecordRow(
        28,
        r.EndedRecord,
        _D,
        *(*_u64("seq"), Field("reason", Wire.U16), *_u32("error")),
        *(*_u64("up", "down", "start_us", "end_us"), _PEER, _TAG),
        *(Field("moments", Wire.IDS, bounds.MOMENTS), Field("before", Wire.IDS, bounds.SUMS)),
    ),
    RecordRow(29, r.KeptRecord, _C, *_u64("seq")),
    RecordRow(32, r.MetersRecord, _C, Field("ids", Wire.IDS, bounds.METERS_A_RECORD)),
    RecordRow(33, r.MeteredRecord, _D, Field("meters", Wire.METERS, bounds.METERS_A_RECORD)),
    RecordRow(34, r.LimitsRecord, _C, *_u32("clients", "per_prefix", "handshakes_per_s", "greeting_ms")),
    RecordRow(35, r.WordsRecord, _C, Field("words", Wire.BLOB, bounds.DATA_BYTES)),
    RecordRow(
        43,
        r.CredentialRecord,
        _C,
        Field("name", Wire.TEXT, bounds.NAME_BYTES),
        Field("data", Wire.BLOB, bounds.CREDENTIAL_BYTES),
        critical=False,  # a plane that does not know it reads the one of its start again
    ),
    RecordRow(36, r.ReloadRecord, _C),
    RecordRow(37, r.DrainRecord, _C, *_u32("deadline_ms")),
    RecordRow(38, r.CountersRecord, _D, Field("counters", Wire.COUNTERS, bounds.COUNTERS_A_RECORD), critical=False),
    RecordRow(
        42,
        r.UnofferedRecord,
        _D,
        *(*_u64("wall_us", "lasted_us", "up", "down"), _PEER, Field("outcome", Wire.TEXT, bounds.NAME_BYTES)),
        Field("error", Wire.TEXT, bounds.WORDS_BYTES),
        critical=False,
    ),
    RecordRow(39, r.PingRecord, _BOTH, *_u64("number")),
    RecordRow(40, r.PongRecord, _BOTH, *_u64("number")),
    RecordRow(41, r.ListenersRecord, _D, Field("left", Wire.U16), Field("names", Wire.TEXT, bounds.NAME_BYTES)),
    RecordRow(48, r.ByeRecord, _BOTH, Field("code", Wire.U8, kind=r.ByeCode), _WORDS),
    RecordRow(
        49,
        s.GrantRecord,
        _C,
        *(*_u64("expires_us"), Field("digest", Wire.BLOB, bounds.NAME_BYTES)),
        *(_PRINCIPAL, Field("grants", Wire.TEXT, bounds.GRANTS_BYTES)),
        Field("credentials", Wire.TEXT, bounds.CREDENTIALS_BYTES),
    ),
    RecordRow(50, s.GrantsRecord, _C, *_u64("generation"), *_u32("count", "streams", "window_bytes")),
    RecordRow(51, s.GrantedRecord, _D, *_u64("generation")),
    RecordRow(
        52,
        s.GateRecord,
        _C,
        *(Field("port", Wire.U16), *_u64("until_us"), Field("owned", Wire.BOOL), *_u32("uid")),
        *(Field("org", Wire.TEXT, bounds.NAME_BYTES), Field("name", Wire.TEXT, bounds.NAME_BYTES)),
        *(Field("host", Wire.TEXT, bounds.NAME_BYTES), Field("trust", Wire.TEXT, bounds.WORDS_BYTES)),
        Field("server_name", Wire.TEXT, bounds.NAME_BYTES),
        Field("inodes", Wire.IDS, bounds.INODES_A_GATE),
    ),
    RecordRow(53, s.RenewRecord, _C, *_u64("until_us"), Field("gates", Wire.IDS, bounds.GATES_A_RECORD)),
    RecordRow(54, s.ShutGateRecord, _C),
    RecordRow(55, s.GatedRecord, _D),
    RecordRow(56, s.CreditRecord, _C, *_u64("allowed"), _PRINCIPAL),
    RecordRow(57, s.CreditedRecord, _D, *_u64("allowed", "used"), _PRINCIPAL),
    RecordRow(
        58,
        s.AdmittedRecord,
        _D,
        *_u64("gate", "start_us", "age_us", "up", "down"),
        *(*_u32("streams", "window_bytes"), _PEER, _TAG),
        *(Field("traceparent", Wire.TEXT, bounds.WORDS_BYTES), Field("tracestate", Wire.TEXT, bounds.WORDS_BYTES)),
        Field("moments", Wire.IDS, bounds.ADMITTED_MOMENTS),
    ),
)
"""The protocol."""

BY_NUMBER = {row.number: row for row in ROWS}
BY_CLASS = {row.made: row for row in ROWS}
RECORD_NUMBERS = {row.made: row.number for row in ROWS}
