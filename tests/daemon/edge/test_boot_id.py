"""What woken satellites say of their kernels: a real gRPC server, servers that say nothing, and some that are none."""

import concurrent.futures
import contextlib
import socket
from collections.abc import Iterator

import grpc
import pytest
import trio

from beds.ports import free_port
from bentpipe.daemon.edge.boot_id import BootIdQuery, read_boot_info
from bentpipe.daemon.fleet.resume import BootInfo
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.testbed.satellite import BOOT_ID, make_server
from bentpipe.proto.asking import MAX_ANSWER_BYTES

KEY = SatelliteKey("acme", "a")
DEADLINE_S = 15.0


async def ask(port: int) -> BootInfo | None:
    with trio.fail_after(DEADLINE_S):
        return await BootIdQuery({}, lambda _key, _heard: None).ask(KEY, Address("127.0.0.1", port))


async def test_a_satellite_that_offers_both() -> None:
    port = free_port()
    server = make_server(f"127.0.0.1:{port}")
    server.start()
    try:
        first, second = await ask(port), await ask(port)
    finally:
        server.stop(grace=None).wait()
    assert first is not None
    assert second is not None
    assert first.boot_id == second.boot_id == BOOT_ID
    assert first.uptime_s is not None
    assert second.uptime_s is not None
    assert 0 < first.uptime_s < second.uptime_s


async def test_a_grpc_server_that_knows_no_health() -> None:
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert await ask(port) is None
    finally:
        server.stop(grace=None).wait()


@contextlib.contextmanager
def saying(words: bytes) -> Iterator[int]:
    """A server that takes one connection, says its words and hangs up."""

    def serve() -> None:
        peer, _ = server.accept()
        with peer, contextlib.suppress(OSError):
            peer.recv(1 << 16)
            peer.sendall(words)

    with socket.create_server(("127.0.0.1", 0)) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(serve)
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0\0\0\4\0\0\0\0\0",  # SETTINGS, and no more
        b"\0\0\0\4\0\0\0\0\0" + b"\0\0\x08\6\0\0\0\0\0PINGPING" * (MAX_ANSWER_BYTES // 17 + 10),
    ],
    ids=["nothing", "http1", "half", "flood"],
)
async def test_a_malformed_answer_gives_no_evidence(words: bytes) -> None:
    with saying(words) as port:
        assert await ask(port) is None


async def test_a_satellite_that_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bentpipe.daemon.edge.dial.DIAL_DEADLINE_S", 0.2)
    assert await ask(free_port()) is None


Fields = list[tuple[bytes, bytes]]


@pytest.mark.parametrize(
    ("headers", "evidence"),
    [
        ([], None),
        ([(b":status", b"200"), (b"grpc-status", b"12")], None),
        ([(b"bentpipe-boot-id", b"one")], BootInfo("one")),
        ([(b"bentpipe-uptime-s", b"12.5")], BootInfo("", 12.5)),
        ([(b"bentpipe-boot-id", b"one"), (b"bentpipe-uptime-s", b"0")], BootInfo("one", 0.0)),
        ([(b"bentpipe-boot-id", b"x" * 65)], None),
        ([(b"bentpipe-boot-id", "ü".encode())], None),
        ([(b"bentpipe-uptime-s", b"long")], None),
        ([(b"bentpipe-uptime-s", b"-1")], None),
        ([(b"bentpipe-uptime-s", b"inf")], None),
        ([(b"bentpipe-uptime-s", b"nan")], None),
    ],
)
def test_reading(headers: Fields, evidence: BootInfo | None) -> None:
    assert read_boot_info(tuple(headers)) == evidence
