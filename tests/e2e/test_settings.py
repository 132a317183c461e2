"""Satellites with SETTINGS of every kind, and every client: what a satellite says first reaches its client as it is meant.

Most clients hear our SETTINGS first, and the satellite's as their second (`proto/first_settings.py`).
"""

import contextlib
import itertools
import socket
import ssl
import time
from collections.abc import Callable, Iterator

import hpack
import pytest

from beds.hosts.in_process import frames_of
from beds.http2 import EMPTY_SETTINGS
from beds.peers.cases import UNAVAILABLE
from beds.peers.clients import CallError, Client
from beds.peers.edge_clients import client_of, client_of_kind
from beds.peers.kinds import CLIENT_KINDS
from beds.peers.settings_cases import ALL_AT_ONCE, ASK_AT_ONCE, CALLS, COMMAND, KIND, MESSAGES, SAID, SLOW, WAIT
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost
from bentpipe.proto.frames import ACK, END_HEADERS, END_STREAM, PREFACE, FrameType, frame

UNAUTHENTICATED = 16
MAX_HEADER_LIST_SIZE = 6
FIRST = ("bytes", "late", "http1", "ping", "hangup")
SETTINGS = {
    "silent": "",
    "priorities-0": "9=0",
    "priorities-1": "9=1",
    "priorities-twice": "9=1,3=100,9=1",
    "streams-1": "3=1",
    "streams-10": "3=10",
    "streams-100": "3=100",
    "window-0": "4=0",
    "window-16k": "4=16384",
    "window-64k": "4=65536",
    "window-1m": "4=1048576",
    "table-0": "1=0",
    "table-64k": "1=65536",
    "all": ALL_AT_ONCE,
}
SATELLITES = {
    f"{name}-{enforce}": ("--settings", settings, "--enforce", enforce)
    for name, settings in SETTINGS.items()
    for enforce in ("ack", "now")
}


@pytest.fixture(scope="module")
def edge() -> Iterator[EdgeHost]:
    satellites = [DemoSatellite(name, arguments, COMMAND) for name, arguments in SATELLITES.items()]
    satellites += [
        DemoSatellite(f"slow-{name}-{number}", (*SLOW, *arguments), COMMAND)
        for name, arguments in SATELLITES.items()
        for number in range(len(CLIENT_KINDS))
    ]
    for first in FIRST:
        satellites += [
            DemoSatellite(first, ("--first", first, "--settings", SAID), COMMAND),
            *(
                DemoSatellite(f"slow-{first}-{kind}", (*SLOW, "--first", first, "--settings", SAID), COMMAND)
                for kind in CLIENT_KINDS
            ),
        ]
    satellites.append(DemoSatellite("slow-ping", (*SLOW, "--settings", "9=1,6=65536"), COMMAND))
    with EdgeHost(satellites, sleep_after_s=600) as host:
        hear_the_least(host)
        yield host


def hear_the_least(edge: EdgeHost) -> None:
    """Let the daemon hear the satellite that allows least, so that the tests below may come in any order.

    The daemon announces the least that it has heard to a client of a satellite that it has not heard. If it had heard only
    satellites that allow more, a satellite that enforces its window before the ACK would refuse the first DATA.
    """
    with contextlib.closing(client_of(edge, "all-ack")) as client:
        assert client.unary("Echo", b"first") == b"first"


@pytest.fixture
def connect(edge: EdgeHost) -> Iterator[Callable[[str, str], Client]]:
    with contextlib.ExitStack() as opened:
        yield lambda kind, satellite: opened.enter_context(client_of_kind(edge, kind, satellite))


_numbers = {name: itertools.count() for name in SATELLITES}


@pytest.mark.parametrize("held", [False, True], ids=["awake", "held"])
@pytest.mark.parametrize("satellite", SATELLITES)
@pytest.mark.parametrize("kind", [KIND[kind] for kind in CLIENT_KINDS])
def test_every_call_succeeds(connect: Callable[[str, str], Client], kind: str, satellite: str, held: bool) -> None:
    if kind in ASK_AT_ONCE and satellite in ("window-0-now", "all-now"):
        pytest.skip("it sends its first message before it can know of the window, to the satellite itself too")
    client = connect(kind, f"slow-{satellite}-{next(_numbers[satellite])}" if held else satellite)
    if kind in ASK_AT_ONCE:
        assert client.unary("Echo", b"first") == b"first"
    assert client.concurrent("Echo", MESSAGES) == MESSAGES
    large = bytes(200_000)
    assert client.unary("Echo", large) == large


@pytest.mark.parametrize("held", [False, True], ids=["awake", "held"])
@pytest.mark.parametrize("first", ["bytes", "late"])
@pytest.mark.parametrize("kind", ["grpcio", "grpc-go", "grpc-js"])
def test_first_settings_that_take_their_time(
    connect: Callable[[str, str], Client], kind: str, first: str, held: bool
) -> None:
    """In pieces, or later than anybody waits for without watching the client."""
    client = connect(kind, f"slow-{first}-{kind}" if held else first)
    assert client.unary("Echo", b"hello") == b"hello"


@pytest.mark.parametrize("held", [False, True], ids=["awake", "held"])
@pytest.mark.parametrize(
    ("first", "words"), [("http1", "does not speak HTTP/2"), ("ping", "does not speak HTTP/2"), ("hangup", "hung up")]
)
@pytest.mark.parametrize("kind", ["grpcio", "grpc-go"])
def test_no_settings_are_named(
    connect: Callable[[str, str], Client], kind: str, first: str, words: str, held: bool
) -> None:
    with pytest.raises(CallError) as error:
        connect(kind, f"slow-{first}-{kind}" if held else first).unary("Echo", b"hello")
    assert error.value.code == UNAVAILABLE
    assert words in error.value.details


MET_GOAWAY_TWICE = ("the connection is draining", "Stream removed (GOAWAY received; Error code: 0; Debug Text: )")
"""grpc-go's words and grpcio's."""


@pytest.mark.parametrize("kind", WAIT)
def test_a_crowd_of_calls_is_refused_each(edge: EdgeHost, kind: str) -> None:
    """Who may open one call at first gets all of them refused, even on a connection each.

    grpc-go and grpcio repeat a call once that a GOAWAY left unprocessed (gRPC proposal A6), and say UNAVAILABLE if it meets
    the next GOAWAY. Their user makes such a call again, and so does this test.
    """
    with client_of_kind(edge, kind, "silent-ack", "bp_wrong") as client:
        for _ in range(CALLS):
            with pytest.raises(CallError) as error:
                client.concurrent("Echo", [b"x"] * CALLS)
            if error.value.code != UNAVAILABLE or error.value.details not in MET_GOAWAY_TWICE:
                break
        assert error.value.code == UNAUTHENTICATED


def test_a_ping_makes_us_speak_to_a_client_that_is_held(edge: EdgeHost) -> None:
    """It asked at once and was told nothing; its PING is answered behind our SETTINGS. The satellite's are its second."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", "/x"), (":authority", "edge")]
    fields += [("satellite_name", "slow-ping"), ("satellite_org", ORG), ("satellite_token", edge.token)]
    context = ssl.create_default_context(cadata=edge.ca_pem.decode())
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", edge.port), timeout=20) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as wire,
    ):
        block = hpack.Encoder().encode(fields)
        wire.sendall(PREFACE + EMPTY_SETTINGS + frame(FrameType.HEADERS, END_HEADERS, 1, block))
        time.sleep(0.2)
        wire.sendall(frame(FrameType.PING, 0, 0, b"12345678"))
        received = b""
        while len(frames_of(received)) < 2:
            received += wire.recv(1 << 16)
        (kind, flags, _, ours), pong = frames_of(received)[:2]
        assert (kind, flags) == (FrameType.SETTINGS, 0)
        assert pong == (FrameType.PING, ACK, 0, b"12345678")
        wire.sendall(frame(FrameType.SETTINGS, ACK, 0) + frame(FrameType.DATA, END_STREAM, 1, b"body"))
        while not any(k == FrameType.DATA and f & END_STREAM for k, f, *_ in frames_of(received)):
            received += wire.recv(1 << 16)
    second = next(p for k, f, _, p in frames_of(received)[2:] if k == FrameType.SETTINGS and not f & ACK)
    announced = {int.from_bytes(ours[at : at + 2]) for at in range(0, len(ours), 6)}
    said = {int.from_bytes(second[at : at + 2]) for at in range(0, len(second), 6)}
    assert said == {MAX_HEADER_LIST_SIZE} | announced, "without parameter 9, with what we had announced"
