"""Satellites with SETTINGS of every kind, and every client: what a satellite says first reaches its client as it is meant.

Most clients hear our SETTINGS first, and the satellite's as their second (`proto/first_settings.py`).
"""

import contextlib
import itertools
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hpack
import pytest
import trustme

from beds.hosts.in_process import PLAIN, SATELLITE_DOMAIN, TLS, TOKEN, frames_of, write_config
from beds.hosts.served import SECTIONS, Served
from beds.http2 import EMPTY_SETTINGS
from beds.peers.cases import UNAVAILABLE
from beds.peers.clients import CallError, Client, GrpcioClient
from beds.peers.kinds import CLIENT_KINDS, CLIENTS, or_skip
from beds.programs import program
from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost
from bentpipe.proto.frames import ACK, END_HEADERS, END_STREAM, PREFACE, FrameType, frame

COMMAND = (*program("peers.settings_satellite"), "{port}")
UNAUTHENTICATED = 16
DEADLINE_S = 15.0
MAX_CONCURRENT_STREAMS, MAX_HEADER_LIST_SIZE = 3, 6
SLOW = ("--boot", "0.6")
CALLS = 60
"""At once: more than some satellites allow."""
ALL_AT_ONCE = "1=0,3=1,4=0,5=16384,6=65536,8=1,9=1"
SAID = "3=100,4=65536,9=1"
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
ASK_AT_ONCE = {"grpclib", "tonic"}
"""Clients that wait for nobody's SETTINGS (tonic takes 100 streams for granted until it has read some): a satellite that
refuses calls before they can know better refuses some of theirs without us too. Their first call comes alone."""
WAIT = sorted(set(CLIENT_KINDS) - ASK_AT_ONCE)
KIND = {kind: pytest.param(kind, marks=[pytest.mark.slow] if kind == "grpc-java" else []) for kind in CLIENT_KINDS}
"""A virtual machine's start for each case is too long for every run of the tests: Java has all of them in `make soak`."""
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
    metadata = (("satellite_name", "all-ack"), ("satellite_org", ORG), ("satellite_token", edge.token))
    with contextlib.closing(GrpcioClient(edge.port, edge.ca_pem, metadata)) as client:
        assert client.unary("Echo", b"first") == b"first"


@pytest.fixture
def connect(edge: EdgeHost) -> Iterator[Callable[[str, str], Client]]:
    opened: list[Client] = []

    def connect(kind: str, satellite: str) -> Client:
        metadata = (("satellite_name", satellite), ("satellite_org", ORG), ("satellite_token", edge.token))
        opened.append(or_skip(CLIENTS[kind], edge.port, edge.ca_pem, metadata))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


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
    messages = [b"%d" % number for number in range(CALLS)]
    assert client.concurrent("Echo", messages) == messages
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


def _calls(requests: Path) -> int:
    """How many of the client's calls a satellite has read; the daemon's own question after a wake is none of them."""
    return sum(path.endswith(b"/Echo") for path in requests.read_bytes().splitlines())


@pytest.mark.parametrize("kind", ["grpcio", "grpc-go", "grpc-js"])
def test_a_slow_satellite_gets_each_request_once(tmp_path: Path, kind: str) -> None:
    """It says its SETTINGS when another connection has long been tried: what was asked on the first is done, too."""
    requests = tmp_path / "requests"
    said = ("--first", "late", "--settings", SAID, "--requests", str(requests))
    satellite = DemoSatellite("sat", said, COMMAND)
    with EdgeHost([satellite], sleep_after_s=600) as edge:
        metadata = (("satellite_name", "sat"), ("satellite_org", ORG), ("satellite_token", edge.token))
        for _ in range(3):  # the first wakes it
            with contextlib.closing(or_skip(CLIENTS[kind], edge.port, edge.ca_pem, metadata)) as client:
                assert client.unary("Echo", b"hello") == b"hello"
        time.sleep(1.5)  # for the SETTINGS of every connection that was made
    assert _calls(requests) == 3


@pytest.mark.parametrize("kind", ["grpcio", "grpc-go"])
def test_no_request_reaches_who_hangs_up_before_its_settings(tmp_path: Path, kind: str) -> None:
    """It is tried again and again, and could have done what was asked each time."""
    requests = tmp_path / "requests"
    satellite = DemoSatellite("sat", ("--first", "hear-and-hangup", "--requests", str(requests)), COMMAND)
    with EdgeHost([satellite], sleep_after_s=600) as edge:
        metadata = (("satellite_name", "sat"), ("satellite_org", ORG), ("satellite_token", edge.token))
        with contextlib.closing(or_skip(CLIENTS[kind], edge.port, edge.ca_pem, metadata)) as client:
            with pytest.raises(CallError) as error:
                client.unary("Echo", b"hello")
            assert error.value.code == UNAVAILABLE
            assert "hung up" in error.value.details
    assert _calls(requests) == 0


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


@pytest.mark.parametrize("held", [False, True], ids=["awake", "held"])
@pytest.mark.parametrize("enforce", ["ack", "now"])
@pytest.mark.parametrize("settings", ["3=1", "3=10", "4=0", "4=16384", ALL_AT_ONCE])
@pytest.mark.parametrize("kind", [KIND[kind] for kind in WAIT])
def test_the_first_client_since_the_start(kind: str, settings: str, enforce: str, held: bool) -> None:
    """Nobody knows yet what the satellite says, and yet its client does not ask too much."""
    arguments = ("--settings", settings, "--enforce", enforce)
    with EdgeHost(
        [DemoSatellite("sat", arguments if not held else (*SLOW, *arguments), COMMAND)], sleep_after_s=600
    ) as edge:
        metadata = (("satellite_name", "sat"), ("satellite_org", ORG), ("satellite_token", edge.token))
        with contextlib.closing(or_skip(CLIENTS[kind], edge.port, edge.ca_pem, metadata)) as client:
            messages = [b"%d" % number for number in range(CALLS)]
            assert client.concurrent("Echo", messages) == messages


@pytest.mark.parametrize("kind", WAIT)
def test_a_crowd_of_calls_is_refused_each(edge: EdgeHost, kind: str) -> None:
    """Who may open one call at first gets all of them refused, even on a connection each.

    grpc-go repeats a call that a GOAWAY left unprocessed once, and says UNAVAILABLE if it meets the next GOAWAY with it. Its
    user makes such a call again, and so does this test.
    """
    metadata = (("satellite_name", "silent-ack"), ("satellite_org", ORG), ("satellite_token", "bp_wrong"))
    with contextlib.closing(or_skip(CLIENTS[kind], edge.port, edge.ca_pem, metadata)) as client:
        for _ in range(CALLS):
            with pytest.raises(CallError) as error:
                client.concurrent("Echo", [b"x"] * CALLS)
            if (error.value.code, error.value.details) != (UNAVAILABLE, "the connection is draining"):
                break
        assert error.value.code == UNAUTHENTICATED


@pytest.mark.parametrize("kind", WAIT)
def test_settings_that_change_over_a_sleep(tmp_path: Path, kind: str) -> None:
    """What is announced is what the satellite said when it last woke; what it says now is what its client gets."""
    said = tmp_path / "settings"
    arguments = ("--settings", f"@{said}", "--enforce", "ack")
    with EdgeHost([DemoSatellite("sat", arguments, COMMAND)], sleep_after_s=0.3) as edge:
        metadata = (("satellite_name", "sat"), ("satellite_org", ORG), ("satellite_token", edge.token))
        for settings in ("3=10,4=16384", "", "9=1", "3=1,4=0,9=0", "4=1048576"):
            said.write_text(settings)
            with contextlib.closing(or_skip(CLIENTS[kind], edge.port, edge.ca_pem, metadata)) as client:
                messages = [b"%d" % number for number in range(CALLS)]
                assert client.concurrent("Echo", messages) == messages
                large = bytes(200_000)
                assert client.unary("Echo", large) == large
            edge.wait_state("sat", SatelliteState.SLEEP, 15)


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


@pytest.mark.parametrize("settings", ["4=0", "4=16384"])
@pytest.mark.parametrize("kind", ["grpcio", "grpc-go", "grpc-js"])
def test_a_first_message_larger_than_the_window(kind: str, settings: str) -> None:
    """Held with a message that fits into the initial window, but not into the satellite's."""
    arguments = (*SLOW, "--settings", settings, "--enforce", "now")
    with EdgeHost([DemoSatellite("sat", arguments, COMMAND)], sleep_after_s=600) as edge:
        metadata = (("satellite_name", "sat"), ("satellite_org", ORG), ("satellite_token", edge.token))
        with contextlib.closing(or_skip(CLIENTS[kind], edge.port, edge.ca_pem, metadata)) as client:
            assert client.unary("Echo", bytes(50_000)) == bytes(50_000)


def announced_streams(address: tuple[str, int], authority: trustme.CA, server_name: str) -> int:
    """What our SETTINGS say of MAX_CONCURRENT_STREAMS to a client that waits for them."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(address, DEADLINE_S) as sock,
        context.wrap_socket(sock, server_hostname=server_name) as tls,
    ):
        tls.sendall(PREFACE + EMPTY_SETTINGS)
        received = b""
        while not frames_of(received):
            received += tls.recv(4096)
    payload = frames_of(received)[0][3]
    said = {payload[at : at + 2]: int.from_bytes(payload[at + 2 : at + 6]) for at in range(0, len(payload), 6)}
    return said[MAX_CONCURRENT_STREAMS.to_bytes(2)]


def test_a_server_name_says_whose_settings_are_announced(
    tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA
) -> None:
    """Each satellite's own values, once it was heard; the least of all if the name is not a satellite's."""
    streams = {"few": 7, "many": 50}
    sections = SECTIONS + "".join(
        f'[[satellite]]\norg = "acme"\nname = "{name}"\n[satellite.process]\n'
        f"command = {[*COMMAND, '--settings', f'3={count}']}\n"
        for name, count in streams.items()
    )
    with Served(write_config(tmp_path, authority, client_authority, limits="", sections=sections)) as served:
        address = ("127.0.0.1", served.ports[TLS])
        names = {name: f"{name}.acme.{SATELLITE_DOMAIN}" for name in streams}
        assert {announced_streams(address, authority, each) for each in names.values()} == {1}
        for name in streams:
            metadata = (("satellite_org", "acme"), ("satellite_name", name), ("satellite_token", TOKEN))
            with contextlib.closing(GrpcioClient(served.ports[PLAIN], None, metadata)) as client:
                assert client.unary("Echo", b"hello") == b"hello"
        assert {name: announced_streams(address, authority, each) for name, each in names.items()} == streams
        assert announced_streams(address, authority, "localhost") == min(streams.values())
