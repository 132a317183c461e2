"""Plaintext on a port with TLS, and TLS on one without: real clients print what is wrong, and do not come in a storm."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
import trustme

from beds.hosts.in_process import PLAIN, TLS, TOKEN, write_config
from beds.hosts.served import SECTIONS, Served
from beds.peers.clients import CallError
from beds.peers.kinds import CLIENT_KINDS, CLIENTS, or_skip

METADATA = (("satellite_name", "sat"), ("satellite_org", "acme"), ("satellite_token", TOKEN))
FAILED_PRECONDITION, UNAVAILABLE = 9, 14
WATCH_S = 3.0
MOST_CONNECTIONS = 5
"""In WATCH_S: the first, and what a library's back-off of a second allows. GOAWAY had 58."""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[Served]:
    config = write_config(tmp_path_factory.mktemp("ports"), authority, authority, limits="", sections=SECTIONS)
    with Served(config) as daemon:
        yield daemon


def accepted(served: Served) -> float:
    return served.scrape()["bentpipe_connections_accepted_total", ""]


@contextlib.contextmanager
def no_storm(served: Served) -> Iterator[None]:
    before, began = accepted(served), time.monotonic()
    yield
    time.sleep(max(0.0, began + WATCH_S - time.monotonic()))
    assert 1 <= accepted(served) - before <= MOST_CONNECTIONS


@pytest.mark.parametrize("kind", CLIENT_KINDS)
def test_a_plain_client_of_the_tls_port_is_told_by_a_status(served: Served, kind: str) -> None:
    with no_storm(served):  # some connect before they are asked to
        client = or_skip(CLIENTS[kind], served.ports[TLS], None, METADATA)
        with contextlib.closing(client), pytest.raises(CallError) as error:
            client.unary("Echo", b"x", timeout_s=10)
    assert error.value.code == FAILED_PRECONDITION
    assert "this port speaks TLS" in error.value.details


def test_who_calls_again_and_again_comes_once_a_call(served: Served) -> None:
    client = CLIENTS["grpcio"](served.ports[TLS], None, METADATA)
    before = accepted(served)
    for _ in range(10):
        with pytest.raises(CallError, match="this port speaks TLS"):
            client.unary("Echo", b"x", timeout_s=10)
    client.close()
    assert accepted(served) - before <= 11


@pytest.mark.parametrize("kind", CLIENT_KINDS)
def test_a_tls_client_of_the_plain_port_is_told_by_an_alert(served: Served, authority: trustme.CA, kind: str) -> None:
    # grpclib raises what Python's ssl does; grpc-java's status names its TLS alone, the alert is in the cause of it.
    words = "SslHandler" if kind == "grpc-java" else r"(?i)protocol.?version"
    with no_storm(served):
        client = or_skip(CLIENTS[kind], served.ports[PLAIN], authority.cert_pem.bytes(), METADATA)
        with contextlib.closing(client), pytest.raises((CallError, OSError), match=words) as error:
            client.unary("Echo", b"x", timeout_s=10)
    if isinstance(error.value, CallError):
        assert error.value.code == UNAVAILABLE


def http1(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"x" * 50_000)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    return answer


def test_http1_on_the_tls_port_is_told_in_words(served: Served) -> None:
    for _ in range(50):
        answer = http1(served.ports[TLS])
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"This port speaks TLS" in answer


def test_curl_and_openssl_print_it(served: Served) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    plain = subprocess.run(
        ["curl", "-sS", f"http://127.0.0.1:{served.ports[TLS]}/"],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert "This port speaks TLS" in plain.stdout
    tls = subprocess.run(
        ["curl", "-sSk", f"https://127.0.0.1:{served.ports[PLAIN]}/"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert "protocol version" in tls.stderr
