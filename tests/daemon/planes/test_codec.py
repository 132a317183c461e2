"""The records and their bytes: every record there and back, hostile bytes, and what a later version may send."""

import dataclasses
import enum
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes import snapshots as s
from bentpipe.daemon.planes.bounds import MESSAGE_BYTES, RECORD_BYTES
from bentpipe.daemon.planes.codec import ProtocolBroken, TooLong, decode_message, encode_record
from bentpipe.daemon.planes.table import (
    BY_NUMBER,
    CRITICAL,
    MAGIC,
    MESSAGE_HEADER,
    RECORD_HEADER,
    ROWS,
    TLV_HEADER,
    Field,
    Plane,
    RecordRow,
    Wire,
)

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
FUZZED = 20_000
"""Messages of one bounded run."""


def values_of(field: Field) -> st.SearchStrategy[object]:
    if field.kind is not None:
        return st.sampled_from(list(field.kind))
    most = min(field.most, 2_000)
    name = st.text(max_size=40)
    known: dict[Wire, st.SearchStrategy[object]] = {
        Wire.BOOL: st.booleans(),
        Wire.U8: st.integers(0, 2**8 - 1),
        Wire.U16: st.integers(0, 2**16 - 1),
        Wire.U32: U32,
        Wire.U64: U64,
        Wire.TEXT: st.text(max_size=most // 4),
        Wire.BLOB: st.binary(max_size=most),
        Wire.IDS: st.lists(U64, max_size=most).map(tuple),
        Wire.RANGES: st.lists(st.tuples(U64, U32), max_size=most).map(tuple),
        Wire.METERS: st.lists(st.tuples(U64, U64, U64, U64), max_size=most).map(tuple),
        Wire.COUNTERS: st.lists(st.tuples(name, U64), max_size=most).map(tuple),
    }
    return known[field.wire]


def records_of(row: RecordRow) -> st.SearchStrategy[r.Record]:
    fields = {field.name: values_of(field) for field in (*row.fixed, *row.variable)}
    return st.builds(row.made, id=U64, **fields)


def sender_of(row: RecordRow) -> Plane:
    return Plane.CONTROL if row.sender is Plane.BOTH else row.sender


def message_of(*records: bytes) -> bytes:
    return MESSAGE_HEADER.pack(MAGIC, 7) + b"".join(records)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_table_has_every_field_of_the_class_in_its_order_and_no_other(row: RecordRow) -> None:
    in_table = {field.name: field for field in (*row.fixed, *row.variable)}
    in_class = {field.name: field.type for field in dataclasses.fields(row.made)}
    assert list(in_class) == ["id", *in_table]
    for name, field in in_table.items():
        wanted: dict[Wire, object] = {Wire.BOOL: bool, Wire.TEXT: str, Wire.BLOB: bytes}
        plain = field.kind or wanted.get(field.wire, int)
        if field.wire in (Wire.IDS, Wire.RANGES, Wire.METERS, Wire.COUNTERS):
            assert str(in_class[name]).startswith("tuple")
        else:
            assert in_class[name] is plain, name


def test_the_union_of_records_and_the_table_are_the_same() -> None:
    assert {row.made for row in ROWS} == set(r.Record.__args__)
    assert len(BY_NUMBER) == len(ROWS)
    assert all(enum_value <= 255 for kind in (r.Hangup, r.FailedAt, r.ByeCode) for enum_value in kind)
    told = (r.__doc__ or "") + (s.__doc__ or "").replace("_", "")
    missing = [row.name for row in ROWS if row.name not in told]
    assert missing == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_record_comes_back_as_it_was(row: RecordRow, data: st.DataObject) -> None:
    sent = data.draw(st.lists(records_of(row), min_size=1, max_size=3))
    seen, read = decode_message(message_of(*map(encode_record, sent)), sender_of(row))
    assert (seen, read) == (7, sent)
    assert [type(getattr(each, field.name)) for each in read for field in row.fixed if field.kind] == [
        field.kind for _ in sent for field in row.fixed if field.kind
    ]


@pytest.mark.parametrize("row", [row for row in ROWS if row.sender is not Plane.BOTH], ids=lambda row: row.name)
@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_a_record_from_the_wrong_side_is_refused(row: RecordRow, data: st.DataObject) -> None:
    wrong = Plane.DATA if row.sender is Plane.CONTROL else Plane.CONTROL
    with pytest.raises(ProtocolBroken, match="wrong side"):
        decode_message(message_of(encode_record(data.draw(records_of(row)))), wrong)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_record_that_is_cut_anywhere_is_refused_or_lacks_a_field_at_its_end(
    row: RecordRow, data: st.DataObject
) -> None:
    """Cut inside its message a record is refused. A body that ends before a TLV is one of a version without it."""
    whole = message_of(encode_record(data.draw(records_of(row))))
    cut = data.draw(st.integers(1, len(whole) - 1))
    if cut == MESSAGE_HEADER.size:
        assert decode_message(whole[:cut], sender_of(row))[1] == []
    else:
        with pytest.raises(ProtocolBroken):
            decode_message(whole[:cut], sender_of(row))


def raw(number: int, body: bytes, flags: int = CRITICAL, about: int = 0) -> bytes:
    return RECORD_HEADER.pack(number, flags, len(body), about) + body


PING = r.PingRecord(0, 5)


def test_a_later_version_may_add_records_and_fields() -> None:
    ping = raw(39, struct.pack("<Q", 5) + TLV_HEADER.pack(77, 3) + b"new")
    _, read = decode_message(message_of(raw(60_000, b"unknown", flags=0), ping), Plane.DATA)
    assert read == [PING]


def test_a_field_that_an_earlier_version_does_not_send_is_empty() -> None:
    _, read = decode_message(message_of(raw(5, b"")), Plane.DATA)
    assert read == [r.YieldRecord(0, "")]


HOSTILE = {
    "no header": b"bpl1",
    "no magic number": b"bpl9" + bytes(4),
    "too long": message_of(raw(39, struct.pack("<Q", 5))) + bytes(MESSAGE_BYTES),
    "an unknown critical record": message_of(raw(60_000, b"")),
    "half a record header": message_of(encode_record(PING), b"\x01\x00"),
    "a length beyond the message": message_of(RECORD_HEADER.pack(39, 1, 9, 0) + bytes(8)),
    "a length beyond every bound": message_of(RECORD_HEADER.pack(39, 1, 2**32 - 1, 0) + bytes(8)),
    "a fixed part that is too short": message_of(raw(39, bytes(7))),
    "half a TLV header": message_of(raw(5, b"\x01\x00\x01")),
    "a TLV beyond its record": message_of(raw(5, TLV_HEADER.pack(1, 9) + b"short")),
    "a TLV twice": message_of(raw(5, 2 * (TLV_HEADER.pack(1, 1) + b"x"))),
    "words that are too long": message_of(raw(5, TLV_HEADER.pack(1, 513) + bytes(513))),
    "a text that is not UTF-8": message_of(raw(5, TLV_HEADER.pack(1, 2) + b"\xff\xfe")),
    "an enum that is not valid": message_of(raw(18, b"\x63")),
    "half a meter": message_of(raw(33, TLV_HEADER.pack(1, 31) + bytes(31))),
    "too many meters": message_of(raw(33, TLV_HEADER.pack(1, 513 * 32) + bytes(513 * 32))),
    "half a counter": message_of(raw(38, TLV_HEADER.pack(1, 3) + b"\x09ab")),
    "a counter without a number": message_of(raw(38, TLV_HEADER.pack(1, 3) + b"\x02ab")),
    "a counter's name that is not UTF-8": message_of(raw(38, TLV_HEADER.pack(1, 10) + b"\x01\xff" + bytes(8))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_with_words(name: str) -> None:
    with pytest.raises(ProtocolBroken) as refused:
        decode_message(HOSTILE[name], Plane.DATA)
    assert 10 < len(str(refused.value)) < 200


def test_a_field_beyond_its_bound_is_not_sent() -> None:
    with pytest.raises(TooLong, match="note"):
        encode_record(r.NoteRecord(0, bytes(RECORD_BYTES)))
    with pytest.raises(TooLong, match="counter"):
        encode_record(r.CountersRecord(0, (("x" * 300, 1),)))


def test_the_largest_records_fit_into_a_message() -> None:
    for row in ROWS:
        blobs = sum(field.most for field in row.variable if field.wire in (Wire.TEXT, Wire.BLOB))
        assert row.layout.size + blobs + 6 * len(row.variable) <= RECORD_BYTES, row.name
    assert MESSAGE_HEADER.size + RECORD_HEADER.size + RECORD_BYTES <= MESSAGE_BYTES


def mutated(chance: random.Random, message: bytes) -> bytes:
    found = bytearray(message)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(found) + 1)
        match chance.randrange(4):
            case 0 if at < len(found):
                found[at] = chance.randrange(256)
            case 1:
                found[at:at] = chance.randbytes(chance.randint(1, 9))
            case 2:
                del found[at : at + chance.randint(1, 9)]
            case _ if len(found) >= at + 4:
                found[at : at + 4] = chance.choice((0, 1, 255, 65_536, 2**31, 2**32 - 1)).to_bytes(4, "little")
    return bytes(found)


def example_of(row: RecordRow, chance: random.Random) -> r.Record:
    made: dict[str, object] = {}
    for field in (*row.fixed, *row.variable):
        number = chance.getrandbits(7)
        lists: dict[Wire, object] = {
            Wire.TEXT: "word" * (number % 5),
            Wire.BLOB: chance.randbytes(number),
            Wire.IDS: (1, 2, number),
            Wire.RANGES: ((5, number),),
            Wire.METERS: ((1, 2, 3, number),),
            Wire.COUNTERS: (("accepted", number), ("", 0)),
        }
        made[field.name] = chance.choice(list(field.kind)) if field.kind else lists.get(field.wire, number % 2)
    return row.made(chance.getrandbits(64), **made)  # type: ignore[arg-type]


def test_mutated_messages_are_read_or_refused_and_what_was_read_is_written_again() -> None:
    """The bounded fuzzer. Nothing but ProtocolBroken may escape, and what is accepted has one meaning."""
    chance = random.Random(15)
    refused = 0
    for _ in range(FUZZED):
        sender = chance.choice((Plane.CONTROL, Plane.DATA))
        rows = [chance.choice([row for row in ROWS if row.sender in (sender, Plane.BOTH)]) for _ in range(2)]
        message = message_of(*(encode_record(example_of(row, chance)) for row in rows))
        try:
            _, read = decode_message(mutated(chance, message), sender)
        except ProtocolBroken:
            refused += 1
            continue
        again = message_of(*map(encode_record, read))
        assert decode_message(again, sender)[1] == read
    assert FUZZED // 4 < refused < FUZZED
    assert issubclass(r.SayFlag, enum.IntFlag)
