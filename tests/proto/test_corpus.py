"""Recorded openings of real clients: whole, byte by byte, cut anywhere and with trailing bytes, to the same result."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beds.fuzz.harness import greet, one_input
from beds.http2 import EMPTY_SETTINGS
from bentpipe.proto.events import RequestHeaders
from bentpipe.proto.frames import ACK, FrameType, frame
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.request import parse_request

CORPUS = Path(__file__).parents[1] / "corpus"
CLIENTS = sorted(path.stem for path in CORPUS.glob("*.0"))
TRAILING = [b"", b"\0\0\4\x08\0\0\0\0\0\0\0\0\1", b"\0\0\5", frame(FrameType.PING, 0, 0, b"12345678")]
WAIT_FOR_SETTINGS = {"buildctl", "grpc-go", "grpc-js", "grpcio"}


def flights_of(client: str) -> list[bytes]:
    return [(CORPUS / f"{client}.{number}").read_bytes() for number in range(2)]


def test_every_kind_of_client_was_recorded() -> None:
    assert {"grpcio", "grpclib", "grpc-go", "grpc-js", "curl", "h2load", "buildctl"} <= set(CLIENTS)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("trailing", TRAILING)
def test_cuts_and_trailing_bytes_change_nothing(client: str, trailing: bytes) -> None:
    first, second = flights_of(client)
    flights = [first, second + trailing]
    whole = greet(flights, 1 << 20)
    assert greet(flights, 1) == whole
    assert greet(flights, 7) == whole
    assert whole[1] == "open"
    assert sum(isinstance(event, RequestHeaders) for event in whole[0]) == 1


@given(st.sampled_from(CLIENTS), st.lists(st.integers(0, 400), max_size=6), st.sampled_from(TRAILING))
def test_any_cut(client: str, cuts: list[int], trailing: bytes) -> None:
    first, second = flights_of(client)
    greeting = Greeting()
    events = []
    for flight in (first, second + trailing):
        points = sorted({0, len(flight), *(cut for cut in cuts if cut < len(flight))})
        for start, end in itertools.pairwise(points):
            events += greeting.receive_data(flight[start:end], 0.0)
        greeting.end_of_first_flight()
    assert events == greet([first, second + trailing], 1 << 20)[0]


@pytest.mark.parametrize("client", CLIENTS)
def test_the_transcript_is_all_but_what_was_ours(client: str) -> None:
    first, second = flights_of(client)
    greeting = Greeting()
    for flight in (first, second):
        greeting.receive_data(flight, 0.0)
        greeting.end_of_first_flight()
    ack = frame(FrameType.SETTINGS, ACK, 0)
    waits = client in WAIT_FOR_SETTINGS
    assert greeting.data_to_send().startswith(EMPTY_SETTINGS) is waits
    assert second.count(ack) == waits
    pings = sum(len(f) for f in _pings(second))
    assert len(greeting.transcript_bytes) == len(first + second) - len(ack) * waits - pings


def _pings(data: bytes) -> list[bytes]:
    found = []
    while data:
        size = 9 + int.from_bytes(data[:3])
        if data[3] == FrameType.PING:
            found.append(data[:size])
        data = data[size:]
    return found


@pytest.mark.parametrize("client", sorted(set(CLIENTS) - {"buildctl"}))
def test_their_metadata_are_read(client: str) -> None:
    events, _, _ = greet(flights_of(client), 1 << 20)
    [request] = [event for event in events if isinstance(event, RequestHeaders)]
    headers = tuple((n, b"POST" if n == b":method" else v) for n, v in request.headers)
    assert parse_request(headers).satellite == ("acme", "builder")


@given(st.binary(max_size=600))
def test_the_harness_itself_on_any_bytes(data: bytes) -> None:
    one_input(data)


@given(
    st.sampled_from(CLIENTS),
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=4),
    st.integers(0, 255),
)
def test_the_harness_on_mutated_clients(client: str, changes: list[tuple[int, int]], choice: int) -> None:
    data = bytearray(b"".join(flights_of(client)))
    for at, byte in changes:
        data[at % len(data)] = byte
    one_input(bytes(data) + bytes((choice & ~1,)))
