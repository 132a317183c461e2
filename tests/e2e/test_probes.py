"""A client that leaves before its request is complete is counted as a probe, and logged only at debug."""

import contextlib
import logging
import socket
import ssl
import struct
from collections.abc import Iterator

import pytest
import trio
import trustme

from beds.hosts.in_process import PLAIN, PREFACE, TLS, counted, exchange
from beds.http2 import EMPTY_SETTINGS
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.service.serve import Daemon

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: close sends RST, as HAProxy's TCP check does."""


@pytest.fixture(autouse=True)
def _nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    yield
    assert [r for r in caplog.records if r.name == "bentpipe.edge"] == []


@pytest.mark.parametrize(
    ("port", "sent"), [(PLAIN, b""), (PLAIN, PREFACE), (PLAIN, PREFACE + EMPTY_SETTINGS), (TLS, b"")]
)
async def test_connect_and_close(daemon: Daemon, port: int, sent: bytes) -> None:
    await exchange(daemon, port, sent, close=True)
    await counted(daemon, Outcome.PROBE)


@pytest.mark.parametrize("port", [PLAIN, TLS])
async def test_connect_and_reset(daemon: Daemon, port: int) -> None:
    """After its first byte: before, the kernel alone answers it (tests/daemon/connections/test_defer_accept.py)."""
    with socket.create_connection(daemon.addresses[port]) as sock:
        sock.sendall(b"P")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    await counted(daemon, Outcome.PROBE)


@pytest.mark.parametrize("goodbye", [True, False])
@pytest.mark.parametrize("sent", [b"", PREFACE + EMPTY_SETTINGS])
async def test_tls_and_close(daemon: Daemon, authority: trustme.CA, sent: bytes, goodbye: bool) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def probe() -> None:
        with (
            socket.create_connection(daemon.addresses[TLS], timeout=10) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as tls,
        ):
            tls.sendall(sent)
            if goodbye:
                with contextlib.suppress(OSError):  # the daemon owes a probe no goodbye of its own
                    tls.unwrap()
            else:
                tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    await trio.to_thread.run_sync(probe)
    await counted(daemon, Outcome.PROBE)


async def test_tls_broken_off_in_the_handshake(daemon: Daemon) -> None:
    hello = ssl.MemoryBIO()
    begun = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        begun.do_handshake()
    await exchange(daemon, TLS, hello.read(), close=True)
    await counted(daemon, Outcome.PROBE)
