"""The walk over HPACK sees what hpack sees, refuses what costs more than it says, and costs next to nothing itself."""

import contextlib

import hpack
import hypothesis.strategies as st
import pytest
from hypothesis import given

from bentpipe.proto import limits
from bentpipe.proto.answering import Answering
from bentpipe.proto.asking import AnswerError, Asking
from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.frames import END_HEADERS, END_STREAM, PREFACE, FrameType, frame
from bentpipe.proto.hpack_scan import check_block
from bentpipe.proto.refusal import Refusal

START = PREFACE + frame(FrameType.SETTINGS, 0, 0)
names = st.binary(min_size=1, max_size=300)
values = st.binary(max_size=300)


@given(st.lists(st.tuples(names, values), max_size=100), st.booleans(), st.sampled_from([None, 0, 100, 4096]))
def test_it_counts_what_hpack_decodes(fields: list[tuple[bytes, bytes]], huffman: bool, table: int | None) -> None:
    encoder = hpack.Encoder()
    for _ in range(2):  # the second time from the dynamic table
        if table is not None:
            encoder.header_table_size = table
        assert check_block(encoder.encode(fields, huffman=huffman)) == len(fields)


@given(st.binary(max_size=400))
def test_any_bytes_raise_nothing_but_greeting_error(block: bytes) -> None:
    """What it lets pass has as many fields for hpack, or is none of hpack's."""
    with contextlib.suppress(GreetingError, hpack.HPACKError):
        count = check_block(block)
        assert len(list(hpack.Decoder().decode(block, raw=True))) <= count


FLOODS = {
    "TABLE_SIZE_UPDATES": b"\x20" * 16_000,
    "HPACK_INTEGER_BYTES": b"\xff" + b"\x80" * 16_000,
    "HEADER_FIELDS": b"\x82" * 16_000,
}
ENDLESS = [b"\x3f", b"\x7f", b"\x0f", b"\x40\x7f", b"\x00\x01a\x7f", b"\x00\x7f"]
"""Everything that has an integer: size update, both literals, lengths of names and of values."""


@pytest.mark.parametrize("start", ENDLESS)
def test_an_integer_ends_wherever_it_is(start: bytes) -> None:
    with pytest.raises(GreetingError, match="HPACK_INTEGER_BYTES"):
        check_block(start + b"\xff" * 6)


def test_a_size_update_has_its_place() -> None:
    with pytest.raises(GreetingError, match="behind a field") as error:
        check_block(b"\x83\x20")
    assert error.value.error_code is ErrorCode.COMPRESSION_ERROR


@pytest.mark.parametrize("limit", FLOODS)
@pytest.mark.parametrize("size", [1 << 20, 1000, 7])
def test_floods_never_reach_h2(limit: str, size: int) -> None:
    """In a later header block, which the greeting leaves to others: at a refusal, in place, and of a satellite."""
    block = frame(FrameType.HEADERS, END_HEADERS | END_STREAM, 1, FLOODS[limit])

    def feed(to: Refusal | Answering | Asking, data: bytes) -> None:
        for at in range(0, len(data), size):
            if isinstance(to, Answering):
                to.receive_data(data[at : at + size], 0.0)
            else:
                to.receive_data(data[at : at + size])

    for to in (refusal := Refusal(), Answering()):
        with pytest.raises(GreetingError) as error:
            feed(to, START + block)
        assert error.value.limit == limit
    assert limit.encode() in refusal.close()
    with pytest.raises(AnswerError, match=limit):
        feed(Asking("/grpc.health.v1.Health/Check", b""), frame(FrameType.SETTINGS, 0, 0) + block)


def test_every_limit_of_the_walk_is_flooded() -> None:
    assert all(hasattr(limits, limit) for limit in FLOODS)
