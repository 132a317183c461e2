"""What is not a gRPC client gets its clear answer or a close by the deadline, is counted, and disturbs nobody."""

import hashlib
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trustme

from bentpipe.config.load import load_config
from bentpipe.daemon.edge.outcomes import Outcome
from bentpipe.daemon.service.serve import Daemon, serve

TOKEN = "bp_test"
PLAIN, TLS = 0, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
GOAWAY_TYPE = 7


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def daemon(tmp_path: Path, authority: trustme.CA) -> AsyncIterator[Daemon]:
    """A daemon inside the test's own process: a plain and a TLS port, one echo satellite, a short greeting deadline."""
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    (tmp_path / "key.pem").write_bytes(certificate.private_key_pem.bytes())
    (tmp_path / "bentpipe.toml").write_text(f"""
[limits]
greeting_deadline = "1s"
[[listener]]
address = "127.0.0.1:0"
[[listener]]
address = "127.0.0.1:0"
[listener.tls]
certificate = "{tmp_path / "cert.pem"}"
key = "{tmp_path / "key.pem"}"
[[token]]
name = "test"
hash = "sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"
grants = ["acme/*"]
[[satellite]]
org = "acme"
name = "sat"
[satellite.process]
command = ["{sys.executable}", "-P", "-m", "bentpipe.daemon.demo.satellite", "{{port}}"]
""")
    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve, load_config(tmp_path / "bentpipe.toml"))
        yield running
        running.drain.set()


async def exchange(daemon: Daemon, port: int, sent: bytes, *, close: bool = False) -> bytes:
    """Connect, send, and read to the end of the stream (a reset counts as one)."""
    stream = await trio.open_tcp_stream(*daemon.addresses[port])
    received = b""
    with trio.fail_after(15):
        async with stream:
            try:
                await stream.send_all(sent)
                if close:
                    await stream.send_eof()
                async for chunk in stream:
                    received += chunk
            except trio.BrokenResourceError:
                pass
    return received


async def counted(daemon: Daemon, outcome: Outcome, times: int = 1) -> None:
    """Wait until the outcome was counted that often."""
    with trio.fail_after(15):
        while daemon.counters.ended[outcome] < times:
            await trio.sleep(0.01)


async def test_random_bytes(daemon: Daemon) -> None:
    for _ in range(20):
        await exchange(daemon, PLAIN, b"\xf0" + os.urandom(200))
    await counted(daemon, Outcome.NOT_HTTP2, 20)


async def test_random_bytes_on_the_tls_port(daemon: Daemon) -> None:
    for _ in range(20):
        await exchange(daemon, TLS, b"\x16\x03\x01" + os.urandom(200), close=True)
    await counted(daemon, Outcome.TLS_FAILED, 20)


async def test_http1_is_told_what_the_port_is(daemon: Daemon) -> None:
    answer = await exchange(daemon, PLAIN, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 ")
    assert b"gRPC" in answer
    await counted(daemon, Outcome.HTTP1)


async def test_tls_to_the_plain_port_gets_an_alert(daemon: Daemon, authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def handshake() -> None:
        with socket.create_connection(daemon.addresses[PLAIN], timeout=10) as sock:
            context.wrap_socket(sock, server_hostname="localhost")

    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        await trio.to_thread.run_sync(handshake)
    await counted(daemon, Outcome.TLS_ON_PLAIN_PORT)


async def test_plain_to_the_tls_port_is_told_in_http2(daemon: Daemon) -> None:
    answer = await exchange(daemon, TLS, PREFACE + EMPTY_SETTINGS)
    assert b"TLS" in answer
    await counted(daemon, Outcome.PLAIN_ON_TLS_PORT)


@pytest.mark.parametrize("sent", [b"", PREFACE[:10], PREFACE, PREFACE + EMPTY_SETTINGS, PREFACE + EMPTY_SETTINGS[:5]])
async def test_a_stalled_greeting_is_closed_by_the_deadline(daemon: Daemon, sent: bytes) -> None:
    await exchange(daemon, PLAIN, sent)
    await counted(daemon, Outcome.DEADLINE)


@pytest.mark.parametrize("sent", [b"", PREFACE, PREFACE + EMPTY_SETTINGS])
async def test_a_health_check_that_connects_and_closes_is_a_probe(daemon: Daemon, sent: bytes) -> None:
    await exchange(daemon, PLAIN, sent, close=True)
    await counted(daemon, Outcome.PROBE)


async def test_malformed_frames_get_goaway(daemon: Daemon) -> None:
    data_on_idle_stream = b"\x00\x00\x01\x00\x00\x00\x00\x00\x01x"
    answer = await exchange(daemon, PLAIN, PREFACE + EMPTY_SETTINGS + data_on_idle_stream)
    assert GOAWAY_TYPE in {answer[i + 3] for i in _frame_starts(answer)}
    await counted(daemon, Outcome.MALFORMED)


def _frame_starts(answer: bytes) -> list[int]:
    starts = []
    at = 0
    while at + 9 <= len(answer):
        starts.append(at)
        at += 9 + int.from_bytes(answer[at : at + 3])
    return starts


async def test_good_clients_are_served_beside_bad_ones(
    daemon: Daemon, grpc_echo: Callable[[int, str], Awaitable[bytes]]
) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(exchange, daemon, PLAIN, b"\xf0" + os.urandom(50))
            nursery.start_soon(exchange, daemon, PLAIN, PREFACE)
        assert await grpc_echo(daemon.addresses[PLAIN][1], TOKEN) == b"good"


@pytest.fixture
def grpc_echo() -> Callable[[int, str], Awaitable[bytes]]:
    """A real client's unary call, in a thread."""
    from clients import GrpcioClient

    def call(port: int, token: str) -> bytes:
        client = GrpcioClient(
            port, None, (("satellite_name", "sat"), ("satellite_org", "acme"), ("satellite_token", token))
        )
        try:
            return client.unary("Echo", b"good")
        finally:
            client.close()

    async def run(port: int, token: str) -> bytes:
        return await trio.to_thread.run_sync(call, port, token)

    return run
