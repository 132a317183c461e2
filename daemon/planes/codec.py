"""Records to bytes and back, by the table. Pure. What comes from the peer is hostile until it is checked here."""

import struct

from bentpipe.daemon.planes.bounds import MESSAGE_BYTES, NAME_BYTES, RECORD_BYTES
from bentpipe.daemon.planes.records import Record
from bentpipe.daemon.planes.table import (
    BY_CLASS,
    BY_NUMBER,
    CRITICAL,
    MAGIC,
    MESSAGE_HEADER,
    RECORD_HEADER,
    TLV_HEADER,
    Field,
    Plane,
    RecordRow,
    Wire,
)

Pairs = tuple[tuple[int, int], ...]
Value = (
    int
    | bool
    | str
    | bytes
    | tuple[int, ...]
    | Pairs
    | tuple[tuple[int, int, int, int], ...]
    | tuple[tuple[str, int], ...]
)
"""What a field holds."""

_ID = struct.Struct("<Q")
_RANGE = struct.Struct("<QI")
_METER = struct.Struct("<QQQQ")
_NUMBERS = {Wire.RANGES: _RANGE, Wire.METERS: _METER}


class ProtocolBroken(Exception):
    """The peer has broken the protocol; `str()` says how, and does not quote what it sent."""


class TooLong(Exception):
    """We wanted to send a field that is longer than its bound: a bug of the caller's."""


def encode_record(record: Record) -> bytes:
    """Write one record. Raises TooLong."""
    row = BY_CLASS[type(record)]
    body = row.layout.pack(*[getattr(record, name) for name in row.names])
    for number, field in enumerate(row.variable, 1):
        value: Value = getattr(record, field.name)
        if value and (data := _written(field, value)):
            body += TLV_HEADER.pack(number, len(data)) + data
    if len(body) > RECORD_BYTES:
        raise TooLong(f"{row.name}: {len(body)} bytes")
    return RECORD_HEADER.pack(row.number, CRITICAL if row.critical else 0, len(body), record.id) + body


def _written(field: Field, value: Value) -> bytes:
    wire = field.wire
    if isinstance(value, str) and wire is Wire.TEXT:
        data = value.encode("utf-8", "replace")
        size = len(data)
    elif isinstance(value, bytes) and wire is Wire.BLOB:
        data, size = value, len(value)
    elif isinstance(value, tuple) and wire not in (Wire.TEXT, Wire.BLOB):
        data, size = _written_items(wire, value), len(value)
    else:
        raise TooLong(f"{field.name}: a value of another type")
    if size > field.most:
        raise TooLong(f"{field.name}: {size} is more than {field.most}")
    return data


def _written_items(wire: Wire, items: tuple[object, ...]) -> bytes:
    if wire is Wire.IDS:
        return struct.pack(f"<{len(items)}Q", *items)
    if wire is Wire.COUNTERS:
        return b"".join(map(_written_counter, items))
    layout = _NUMBERS[wire]
    return b"".join(layout.pack(*each) for each in items)  # type: ignore[misc]


def _written_counter(item: object) -> bytes:
    match item:
        case (str(name), int(number)):
            data = name.encode()
            if len(data) < NAME_BYTES:
                return bytes([len(data)]) + data + _ID.pack(number)
    raise TooLong("a counter's name")


def decode_message(message: bytes, sender: Plane) -> tuple[int, list[Record]]:
    """Read a message of `sender`. Returns how many messages it has seen, and the records. Raises ProtocolBroken."""
    if len(message) > MESSAGE_BYTES:
        raise ProtocolBroken(f"a message of more than {MESSAGE_BYTES} bytes")
    if len(message) < MESSAGE_HEADER.size:
        raise ProtocolBroken("a message without its header")
    magic, seen = MESSAGE_HEADER.unpack_from(message)
    if magic != MAGIC:
        raise ProtocolBroken("a message without the magic number")
    records, at = [], MESSAGE_HEADER.size
    while at < len(message):
        if len(message) - at < RECORD_HEADER.size:
            raise ProtocolBroken("an incomplete record header")
        number, flags, size, about = RECORD_HEADER.unpack_from(message, at)
        at += RECORD_HEADER.size
        if size > min(RECORD_BYTES, len(message) - at):
            raise ProtocolBroken(f"record {number} is longer than its message or its bound")
        row = BY_NUMBER.get(number)
        if row is not None:
            if row.sender not in (sender, Plane.BOTH):
                raise ProtocolBroken(f"{row.name} from the wrong side")
            records.append(_decode_record(row, about, message[at : at + size]))
        elif flags & CRITICAL:
            raise ProtocolBroken(f"critical record {number} is unknown")
        at += size
    return seen, records


def _decode_record(row: RecordRow, about: int, body: bytes) -> Record:
    fixed = row.layout.size
    if len(body) < fixed:
        raise ProtocolBroken(f"{row.name} is too short")
    numbers: list[int] = list(row.layout.unpack_from(body))
    for place, field, members in row.kinds:
        known = members.get(numbers[place])
        numbers[place] = _checked(row, field, numbers[place]) if known is None else known
    variable: list[Value] = list(row.empty)
    if len(body) > fixed:
        _read_variable(row, body, variable)
    # Names, order and types are those of the class; tests/daemon/planes/test_codec.py holds the table to the classes.
    return row.made(about, *numbers, *variable)  # type: ignore[arg-type]


def _checked(row: RecordRow, field: Field, number: int) -> int:
    assert field.kind is not None, "it is in row.kinds"
    try:
        return field.kind(number)
    except ValueError as exc:
        raise ProtocolBroken(f"{row.name}: {number} is not a valid {field.name}") from exc


def _read_variable(row: RecordRow, body: bytes, values: list[Value]) -> None:
    """Read the TLVs behind the fixed part into `values`. One may not come twice."""
    found: set[int] = set()
    at, end = row.layout.size, len(body)
    while at < end:
        if end - at < TLV_HEADER.size:
            raise ProtocolBroken(f"{row.name}: an incomplete field")
        number, size = TLV_HEADER.unpack_from(body, at)
        at += TLV_HEADER.size
        if size > end - at or number in found:
            raise ProtocolBroken(f"{row.name}: field {number} is longer than its record, or comes twice")
        found.add(number)
        if 0 < number <= len(values):
            values[number - 1] = _read(row, row.variable[number - 1], body[at : at + size])
        at += size


def _read(row: RecordRow, field: Field, data: bytes) -> Value:
    wire = field.wire
    if wire is Wire.TEXT or wire is Wire.BLOB:
        if len(data) > field.most:
            raise ProtocolBroken(f"{row.name}: {field.name} is longer than {field.most} bytes")
        try:
            return data if wire is Wire.BLOB else data.decode()
        except UnicodeDecodeError as exc:
            raise ProtocolBroken(f"{row.name}: {field.name} is not UTF-8") from exc
    if wire is Wire.COUNTERS:
        return _read_counters(row, field, data)
    if wire is Wire.IDS:
        count = len(data) // _ID.size
        if len(data) % _ID.size or count > field.most:
            raise ProtocolBroken(f"{row.name}: {field.name} has a wrong length")
        return struct.unpack(f"<{count}Q", data)
    layout = _NUMBERS[wire]
    if len(data) % layout.size or len(data) // layout.size > field.most:
        raise ProtocolBroken(f"{row.name}: {field.name} has a wrong length")
    return tuple(layout.iter_unpack(data))


def _read_counters(row: RecordRow, field: Field, data: bytes) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    at = 0
    while at < len(data):
        end = at + 1 + data[at]
        if end + _ID.size > len(data) or len(found) == field.most:
            raise ProtocolBroken(f"{row.name}: {field.name} has a wrong length")
        try:
            name = data[at + 1 : end].decode()
        except UnicodeDecodeError as exc:
            raise ProtocolBroken(f"{row.name}: a name is not UTF-8") from exc
        found.append((name, _ID.unpack_from(data, end)[0]))
        at = end + _ID.size
    return tuple(found)
