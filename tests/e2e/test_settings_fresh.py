"""SETTINGS of a satellite that its daemon has not heard, or that have changed since. Each test has a daemon of its own."""

import contextlib
import itertools
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from beds.hosts.in_process import PLAIN, SATELLITE_DOMAIN, TLS, TOKEN, frames_of, write_config
from beds.hosts.served import SECTIONS, Served
from beds.http2 import EMPTY_SETTINGS
from beds.peers.cases import UNAVAILABLE
from beds.peers.clients import CallError, GrpcioClient
from beds.peers.edge_clients import client_of_kind
from beds.peers.settings_cases import ALL_AT_ONCE, COMMAND, MESSAGES, SAID, SLOW, WAIT
from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.testbed.edge_host import DemoSatellite, EdgeHost
from bentpipe.proto.frames import PREFACE

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet

DEADLINE_S = 15.0
MAX_CONCURRENT_STREAMS = 3


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
        for _ in range(3):  # the first wakes it
            with client_of_kind(edge, kind, "sat") as client:
                assert client.unary("Echo", b"hello") == b"hello"
        time.sleep(1.5)  # for the SETTINGS of every connection that was made
    assert _calls(requests) == 3


@pytest.mark.parametrize("kind", ["grpcio", "grpc-go"])
def test_no_request_reaches_who_hangs_up_before_its_settings(tmp_path: Path, kind: str) -> None:
    """It is tried again and again, and could have done what was asked each time."""
    requests = tmp_path / "requests"
    satellite = DemoSatellite("sat", ("--first", "hear-and-hangup", "--requests", str(requests)), COMMAND)
    with EdgeHost([satellite], sleep_after_s=600) as edge, client_of_kind(edge, kind, "sat") as client:
        with pytest.raises(CallError) as error:
            client.unary("Echo", b"hello")
        assert error.value.code == UNAVAILABLE
        assert "hung up" in error.value.details
    assert _calls(requests) == 0


def _first_clients() -> list["ParameterSet"]:
    """Every combination. Each takes a second of CPU, so `make test` runs those that cover all pairs with a client's kind."""
    found = []
    settings = ("3=1", "3=10", "4=0", "4=16384", ALL_AT_ONCE)
    ways = tuple(itertools.product(("ack", "now"), ("awake", "held")))
    for (at, kind), (shift, said), (way, (enforce, first)) in itertools.product(
        *map(enumerate, (WAIT, settings, ways))
    ):
        covering = way == (at + shift) % len(ways) and kind != "grpc-java"
        marks = () if covering else (pytest.mark.slow,)
        found.append(
            pytest.param(kind, said, enforce, first == "held", marks=marks, id=f"{kind}-{said}-{enforce}-{first}")
        )
    return found


@pytest.mark.parametrize(("kind", "settings", "enforce", "held"), _first_clients())
def test_the_first_client_since_the_start(kind: str, settings: str, enforce: str, held: bool) -> None:
    """Nobody knows yet what the satellite says, and yet its client does not ask too much."""
    arguments = ("--settings", settings, "--enforce", enforce)
    with (
        EdgeHost(
            [DemoSatellite("sat", arguments if not held else (*SLOW, *arguments), COMMAND)], sleep_after_s=600
        ) as edge,
        client_of_kind(edge, kind, "sat") as client,
    ):
        assert client.concurrent("Echo", MESSAGES) == MESSAGES


@pytest.mark.parametrize("kind", WAIT)
def test_settings_that_change_over_a_sleep(tmp_path: Path, kind: str) -> None:
    """What is announced is what the satellite said when it last woke; what it says now is what its client gets."""
    said = tmp_path / "settings"
    arguments = ("--settings", f"@{said}", "--enforce", "ack")
    with EdgeHost([DemoSatellite("sat", arguments, COMMAND)], sleep_after_s=0.3) as edge:
        for settings in ("3=10,4=16384", "", "9=1", "3=1,4=0,9=0", "4=1048576"):
            said.write_text(settings)
            with client_of_kind(edge, kind, "sat") as client:
                assert client.concurrent("Echo", MESSAGES) == MESSAGES
                large = bytes(200_000)
                assert client.unary("Echo", large) == large
            edge.wait_state("sat", SatelliteState.SLEEP, 15)


@pytest.mark.parametrize("settings", ["4=0", "4=16384"])
@pytest.mark.parametrize("kind", ["grpcio", "grpc-go", "grpc-js"])
def test_a_first_message_larger_than_the_window(kind: str, settings: str) -> None:
    """Held with a message that fits into the initial window, but not into the satellite's."""
    arguments = (*SLOW, "--settings", settings, "--enforce", "now")
    satellite = DemoSatellite("sat", arguments, COMMAND)
    with EdgeHost([satellite], sleep_after_s=600) as edge, client_of_kind(edge, kind, "sat") as client:
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
