"""A token that is revoked: its held clients are refused as newcomers are, and its connections are cut if asked for."""

import concurrent.futures
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.hosts.in_process import frames_of
from beds.http2 import EMPTY_SETTINGS
from beds.peers.clients import CallError, GrpcioClient
from beds.peers.crowd import GOAWAY, HEADERS, PREFACE, call
from beds.peers.edge_clients import client_of, outcome
from beds.programs import BENTPIPE, bentpipe
from bentpipe.daemon.connections.ends import CUT_WORDS
from bentpipe.daemon.service.tokens import TOKEN_REFRESH_S
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost
from bentpipe.proto.grpc_status import GrpcStatus

BOOT_S = 15.0
"""Of the slow satellite: the revocation is known long before."""
SLACK_S = 20.0


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[EdgeHost]:
    satellites = [DemoSatellite("slow", ("--boot", str(BOOT_S))), DemoSatellite("sat"), DemoSatellite("other")]
    settings = f'[control]\npath = "{tmp_path / "control"}"\n[[listener]]\naddress = "127.0.0.1:0"\n'
    with EdgeHost(satellites, sleep_after_s=600, drain_deadline_s=1, settings=settings) as host:
        yield host


def add_token(edge: EdgeHost, name: str, grant: str = f"{ORG}/*") -> str:
    return bentpipe(edge.config_path, "token", "add", "--name", name, "--grant", grant).split()[-1]


def wait_message(edge: EdgeHost, message: str, satellite: str) -> None:
    deadline = time.monotonic() + SLACK_S
    while not edge.count_messages(message, satellite):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_taken(edge: EdgeHost, token: str) -> GrpcioClient:
    """A client that the daemon has let in; its connection stays open."""
    deadline = time.monotonic() + TOKEN_REFRESH_S + SLACK_S
    while True:
        client = client_of(edge, "sat", token)
        if outcome(client)[0] is GrpcStatus.OK:
            return client
        client.close()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_client_that_is_held_while_its_token_is_revoked_is_refused(edge: EdgeHost) -> None:
    token = add_token(edge, "ci")
    wait_taken(edge, token).close()
    held = client_of(edge, "slow", token)
    found: list[tuple[GrpcStatus, str]] = []
    thread = threading.Thread(target=lambda: found.append(outcome(held)))
    thread.start()
    time.sleep(0.5)
    bentpipe(edge.config_path, "token", "revoke", "ci")
    thread.join()
    held.close()
    newcomer = client_of(edge, "slow", token)
    assert found == [outcome(newcomer)]
    newcomer.close()
    assert found[0][0] is GrpcStatus.UNAUTHENTICATED
    assert edge.count_messages("spliced", "slow") == 0


class Streaming:
    """A call that goes on for as long as its connection."""

    def __init__(self, edge: EdgeHost, satellite: str, token: str) -> None:
        self._client = client_of(edge, satellite, token)
        assert outcome(self._client)[0] is GrpcStatus.OK
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def _call(self) -> None:
        try:
            self._client.unary("Sleep", b"40000", timeout_s=60)
        except CallError:
            self.ended.set()

    def close(self) -> None:
        self._client.close()
        self._thread.join()


def test_a_principals_or_a_satellites_connections_are_cut_and_no_others(edge: EdgeHost) -> None:
    tokens = {name: add_token(edge, name) for name in ("ci", "dev")}
    for token in tokens.values():
        wait_taken(edge, token).close()
    opened = {(s, t): Streaming(edge, s, tokens[t]) for s in ("sat", "other") for t in tokens}
    try:
        assert bentpipe(edge.config_path, "cut", "--principal", "ci") == "cut 2 connections\n"
        for satellite in ("sat", "other"):
            assert opened[satellite, "ci"].ended.wait(10)
        assert bentpipe(edge.config_path, "cut", "--satellite", f"{ORG}/sat") == "cut 1 connections\n"
        assert opened["sat", "dev"].ended.wait(10)
        assert not opened["other", "dev"].ended.wait(0.5)
        assert bentpipe(edge.config_path, "cut", "--principal", "nobody") == "cut 0 connections\n"
        reasons = [r["end"] for r in edge.records() if r["message"] == "connection ended"]
        assert reasons.count(CUT_WORDS) == 3
        # It may come again at once: nothing was revoked.
        assert outcome(opened["sat", "ci"]._client)[0] is GrpcStatus.OK
    finally:
        for each in opened.values():
            each.close()


def test_held_clients_are_cut_too(edge: EdgeHost) -> None:
    """They were passed over, and spliced a moment later."""
    tokens = {name: add_token(edge, name) for name in ("ci", "dev")}
    for token in tokens.values():
        wait_taken(edge, token).close()
    held = {name: client_of(edge, "slow", token) for name, token in tokens.items()}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        calls = {name: pool.submit(outcome, client) for name, client in held.items()}
        wait_message(edge, "satellite", "slow")
        time.sleep(0.5)
        assert bentpipe(edge.config_path, "cut", "--principal", "ci") == "cut 1 connections\n"
        assert calls["ci"].result(5) == (GrpcStatus.UNAVAILABLE, "cut by the operator")
        assert bentpipe(edge.config_path, "cut", "--satellite", f"{ORG}/slow") == "cut 1 connections\n"
        assert calls["dev"].result(5) == (GrpcStatus.UNAVAILABLE, "cut by the operator")
        assert bentpipe(edge.config_path, "cut", "--satellite", f"{ORG}/slow") == "cut 0 connections\n"
    assert outcome(held["dev"])[0] is GrpcStatus.OK, "nothing was revoked"
    for client in held.values():
        client.close()
    wait_message(edge, "spliced", "slow")
    assert edge.count_messages("spliced", "slow") == 1


def test_clients_that_already_hear_their_satellite_are_cut_too(edge: EdgeHost) -> None:
    """Those that owe the ACK of our SETTINGS: no word of ours may follow, and no splice."""
    token = add_token(edge, "ci")
    wait_taken(edge, token).close()
    asked = call("sat", token)
    with socket.create_connection(("127.0.0.1", edge.ports[1])) as sock:
        sock.settimeout(SLACK_S)
        sock.sendall(asked[: len(PREFACE + EMPTY_SETTINGS)])
        received = sock.recv(1 << 16)  # our SETTINGS: from now on it must be acknowledged before there is a splice
        sock.sendall(asked[len(PREFACE + EMPTY_SETTINGS) :])
        while not any(kind == HEADERS for kind, *_ in frames_of(received)):
            received += sock.recv(1 << 16)
        peer = f"127.0.0.1:{sock.getsockname()[1]}"
        assert bentpipe(edge.config_path, "cut", "--principal", "ci") == "cut 1 connections\n"
        while data := sock.recv(1 << 16):
            received += data
        assert GOAWAY not in [kind for kind, *_ in frames_of(received)]
    deadline = time.monotonic() + SLACK_S

    def told_of_it() -> list[object]:
        """Without what a data plane of its own says of its part."""
        ours = [r for r in edge.records() if r.get("peer") == peer and r["logger"] != "bentpipe.dataplane"]
        return [r.get("end", r["message"]) for r in ours]

    while (told := told_of_it()) != [CUT_WORDS]:
        assert "spliced" not in told
        assert time.monotonic() < deadline, told
        time.sleep(0.05)


def test_a_token_is_revoked_with_or_without_its_connections(edge: EdgeHost) -> None:
    tokens = {name: add_token(edge, name) for name in ("kept", "cut")}
    for token in tokens.values():
        wait_taken(edge, token).close()
    opened = {name: Streaming(edge, "sat", token) for name, token in tokens.items()}
    try:
        bentpipe(edge.config_path, "token", "revoke", "kept")
        assert "cut its connections" in bentpipe(edge.config_path, "token", "revoke", "--cut", "cut")
        assert opened["cut"].ended.wait(TOKEN_REFRESH_S + SLACK_S)
        assert not opened["kept"].ended.wait(TOKEN_REFRESH_S)
        for token in tokens.values():
            newcomer = client_of(edge, "sat", token)
            assert outcome(newcomer)[0] is GrpcStatus.UNAUTHENTICATED
            newcomer.close()
    finally:
        for each in opened.values():
            each.close()


def test_what_cannot_be_cut_is_told(edge: EdgeHost) -> None:
    def told(*arguments: str) -> str:
        done = subprocess.run([BENTPIPE, "cut", *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        return done.stderr

    assert "one of --principal and --satellite" in told("--config", str(edge.config_path))
    assert "no satellite 'acme/nowhere'" in told("--config", str(edge.config_path), "--satellite", "acme/nowhere")
    edge.stop()
    assert "no daemon answers at" in told("--config", str(edge.config_path), "--principal", "ci")
