"""Clients that come while the satellite sleeps, and those that are refused."""

import concurrent.futures
import hashlib
import time
from collections.abc import Callable

import pytest

from bentpipe.daemon.demo.edge_host import ORG, DemoSatellite, EdgeHost
from bentpipe.daemon.model import SatelliteState

from child_clients import go_client
from clients import CallError, Client
from kinds import CLIENT_KINDS, CLIENTS, SERVER_KINDS, available_clients, or_skip

Connect = Callable[..., Client]

UNAUTHENTICATED, NOT_FOUND, UNAVAILABLE, DEADLINE_EXCEEDED, INVALID_ARGUMENT = 16, 5, 14, 4, 3

clients = pytest.mark.parametrize("client_kind", CLIENT_KINDS)


@pytest.mark.parametrize("server_kind", SERVER_KINDS)
def test_held_clients_are_answered(
    connect: Connect, edge: EdgeHost, asleep: Callable[[str], str], server_kind: str
) -> None:
    """Every kind of client on one sleeping satellite at once, each with many streams: one start, right answers."""
    connect("grpcio", server_kind)
    satellite = asleep(server_kind)
    opened = [connect(kind, satellite) for kind in available_clients()]
    messages = [b"%d" % number for number in range(100)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda client: client.concurrent("Echo", messages), opened))
    assert answers == [messages] * len(opened)
    assert edge.starts(satellite) == 1


@clients
def test_upload_larger_than_the_window_while_held(
    connect: Connect, asleep: Callable[[str], str], client_kind: str
) -> None:
    """The client runs into its flow-control window while held, and goes on when the satellite's own arrives."""
    client = connect(client_kind, asleep("grpcio"))
    chunks = [bytes([number]) * 50_000 for number in range(40)]
    assert client.upload(chunks) == hashlib.sha256(b"".join(chunks)).hexdigest().encode()


@clients
def test_deadline_while_held_does_not_stop_the_wake(
    connect: Connect, edge: EdgeHost, asleep: Callable[[str], str], client_kind: str
) -> None:
    satellite = asleep("grpcio")
    client = connect(client_kind, satellite)
    with pytest.raises(CallError) as error:
        client.unary("Echo", b"too slow", timeout_s=0.25)
    assert error.value.code == DEADLINE_EXCEEDED
    edge.wait_state(satellite, SatelliteState.OPERATIONAL, 20)
    assert client.unary("Echo", b"same connection") == b"same connection"
    assert connect(client_kind, satellite).unary("Echo", b"next") == b"next"
    assert edge.starts(satellite) == 1


@clients
def test_cancel_while_held(connect: Connect, asleep: Callable[[str], str], client_kind: str) -> None:
    client = connect(client_kind, asleep("grpcio"))
    client.cancelled("Echo", b"given up", 0.2)
    assert client.unary("Echo", b"same connection") == b"same connection"


@clients
@pytest.mark.parametrize("held", [False, True])
def test_metadata_that_needs_continuation(
    connect: Connect, asleep: Callable[[str], str], client_kind: str, held: bool
) -> None:
    """More than a frame of metadata (16,384 bytes): HEADERS and CONTINUATION, in the first block and in a later one."""
    client = connect(client_kind, asleep("grpcio") if held else "grpcio", extra=(("x-large", "Zq" * 10_000),))
    assert client.unary("Echo", b"first") == b"first"
    assert client.unary("Echo", b"second") == b"second"


@clients
@pytest.mark.parametrize("satellite", ["small-table", "no-table"])
def test_satellite_with_another_header_table(
    connect: Connect, edge: EdgeHost, client_kind: str, satellite: str
) -> None:
    """The satellite's SETTINGS_HEADER_TABLE_SIZE reaches the client, whose next block changes its table (RFC 7541 §4.2)."""
    or_skip(go_client, edge.port, None, ()).close()
    client = connect(client_kind, satellite)
    messages = [b"%d" % number for number in range(10)]
    assert [client.unary("Echo", message) for message in messages] == messages


@clients
def test_satellite_that_says_goaway(connect: Connect, edge: EdgeHost, client_kind: str) -> None:
    """GOAWAY passes through as it is: the client opens its next connection, and no call is lost.

    But by grpclib: it gives up what is in flight at a GOAWAY, without bentpipe just the same (0.4.9).
    """
    or_skip(go_client, edge.port, None, ()).close()
    client = connect(client_kind, "short-lived")
    ended = edge.count_messages("connection ended", "short-lived")
    deadline = time.monotonic() + 20
    while edge.count_messages("connection ended", "short-lived") < ended + 2:
        try:
            assert client.unary("Echo", b"x") == b"x"
        except CallError:
            if client_kind != "grpclib":
                raise
        assert time.monotonic() < deadline


@pytest.mark.parametrize("hold_s", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_keepalive_while_held(hold_s: int) -> None:
    """The clients' PINGs are answered: they would give the connection up otherwise. grpc-go's are 10 s apart at least."""
    with EdgeHost([DemoSatellite("sat", ("--boot", str(hold_s)))], sleep_after_s=600) as host:
        metadata = (("satellite_name", "sat"), ("satellite_org", ORG), ("satellite_token", host.token))
        keepalive_s = 5 if hold_s > 5 else 0.7
        opened = [
            CLIENTS[kind](host.port, host.ca_pem, metadata, keepalive_s=keepalive_s) for kind in available_clients()
        ]
        try:
            with concurrent.futures.ThreadPoolExecutor() as pool:
                answers = list(pool.map(lambda client: client.unary("Echo", b"held", timeout_s=60), opened))
        finally:
            for client in opened:
                client.close()
        assert answers == [b"held"] * len(opened)
        assert host.count_messages("spliced", "sat") == len(opened)


@clients
@pytest.mark.parametrize(
    ("satellite", "token", "code", "words"),
    [
        ("grpcio", "bp_wrong", UNAUTHENTICATED, "satellite_token"),
        ("nowhere", None, NOT_FOUND, "no such satellite"),
        ("bad name", None, INVALID_ARGUMENT, "satellite_name"),
        ("broken", None, UNAVAILABLE, "no space left on the cache volume"),
    ],
)
def test_refusals_reach_the_client_in_words(
    connect: Connect, client_kind: str, satellite: str, token: str | None, code: int, words: str
) -> None:
    with pytest.raises(CallError) as error:
        connect(client_kind, satellite, token=token).unary("Echo", b"hello")
    assert error.value.code == code
    assert words in error.value.details
