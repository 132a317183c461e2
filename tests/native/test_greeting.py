"""The greeting in C does what proto/greeting.py does, byte for byte: recorded clients, RFC 9113's cases, every limit, every
cut and random openings, in this process and under ASan and UBSan.

BENTPIPE_OPENINGS says how many random openings there are; `make sanitize` has more of them than `make test`.
"""

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beds.driver_build import link_reader
from beds.fuzz.both import LIMITS, Both
from beds.fuzz.openings import RECORDED, Flight, Openings
from beds.fuzz.sanitized import Process, sanitized
from beds.http2 import EMPTY_SETTINGS
from beds.over_limits import CASES as LIMIT_CASES
from beds.peers.rfc9113 import CASES, HELD, OPENING, WITHOUT_SETTINGS
from bentpipe.daemon.connections.native_greeting import STATES, NativeGreeting, make_limits
from bentpipe.native.greeting import LIMITS as LIMIT_NAMES
from bentpipe.native.greeting import STREAMS, GreetingLimits, GreetingReader, nghttp2_version
from bentpipe.proto import limits
from bentpipe.proto.events import NotHttp2, PeerKind, RequestHeaders
from bentpipe.proto.first_settings import Announcement
from bentpipe.proto.frames import ACK, END_HEADERS, PREFACE, FrameType, frame
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.states import State

pytestmark = pytest.mark.skipif(nghttp2_version() is None, reason="the engine was built without nghttp2")

OPENINGS = int(os.environ.get("BENTPIPE_OPENINGS", "600"))
SEED = int(os.environ.get("BENTPIPE_SEED", "0")) or random.randrange(1, 1 << 30)
SETTINGS_ACK = frame(FrameType.SETTINGS, ACK, 0)
PING = frame(FrameType.PING, 0, 0, b"12345678")
REQUEST = frame(FrameType.HEADERS, END_HEADERS, 1, b"\x83")
SIZES = [1, 7, 1 << 20]
MOST_PIECES = 200


def pieces(said: bytes, size: int) -> list[Flight]:
    """Cut into pieces of `size`, but into no more than MOST_PIECES."""
    size = max(size, len(said) // MOST_PIECES)
    return [Flight(said[at : at + size], 0.0, last=False) for at in range(0, len(said), size)]


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with sanitized() as made:
        yield made


@pytest.mark.parametrize("recorded", RECORDED)
def test_every_cut_of_a_recorded_client(recorded: tuple[bytes, bytes]) -> None:
    said = b"".join(recorded)
    for cut in range(len(said) + 1):
        both = Both()
        both.feed([Flight(said[:cut], 0.0, last=True), Flight(said[cut:], 0.0, last=True)])
        assert both.left is (both.refused is not None), cut


@pytest.mark.parametrize("recorded", RECORDED)
@pytest.mark.parametrize("size", SIZES)
def test_recorded_clients_in_pieces(recorded: tuple[bytes, bytes], size: int, process: Process) -> None:
    for reader in (None, process.reader()):
        both = Both(reader)
        both.announce(Announcement(streams=7, window_bytes=1 << 20))
        for flight in recorded:
            both.feed(pieces(flight, size))
            both.end_of_first_flight()
        assert both.refused is None
        assert not both.left


@given(
    st.sampled_from(RECORDED),
    st.lists(st.integers(0, 600), max_size=6),
    st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_any_cuts(recorded: tuple[bytes, bytes], cuts: list[int], ends: list[bool]) -> None:
    said, both = b"".join(recorded), Both()
    points = sorted({0, len(said), *(cut for cut in cuts if cut < len(said))})
    both.feed(Flight(said[a:b], 0.0, last) for a, b, last in zip(points, points[1:], ends, strict=False))
    assert both.left is (both.refused is not None)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("start", [PREFACE, OPENING, HELD], ids=["preface", "opening", "held"])
def test_the_cases_of_rfc_9113(start: bytes, size: int, process: Process) -> None:
    for case in WITHOUT_SETTINGS if start == PREFACE else CASES:
        for reader in (None, process.reader()):
            both = Both(reader)
            both.receive(start, 0.0)
            both.feed(pieces(case.sent, size))
            expected = case.held if start == HELD else case.opening
            assert (both.refused[0] if both.refused else None) == expected, case
            assert both.left is (both.refused is not None), case


@pytest.mark.parametrize("size", [7, 4096, 1 << 20])
def test_at_each_limit_and_past_it(size: int, process: Process) -> None:
    for case in LIMIT_CASES:
        for reader in (None, process.reader()):
            for said, refused in ((case.at_limit, False), (case.past_it, True)):
                both = Both(reader if refused else None)
                both.feed(pieces(said, size))
                assert (both.refused is not None) is refused, case.limit
                assert both.left is refused or both.may_leave(), case.limit


def test_the_states_have_the_numbers_of_c() -> None:
    both = Both()
    seen = [both.other.state]
    for said in (PREFACE, EMPTY_SETTINGS, frame(FrameType.HEADERS, 0, 1, b"\x83")):
        both.receive(said, 0.0)
        seen.append(both.other.state)
    assert seen == [State.PREFACE, State.SETTINGS, State.OPENING, State.OPENING_BLOCK]
    assert tuple(STATES) == tuple(State)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"GET / HTTP/1.1\r\n", PeerKind.HTTP1),
        (b"\x16\x03\x01\x02", PeerKind.TLS),
        (b"PRI * HTTP/1.1\r\n", PeerKind.OTHER),
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_other_protocols_are_left_to_python(said: bytes, kind: PeerKind, size: int) -> None:
    both, events = Both(), []
    for flight in pieces(said, size):
        if both.oracle.state is not State.ENDED:
            events += both.receive(flight.data, flight.at_s)
    assert events == [NotHttp2(kind)]
    assert both.left


def test_many_streams_are_left_to_python_and_go_on() -> None:
    both = Both()
    both.receive(PREFACE + EMPTY_SETTINGS + PING + REQUEST, 0.0)
    for stream in range(3, 99, 2):
        both.receive(frame(FrameType.HEADERS, END_HEADERS, stream, b"\x83") + PING * (stream % 3 == 0), stream)
    both.speak()
    both.receive(SETTINGS_ACK, 100.0)
    assert both.left
    assert both.refused is None
    assert len(both.other.open_streams) == 49


def test_many_streams_for_a_moment_are_left_to_python_too() -> None:
    """They are reset in the flight that opens them, so few are open when C and Python are compared."""
    opened = b"".join(frame(FrameType.HEADERS, END_HEADERS, 1 + 2 * each, b"\x83") for each in range(STREAMS + 1))
    reset = b"".join(frame(FrameType.RST_STREAM, 0, 1 + 2 * each, bytes(4)) for each in range(3, STREAMS))
    both = Both()
    both.receive(PREFACE + EMPTY_SETTINGS + opened + reset, 0.0)
    assert both.left
    assert both.refused is None
    assert len(both.other.open_streams) == 4


@pytest.mark.parametrize("fields", [0, 1])
def test_a_request_without_room_is_left_to_python(fields: int) -> None:
    """As without memory: nothing of the frame has been taken, so Python reads it."""
    for parts in (1, 3):
        block = b"\x83\x86\x84"
        said = PREFACE + EMPTY_SETTINGS + PING * 3
        for number in range(parts):
            kind = FrameType.CONTINUATION if number else FrameType.HEADERS
            said += frame(kind, END_HEADERS * (number == parts - 1), 1, block if number == 0 else b"")
        native, oracle = NativeGreeting(GreetingReader(make_limits(fields))), Greeting()
        expected = oracle.receive_data(said, 0.0)
        events = native.receive_data(said, 0.0)
        assert native.stopped is not None
        assert native.stopped.error_code is None
        python, rest = native.hand_over()
        events += python.receive_data(rest, 0.0)
        assert events == expected
        assert python.data_to_send() == oracle.data_to_send()
        assert python.transcript_bytes == oracle.transcript_bytes


@given(st.integers(0, (1 << 31) - 1), st.integers(0, (1 << 31) - 1), st.booleans(), st.binary(max_size=20))
def test_another_greeting_goes_on_by_the_mark(streams: int, window_bytes: int, acked: bool, ping: bytes) -> None:
    first = Both()
    first.announce(Announcement(streams, window_bytes))
    first.receive(PREFACE + EMPTY_SETTINGS, 0.0)
    first.end_of_first_flight()
    if acked:
        first.receive(SETTINGS_ACK, 0.0)
    second = Both()
    second.resume(first.other.mark)
    second.receive(first.other.transcript_bytes + PING + SETTINGS_ACK * (not acked) + REQUEST + ping, 0.0)
    assert second.other.announced == Announcement(streams, window_bytes)


def test_everything_can_be_taken() -> None:
    native, oracle = NativeGreeting(GreetingReader(LIMITS)), Greeting()
    for greeting in (native, oracle):
        [event] = greeting.receive_data(PREFACE + EMPTY_SETTINGS + REQUEST + b"\0\0\5", 0.0)
        assert isinstance(event, RequestHeaders)
    assert native.ack_filter().receive_data(b"") == oracle.ack_filter().receive_data(b"") == b""
    assert native.take_all() == oracle.take_all()
    assert native.kept_bytes == native.unframed_bytes == oracle.kept_bytes == 0
    assert native.transcript_bytes == native.opening == b""


def test_a_difference_is_found() -> None:
    """The comparison itself: a reader with another limit is told from the oracle."""
    wrong = {**{name: float(getattr(limits, name)) for name in LIMIT_NAMES}, "PING_FRAMES": limits.PING_FRAMES - 1.0}
    both = Both(GreetingReader(GreetingLimits(wrong, limits.HEADER_FIELDS)))
    both.receive(PREFACE + EMPTY_SETTINGS + PING * (limits.PING_FRAMES - 1), 0.0)
    with pytest.raises(AssertionError, match="PING_FRAMES"):
        both.receive(PING, 0.0)


def feed(seed: int, reader: GreetingReader | None = None) -> Both:
    pick = random.Random(seed)
    both = Both(reader, remember=pick.random() < 0.7)
    if pick.random() < 0.3:
        both.announce(Announcement(pick.choice((0, 1, 100, (1 << 31) - 1)), pick.choice((0, 65_535, (1 << 31) - 1))))
    elif pick.random() < 0.2:
        both.resume(pick.randrange(1 << 64) & ~2 | pick.randrange(2) * 3)
    flights = Openings(seed).make()
    try:
        both.feed(flights)
    except AssertionError as exc:
        raise AssertionError(f"seed {seed}: {exc}") from exc
    return both


def test_random_openings() -> None:
    outcomes: dict[str, int] = {}
    for seed in range(SEED, SEED + OPENINGS):
        both = feed(seed)
        asked = both.other.state in (State.HELD, State.HELD_BLOCK)
        outcome = "request" if asked else "open" if both.refused is None else (both.refused[2] or both.refused[1][:12])
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    print(f"\nfrom seed {SEED}: {dict(sorted(outcomes.items(), key=lambda each: -each[1]))}")
    assert min(outcomes["request"], outcomes["open"]) >= OPENINGS // 50, "the openings are not what they should be"


def test_random_openings_under_sanitizers(process: Process) -> None:
    for seed in range(SEED, SEED + OPENINGS // 3):
        feed(seed, process.reader())


def test_without_nghttp2_every_request_is_left_to_python(tmp_path: Path) -> None:
    with contextlib.closing(Process(link_reader(tmp_path / "reader", "none", "-DBP_WITHOUT_NGHTTP2"))) as process:
        both = Both(process.reader(), always_leaves=True)
        both.receive(PREFACE + EMPTY_SETTINGS + PING, 0.0)
        assert not both.left
        both.receive(REQUEST, 0.0)
        assert both.left
        assert both.refused is None
