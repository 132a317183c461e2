"""The protocol without I/O: HPACK against the `hpack` library, frames in any pieces, flow control, deadlines, budgets."""

import random
import struct

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentpipe.daemon.responder.hpack import HeaderDecoder, Headers, HpackError, encode_headers
from bentpipe.daemon.responder.http2 import STREAM_DEADLINE_S, Answer, Http2Connection
from bentpipe.daemon.responder.wire import WireError, decode_fields, encode_fields
from bentpipe.proto import responder_pb2 as pb

NAMES = st.binary(min_size=0, max_size=300)
LISTS = st.lists(st.tuples(NAMES, NAMES), max_size=12)


@given(blocks=st.lists(LISTS, max_size=6), huffman=st.booleans())
def test_hpack_decodes_what_the_library_encodes(blocks: list[list[tuple[bytes, bytes]]], huffman: bool) -> None:
    encoder, decoder = hpack.Encoder(), HeaderDecoder()
    for block in blocks:
        assert decoder.decode(encoder.encode(block, huffman=huffman)) == block


@given(fields=LISTS)
def test_the_library_decodes_what_hpack_encodes(fields: list[tuple[bytes, bytes]]) -> None:
    found = hpack.Decoder(max_header_list_size=1 << 20).decode(encode_headers(fields), raw=True)
    assert [(bytes(each[0]), bytes(each[1])) for each in found] == fields


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 256, 382, 383, 5000, 7000])
@pytest.mark.parametrize("huffman", [True, False])
def test_hpack_reads_and_writes_lengths_of_one_byte_and_more(length: int, huffman: bool) -> None:
    fields = [(b"n" * length, b"v" * length)]
    assert HeaderDecoder().decode(hpack.Encoder().encode(fields, huffman=huffman)) == fields
    found = hpack.Decoder(max_header_list_size=1 << 20).decode(encode_headers(fields), raw=True)
    assert [(bytes(each[0]), bytes(each[1])) for each in found] == fields


def test_hpack_keeps_the_table_that_the_library_keeps() -> None:
    """Entries of all sizes come, are named again and go; a table that differs by one entry says something else."""
    numbers = random.Random(7541)
    encoder, decoder = hpack.Encoder(), HeaderDecoder()
    for _ in range(400):
        names = [b"n" * numbers.randrange(1, 40) for _ in range(5)]
        fields = [(name, b"v" * numbers.randrange(0, 700)) for name in names]
        assert decoder.decode(encoder.encode(fields)) == fields


@pytest.mark.parametrize(("extra", "accepted"), [(0, True), (1, False)])
def test_a_list_has_at_most_16_kib(extra: int, accepted: bool) -> None:
    """RFC 9113, 6.5.2: names, values, and 32 for each field."""
    value = b"v" * (8192 - 32 - 1)
    block = encode_headers([(b"n", value), (b"n", value + b"v" * extra)])
    if accepted:
        assert len(HeaderDecoder().decode(block)) == 2
    else:
        with pytest.raises(HpackError, match="too large"):
            HeaderDecoder().decode(block)


def library_says(blocks: list[bytes]) -> list[Headers] | None:
    decoder = hpack.Decoder(max_header_list_size=16384)
    decoder.max_allowed_table_size = 4096
    found = []
    try:
        for block in blocks:
            found.append([(bytes(each[0]), bytes(each[1])) for each in decoder.decode(block, raw=True)])
    except hpack.HPACKError:
        return None
    return found


def we_say(blocks: list[bytes]) -> list[Headers] | None:
    decoder = HeaderDecoder()
    try:
        return [decoder.decode(block) for block in blocks]
    except HpackError:
        return None


INTERESTING = st.sampled_from(
    [
        b"\x82",
        b"\x3f\xe1\x1f",
        b"\x20",
        b"\x40\x01a\x01b",
        b"\xbe",
        b"\x00\x81\xff\x00",
        b"\x7f\x80\x80\x01",
        b"\x00\x83\xff\xff\xff\x00",
    ]
)
"""What random bytes rarely are: indices, size updates, entries of the dynamic table, Huffman codes, long integers."""


@given(blocks=st.lists(st.lists(st.one_of(INTERESTING, st.binary(max_size=20)), max_size=8).map(b"".join), max_size=4))
def test_hpack_agrees_with_the_library_on_any_bytes(blocks: list[bytes]) -> None:
    """What the library refuses, we refuse. We may refuse more, since we have a limit on integers."""
    ours, theirs = we_say(blocks), library_says(blocks)
    assert ours is None or ours == theirs


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xff\xff\xff\xff\xff\xff\x7f",  # an integer without end
        b"\x3f\xe2\x1f",  # a table of 4,097 bytes
        b"\x82\x20",  # a size update after a field
        b"\x00\x05ab",  # a string that is cut off
        b"\x00\x81\x00\x00",  # a Huffman code that is cut off by zeros
        b"\x00\x82\x1f\xff\x00",  # more than seven bits of padding
        b"\x00\x84\xff\xff\xff\xff\x00",  # EOS
        b"\x40",
    ],
)
def test_hpack_refuses(block: bytes) -> None:
    with pytest.raises(HpackError):
        HeaderDecoder().decode(block)


def test_the_table_is_bounded() -> None:
    decoder = HeaderDecoder()
    encoder = hpack.Encoder()
    for number in range(1000):
        decoder.decode(encoder.encode([(f"name{number}", "x" * 100)]))
    assert sum(len(name) + len(value) + 32 for name, value in decoder._table) <= 4096


@given(st.lists(st.tuples(st.integers(1, 500), st.one_of(st.integers(0, (1 << 64) - 1), st.binary(max_size=200)))))
def test_fields_round_trip(fields: list[tuple[int, int | bytes]]) -> None:
    assert list(decode_fields(encode_fields([*fields]))) == fields


def test_fields_are_protobuf() -> None:
    stall = encode_fields([(1, 12.5), (2, 1 << 40)])
    assert pb.Stall.FromString(stall) == pb.Stall(avg10_percent=12.5, total_us=1 << 40)
    network = encode_fields([(1, encode_fields([(1, 0), (2, "weh")])), (2, 3), (6, True), (5, None)])
    found = pb.Network.FromString(network)
    assert found.look.HasField("age_ms")
    assert (found.look.error, found.under_1m, found.more) == ("weh", 3, True)


@given(st.binary(max_size=60))
def test_any_bytes_are_fields_or_an_error(data: bytes) -> None:
    try:
        list(decode_fields(data))
    except WireError:
        return


class Pair:
    """An h2 client, and our side of the connection."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[tuple[Headers, bytes]] = []
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.now = 0.0
        self.server = Http2Connection(self._respond, self.now)
        self.client.initiate_connection()
        self.events: list[h2.events.Event] = []

    def _respond(self, headers: Headers, body: bytes) -> Answer:
        self.asked.append((headers, body))
        return self.answer

    def talk(self, size: int = 1 << 20) -> None:
        """Move bytes both ways, in pieces of that size, until neither has any."""
        while True:
            out = self.client.data_to_send()
            if not out and not self.server.out:
                return
            for at in range(0, len(out), size):
                self.server.receive(out[at : at + size], self.now)
            said = bytes(self.server.out)
            self.server.out.clear()
            self.server.receive(b"", self.now)
            for at in range(0, len(said), size):
                self.events += self.client.receive_data(said[at : at + size])

    def ask(self, stream: int, body: bytes = b"") -> None:
        names = {":method": "POST", ":scheme": "http", ":path": "/a", ":authority": "b"}
        self.client.send_headers(stream, [*names.items()], end_stream=not body)
        if body:
            self.client.send_data(stream, body, end_stream=True)

    def body(self) -> bytes:
        return b"".join(each.data for each in self.events if isinstance(each, h2.events.DataReceived))

    def ended(self) -> bool:
        return any(isinstance(each, h2.events.StreamEnded) for each in self.events)


OK = [(b":status", b"200")]
END = [(b"grpc-status", b"0")]


@given(size=st.integers(1, 50), body=st.binary(max_size=900))
def test_requests_in_any_pieces(size: int, body: bytes) -> None:
    pair = Pair(Answer(OK, b"answer", END))
    pair.ask(1, body)
    pair.talk(size)
    assert pair.asked[0][1] == body
    assert pair.body() == b"answer"
    assert pair.ended()


@given(window=st.integers(0, 3000), length=st.integers(0, 60000))
def test_an_answer_waits_for_the_window(window: int, length: int) -> None:
    body = bytes(range(256)) * (length // 256) + bytes(length % 256)
    pair = Pair(Answer(OK, body, END))
    pair.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
    pair.talk()
    pair.ask(1)
    pair.talk()
    assert len(pair.body()) == min(window, length)
    if length > window:
        assert not pair.ended()
        pair.client.increment_flow_control_window(length - window, 1)
        pair.talk()
    assert pair.body() == body
    assert pair.ended()


def test_a_watch_is_told_what_is_new_and_only_that() -> None:
    latest = [b"one"]
    pair = Pair(Answer(OK, b"one", None, lambda: latest[0]))
    pair.ask(1)
    pair.talk()
    for now, text in ((1.0, b"one"), (2.0, b"two"), (3.0, b"two"), (1000.0, b"three")):
        latest[0] = text
        pair.server.tick(now)
        pair.talk()
    assert pair.body() == b"onetwothree"
    assert not pair.ended()


def test_a_watch_that_is_not_taken_is_ended() -> None:
    count = [0]

    def latest() -> bytes:
        count[0] += 1
        return b"%05d" % count[0]

    pair = Pair(Answer(OK, b"00000", None, latest))
    pair.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 5})
    pair.talk()
    pair.ask(1)
    pair.talk()
    for now in range(1, int(STREAM_DEADLINE_S)):
        pair.server.tick(float(now))
        assert pair.server.streams[1].unsent == b"00001"
    pair.server.tick(STREAM_DEADLINE_S + 2)
    assert not pair.server.streams
    pair.talk()
    assert any(isinstance(each, h2.events.StreamReset) for each in pair.events)


def test_a_request_that_does_not_end_is_ended() -> None:
    pair = Pair(Answer(OK, b"x", END))
    pair.client.send_headers(1, [(":method", "POST"), (":scheme", "http"), (":path", "/a"), (":authority", "b")])
    pair.talk()
    pair.server.tick(STREAM_DEADLINE_S - 1)
    assert pair.server.streams
    pair.server.tick(STREAM_DEADLINE_S + 1)
    assert not pair.server.streams
    pair.talk()
    assert any(isinstance(each, h2.events.StreamReset) for each in pair.events)


def test_the_budget_comes_back_with_time() -> None:
    """500 frames a second for a minute are allowed; 2,100 at once are not."""
    pair = Pair(Answer(OK, b"x", END))
    pair.talk()
    ping = bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + bytes(8)
    for second in range(60):
        pair.server.receive(ping * 490, float(second + 1))
        pair.server.out.clear()
        assert not pair.server.closing
    pair.server.receive(ping * 2100, 61.0)
    assert pair.server.closing


def test_a_full_output_stops_reading() -> None:
    pair = Pair(Answer(OK, b"x" * 3000, END))
    pair.talk()
    block = hpack.Encoder().encode([(":method", "POST"), (":scheme", "http"), (":path", "/a"), (":authority", "b")])
    heads = b"".join(
        struct.pack(">I", len(block))[1:] + bytes((1, 5)) + struct.pack(">I", number) + block
        for number in range(1, 600, 2)
    )
    window = bytes((0, 0, 4, 8, 0, 0, 0, 0, 0)) + struct.pack(">I", 1 << 30)
    pair.server.receive(window + heads, 0.0)
    assert len(pair.server.out) < (64 << 10) + 4000
    assert len(pair.asked) < 40
    while pair.server.out:
        pair.server.out.clear()
        pair.server.receive(b"", 0.0)
    assert len(pair.asked) == 300
