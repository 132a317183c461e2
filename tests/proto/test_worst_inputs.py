"""Looks for the input that costs most for its size, wherever a peer's bytes are read in Python.

Cost is counted in lines of Python executed, which no other load on the machine changes, and compared with what an ordinary
client's greeting or refusal costs. hypothesis builds openings from segments, each a kind of frame or of header block that
is cheap to send, and is told the cost, so that it looks where it grows (`target`). bench/worst_inputs.py has milliseconds.
"""

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import hpack
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings, target

from beds.peers.crowd import call, headers
from bentpipe.proto import limits
from bentpipe.proto.ack_filter import AckFilter
from bentpipe.proto.answering import Answering
from bentpipe.proto.asking import AnswerError, Asking
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.first_settings import FirstSettings, NoServer
from bentpipe.proto.frames import END_HEADERS, END_STREAM, PADDED, PREFACE, FrameType, frame
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.grpc_server import API_BOUNDS, CallComplete, CallData, GrpcServer
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.messages import encode_message
from bentpipe.proto.refusal import PIECE_BYTES, Refusal

if TYPE_CHECKING:
    from _typeshed import TraceFunction

pytestmark = pytest.mark.untraced

READ_BYTES = 16_384
"""What the edge reads at once: RECEIVE_BYTES of daemon/connections/transport.py."""
LONGEST_BYTES = 64 << 10
"""Of an opening here: 64 pieces of the readers that take least at once. What grows with the pieces has grown by then."""
START = PREFACE + frame(FrameType.SETTINGS, 0, 0)
REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/grpc.health.v1.Health/Watch"), (":authority", "e")]
AT_MOST = 60.0
"""Ordinary refusals in one step. One is 0.25 to 1 ms, a long turn 50 ms, and a turn has one step beside its budget of 10."""


class Lines:
    """Counts lines executed."""

    def __init__(self) -> None:
        self.count = 0

    def _line(self, _frame: types.FrameType, event: str, _argument: object) -> "TraceFunction":
        self.count += event == "line"
        return self._line

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._line)
        try:
            yield
        finally:
            sys.settrace(before)


make_meter = Lines
"""What counts the cost; bench/worst_inputs.py has another."""

Step = Callable[[bytes], bool]
"""Takes a piece; says whether it may be given more."""
ENDS = (GreetingError, AnswerError, NoServer)


def worst_step(step: Step, data: bytes, size: int) -> int:
    """The most that one step costs, of all that are needed for the data."""
    most = 0
    for at in range(0, len(data), size):
        lines = make_meter()
        more = False
        with contextlib.suppress(*ENDS), lines.counted():
            more = step(data[at : at + size])
        most = max(most, lines.count)
        if not more:
            break
    return most


def refusing(data: bytes) -> int:
    """To the end: pieces, then answers."""
    refusal = Refusal()
    good = False

    def read(piece: bytes) -> bool:
        nonlocal good
        good = False
        refusal.receive_data(piece)
        good = True
        return True

    def answer(_: bytes) -> bool:
        return refusal.refuse_some(GrpcStatus.UNAVAILABLE, "the satellite is not available, " * 10)

    most = worst_step(read, data, PIECE_BYTES)
    if good:
        most = max(most, worst_step(answer, bytes(limits.HELD_HEADERS), 1))
    refusal.close()
    return most


def greeting(data: bytes) -> int:
    ours = Greeting()

    def read(piece: bytes) -> bool:
        ours.receive_data(piece, 0.0)
        return not ours.transcript_full

    return worst_step(read, data, READ_BYTES)


def in_place(data: bytes) -> int:
    ours = Answering()

    def read(piece: bytes) -> bool:
        ours.receive_data(piece, 0.0)
        ours.data_to_send()
        return True

    return worst_step(read, data, PIECE_BYTES)


def api(data: bytes) -> int:
    """The control API's connection, whose calls acknowledge all data and answer each complete request."""
    ours = GrpcServer(API_BOUNDS)

    def read(piece: bytes) -> bool:
        for event in ours.receive_data(piece, 0.0):
            match event:
                case CallData(stream_id, _, window_bytes):
                    ours.acknowledge(stream_id, window_bytes)
                case CallComplete(stream_id):
                    ours.send_message(stream_id, encode_message(b"x" * 100))
                    ours.finish(stream_id, GrpcStatus.ABORTED, "the reason")
                case _:
                    pass
        ours.data_to_send()
        return True

    return worst_step(read, data, PIECE_BYTES)


def relayed(data: bytes) -> int:
    ours = AckFilter()
    return worst_step(lambda piece: bool(ours.receive_data(piece)) or True, data[len(PREFACE) :], READ_BYTES)


def asked(data: bytes) -> int:
    """A satellite's answer to our question, and its first frame to a client that we spoke to."""
    ours, first = Asking("/grpc.health.v1.Health/Check", b""), FirstSettings(Greeting().announced)

    def ask(piece: bytes) -> bool:
        ours.receive_data(piece)
        return True

    said = data[len(PREFACE) :]
    return max(
        worst_step(ask, said, READ_BYTES), worst_step(lambda piece: bool(first.receive_data(piece)), said, READ_BYTES)
    )


READERS: dict[str, Callable[[bytes], int]] = {
    "refusal": refusing,
    "greeting": greeting,
    "in place": in_place,
    "api": api,
    "relay": relayed,
    "satellite": asked,
}


@pytest.fixture(scope="module")
def ordinary() -> int:
    """Lines of an ordinary client's greeting and refusal."""
    opening = call("sat", "bp_test")
    return min(greeting(opening) + refusing(opening) for _ in range(3))


# -- what is cheap to send ------------------------------------------------------------------------------------------------


class Client:
    """Builds frames; remembers which stream comes next and what its table has."""

    def __init__(self) -> None:
        self.stream = 1
        self._encoder = hpack.Encoder()
        self._encoder.encode([("x-k", "v" * 100)], huffman=False)

    def fields(self, more: list[tuple[str, str]], *, huffman: bool = True) -> bytes:
        return self._encoder.encode([*REQUEST, *more], huffman=huffman)

    def request(self, block: bytes, *, parts: int = 1, flags: int = 0) -> bytes:
        """HEADERS, and CONTINUATIONs as they are needed or wanted."""
        size = max(1, min(READ_BYTES, -(-len(block) // parts)))
        pieces = [block[at : at + size] for at in range(0, len(block), size)] or [b""]
        out = b""
        for number, piece in enumerate(pieces):
            kind = FrameType.CONTINUATION if number else FrameType.HEADERS
            last = END_HEADERS if number == len(pieces) - 1 else 0
            out += frame(kind, last | (0 if number else flags), self.stream, piece)
        self.stream += 2
        return out


Make = Callable[[Client, int], bytes]
"""From a size of a few bytes to some thousand."""
KINDS: dict[str, Make] = {
    "request": lambda c, n: c.request(c.fields([]), flags=END_STREAM * (n % 2)),
    "request, reset": lambda c, n: c.request(c.fields([])) + frame(FrameType.RST_STREAM, 0, c.stream - 2, bytes(4)),
    "fields of the table": lambda c, n: c.request(c.fields([("te", "trailers")] * min(n, 96))),
    "fields beyond number": lambda c, n: c.request(c.fields([]) + b"\xbe" * n),
    "literals that evict": lambda c, n: c.request(c.fields([(f"k{i}", "v" * 60) for i in range(min(n, 96))])),
    "Huffman": lambda c, n: c.request(c.fields([("k", "0" * n)])),
    "Huffman, long codes": lambda c, n: c.request(c.fields([("k", "\x7f" * n)])),
    "size updates": lambda c, n: c.request(b"\x20" * n + c.fields([])),
    "long integers": lambda c, n: c.request(b"\x0f" + b"\x80" * n + b"\0"),
    "continued": lambda c, n: c.request(c.fields([("k", "v" * n)]), parts=8),
    "empty continued": lambda c, n: (
        frame(FrameType.HEADERS, 0, c.stream) + frame(FrameType.CONTINUATION, 0, c.stream) * min(n, 8)
    ),
    "data of a byte": lambda c, n: frame(FrameType.DATA, 0, max(1, c.stream - 2), b"x") * n,
    "no data": lambda c, n: frame(FrameType.DATA, 0, max(1, c.stream - 2)) * n,
    "data of padding only": lambda c, n: frame(FrameType.DATA, PADDED, max(1, c.stream - 2), b"\0") * n,
    "settings": lambda c, n: frame(FrameType.SETTINGS, 0, 0, b"\0\4\0\0\xff\xff" * min(n, 32)),
    "header tables": lambda c, n: frame(FrameType.SETTINGS, 0, 0, b"\0\1\0\0\0\0\0\1\0\0\x10\0" * min(n, 16)),
    "pings": lambda c, n: frame(FrameType.PING, 0, 0, bytes(8)) * min(n, 10),
    "priorities": lambda c, n: frame(FrameType.PRIORITY, 0, 1, b"\0\0\0\0\1") * n,
    "windows": lambda c, n: frame(FrameType.WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * n,
    "unknown": lambda c, n: frame(cast(FrameType, 0xFA), 0, 0) * n,
}
segments = st.tuples(
    st.sampled_from(sorted(KINDS)), st.sampled_from([1, 8, 90, 400, 2000, 30_000]), st.integers(1, 100)
)


def build(plan: list[tuple[str, int, int]]) -> bytes:
    client = Client()
    said = START + client.request(headers("sat", "bp_test"))
    for kind, size, count in plan:
        for _ in range(count):
            if len(said) > limits.TRANSCRIPT_BYTES:
                return said
            said += KINDS[kind](client, size)
    return said


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("size", [1, 90, 30_000])
def test_each_kind_alone(ordinary: int, reader: str, kind: str, size: int) -> None:
    count = 300 if size == 1 else 20 if size == 90 else 2
    assert READERS[reader](build([(kind, size, count)])[:LONGEST_BYTES]) < ordinary * AT_MOST


@pytest.mark.parametrize("reader", READERS)
def test_the_worst_mixture(ordinary: int, reader: str) -> None:
    @given(plan=st.lists(segments, min_size=1, max_size=4))
    @example(plan=[("size updates", 30_000, 1)])
    @settings(
        max_examples=12,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        database=None,
    )
    def search(plan: list[tuple[str, int, int]]) -> None:
        ratio = READERS[reader](build(plan)[:LONGEST_BYTES]) / ordinary
        target(ratio, label=reader)
        assert ratio < AT_MOST

    search()
