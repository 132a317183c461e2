"""Clients that come while the satellite sleeps, and those that are refused."""

import concurrent.futures
import time
from collections.abc import Callable, Mapping

import pytest

from beds.peers.cases import CASES, DEADLINE_EXCEEDED, GIVE_UP_S, bulk
from beds.peers.clients import CallError, Client
from beds.peers.kinds import CLIENT_KINDS, CLIENTS, SERVER_KINDS, available_clients, satellite_command
from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost

Connect = Callable[..., Client]

UNAUTHENTICATED, NOT_FOUND, UNAVAILABLE, INVALID_ARGUMENT = 16, 5, 14, 3

clients = pytest.mark.parametrize("client_kind", CLIENT_KINDS)


Pair = tuple[str, str]
"""Client and server."""


def all_at_once(opened: Mapping[Pair, Client], call: Callable[[Client], None]) -> None:
    """Each client in a thread of its own; the first failure is raised when all are done, and says whose it is."""
    with concurrent.futures.ThreadPoolExecutor(len(opened)) as pool:
        calls = {pair: pool.submit(call, client) for pair, client in opened.items()}
    for pair, done in calls.items():
        if (failure := done.exception()) is not None:
            failure.add_note(f"{pair[0]} to {pair[1]}")
            raise failure


@pytest.fixture
def connect_all(connect: Connect, asleep: Callable[[str], str]) -> Callable[..., dict[Pair, Client]]:
    """`connect_all(extra=())`: each client to each server that is available here, one sleeping satellite for each server."""

    def connected(extra: tuple[tuple[str, str], ...] = (), *, held: bool = True) -> dict[Pair, Client]:
        servers = [kind for kind in SERVER_KINDS if satellite_command(kind) is not None]
        satellites = {kind: asleep(kind) if held else kind for kind in servers}
        return {
            (client, server): connect(client, name, extra=extra)
            for client in available_clients()
            for server, name in satellites.items()
        }

    return connected


@pytest.mark.parametrize("case", CASES)
def test_held_clients(connect_all: Callable[..., dict[Pair, Client]], edge: EdgeHost, case: str) -> None:
    """Every client held on every server, all at once: each gets what it would get of one awake, for one start each."""
    before = sum(change.state is SatelliteState.STARTING for change in edge.changes())
    opened = connect_all()
    all_at_once(opened, CASES[case])
    starts = sum(change.state is SatelliteState.STARTING for change in edge.changes()) - before
    assert starts == len({server for _, server in opened})


@pytest.mark.slow
@clients
@pytest.mark.parametrize("server_kind", SERVER_KINDS)
def test_100_mb_each_way_begun_while_held(
    connect: Connect, asleep: Callable[[str], str], client_kind: str, server_kind: str
) -> None:
    bulk(connect(client_kind, asleep(server_kind)), 100_000_001)


@clients
def test_deadline_while_held_does_not_stop_the_wake(
    connect: Connect, edge: EdgeHost, asleep: Callable[[str], str], client_kind: str
) -> None:
    satellite = asleep("grpcio")
    with pytest.raises(CallError) as error:
        connect(client_kind, satellite).unary("Echo", b"too slow", timeout_s=GIVE_UP_S)
    assert error.value.code == DEADLINE_EXCEEDED
    edge.wait_state(satellite, SatelliteState.OPERATIONAL, 90)
    assert connect(client_kind, satellite).unary("Echo", b"next") == b"next"
    assert edge.starts(satellite) == 1


@pytest.mark.parametrize("held", [False, True])
def test_metadata_that_needs_continuation(connect_all: Callable[..., dict[Pair, Client]], held: bool) -> None:
    """More than a frame of metadata (16,384 bytes): HEADERS and CONTINUATION, in the first block and in a later one."""

    def twice(client: Client) -> None:
        assert client.unary("Echo", b"first") == b"first"
        assert client.unary("Echo", b"second") == b"second"

    all_at_once(connect_all((("x-large", "Zq" * 10_000),), held=held), twice)


settings_servers = pytest.mark.parametrize("server_kind", ["grpcio-settings", "grpc-go"])


def satellite_with(settings: str, server_kind: str) -> str:
    if satellite_command(server_kind) is None:
        pytest.skip(f"no satellite of kind {server_kind} is available here")
    return f"{settings}-{server_kind}"


@clients
@settings_servers
@pytest.mark.parametrize("settings", ["small-table", "no-table"])
def test_satellite_with_another_header_table(
    connect: Connect, client_kind: str, server_kind: str, settings: str
) -> None:
    """The satellite's SETTINGS_HEADER_TABLE_SIZE reaches the client, whose next block changes its table (RFC 7541 §4.2)."""
    client = connect(client_kind, satellite_with(settings, server_kind))
    messages = [b"%d" % number for number in range(10)]
    assert [client.unary("Echo", message) for message in messages] == messages


LOSE_CALLS_AT_GOAWAY = {"grpclib", "tonic"}
"""Clients that lose calls at a GOAWAY without bentpipe too, in front of this very satellite.

grpclib 0.4.9 gives up what is in flight. tonic 0.14 gives up what it sends while the connection closes (4 calls in 1,000).
"""


@clients
@settings_servers
def test_satellite_that_says_goaway(connect: Connect, edge: EdgeHost, client_kind: str, server_kind: str) -> None:
    """GOAWAY passes through as it is: the client opens its next connection, and no call is lost."""
    satellite = satellite_with("short-lived", server_kind)
    client = connect(client_kind, satellite)
    ended = edge.count_messages("connection ended", satellite)
    deadline = time.monotonic() + 20
    while edge.count_messages("connection ended", satellite) < ended + 2:
        try:
            assert client.unary("Echo", b"x") == b"x"
        except CallError:
            if client_kind not in LOSE_CALLS_AT_GOAWAY:
                raise
        assert time.monotonic() < deadline


@pytest.mark.parametrize("hold_s", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_keepalive_while_held(hold_s: int) -> None:
    """The clients' PINGs are answered: they would give the connection up otherwise. grpc-go's are 10 s apart at least."""
    with EdgeHost([DemoSatellite("sat", ("--boot", str(hold_s)))], sleep_after_s=600, wake_deadline_s=90) as host:
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
def test_in_the_clear(connect: Connect, asleep: Callable[[str], str], client_kind: str) -> None:
    """The same without TLS (h2c by prior knowledge): held, then awake, and refused in words."""
    satellite = asleep("grpcio")
    for _ in range(2):
        client = connect(client_kind, satellite, plain=True)
        for case in ("unary", "concurrent_streams", "bidirectional_streaming", "cancellation"):
            CASES[case](client)
    with pytest.raises(CallError, match="satellite_token"):
        connect(client_kind, satellite, token="bp_wrong", plain=True).unary("Echo", b"hello")


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
