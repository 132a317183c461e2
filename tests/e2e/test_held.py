"""Clients that come while the satellite sleeps, and those that are refused."""

import itertools
from collections.abc import Callable

import pytest

from bentpipe.daemon.demo.edge_host import EdgeHost
from bentpipe.daemon.model import SatelliteState

from clients import CallError, Client

Connect = Callable[..., Client]

UNAUTHENTICATED, NOT_FOUND, UNAVAILABLE, DEADLINE_EXCEEDED, INVALID_ARGUMENT = 16, 5, 14, 4, 3

slow = itertools.cycle([f"slow{number}" for number in range(8)])
slow_grpclib = itertools.cycle([f"slow-grpclib{number}" for number in range(8)])


@pytest.mark.parametrize("client_kind", ["grpcio", "grpclib"])
@pytest.mark.parametrize("names", [slow, slow_grpclib], ids=["grpcio", "grpclib"])
def test_held_client_is_answered(
    connect: Connect, edge: EdgeHost, client_kind: str, names: "itertools.cycle[str]"
) -> None:
    satellite = next(names)
    messages = [b"%d" % number for number in range(20)]
    assert connect(client_kind, satellite).concurrent("Echo", messages) == messages
    assert edge.starts(satellite) == 1


@pytest.mark.parametrize("client_kind", ["grpcio", "grpclib"])
def test_upload_larger_than_the_window_while_held(connect: Connect, client_kind: str) -> None:
    """The client runs into its flow-control window while held, and goes on when the satellite's own arrives."""
    client = connect(client_kind, next(slow))
    assert len(client.upload([bytes(50_000)] * 40)) == 64


@pytest.mark.parametrize("client_kind", ["grpcio", "grpclib"])
def test_client_that_gives_up_while_held_does_not_stop_the_wake(
    connect: Connect, edge: EdgeHost, client_kind: str
) -> None:
    satellite = next(slow)
    client = connect(client_kind, satellite)
    with pytest.raises(CallError) as error:
        client.unary("Echo", b"too slow", timeout_s=0.4)
    assert error.value.code == DEADLINE_EXCEEDED
    edge.wait_state(satellite, SatelliteState.OPERATIONAL, 20)
    assert connect(client_kind, satellite).unary("Echo", b"next") == b"next"
    assert edge.starts(satellite) == 1


@pytest.mark.parametrize("client_kind", ["grpcio", "grpclib"])
def test_metadata_that_needs_continuation(connect: Connect, client_kind: str) -> None:
    """More than a frame of metadata (16,384 bytes): HEADERS and CONTINUATION, in the first block and in a later one."""
    extra = (("x-large", "Zq" * 10_000),)
    client = connect(client_kind, "grpcio", extra=extra)
    assert client.unary("Echo", b"first") == b"first"
    assert client.unary("Echo", b"second") == b"second"


@pytest.mark.parametrize("client_kind", ["grpcio", "grpclib"])
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
