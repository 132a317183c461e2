"""What is not a gRPC client gets its clear answer or a close by the deadline, is counted, and disturbs nobody."""

import os
import socket
import ssl
from collections.abc import Awaitable, Callable

import pytest
import trio
import trustme

from beds.hosts.in_process import PLAIN, PREFACE, TLS, TOKEN, counted, exchange, frames_of
from beds.http2 import EMPTY_SETTINGS
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.service.serve import Daemon

GOAWAY_TYPE = 7


async def test_random_bytes(daemon: Daemon) -> None:
    for _ in range(20):
        await exchange(daemon, PLAIN, b"\xf0" + os.urandom(200))
    await counted(daemon, Outcome.NOT_HTTP2, 20)


async def test_random_bytes_on_the_tls_port(daemon: Daemon) -> None:
    for _ in range(20):
        await exchange(daemon, TLS, b"\x16\x03\x01\x00\xc8\xff" + os.urandom(199), close=True)
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


async def test_malformed_frames_get_goaway(daemon: Daemon) -> None:
    data_on_idle_stream = b"\x00\x00\x01\x00\x00\x00\x00\x00\x01x"
    answer = await exchange(daemon, PLAIN, PREFACE + EMPTY_SETTINGS + data_on_idle_stream)
    assert GOAWAY_TYPE in {kind for kind, *_ in frames_of(answer)}
    await counted(daemon, Outcome.MALFORMED)


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
    from beds.peers.clients import GrpcioClient

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
