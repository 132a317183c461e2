"""Hostile clients: whatever they send or do not read, the responder answers others, and its memory stays bounded."""

import concurrent.futures
import contextlib
import random
import socket
import struct
import time
from collections.abc import Iterator

import hpack
import pytest

from beds.peers.responder_process import CALL_DEADLINE_S, STATUS, ResponderProcess, locked_bytes

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PING_ACK = bytes((0, 0, 8, 6, 1, 0, 0, 0, 0))
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
GROWTH_BYTES = 8 << 20
"""32 connections with 16 streams each may hold some 100 KiB each."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def request(stream: int, path: str = STATUS, end: int = 5) -> bytes:
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "a")]
    block = hpack.Encoder().encode([*fields, ("content-type", "application/grpc"), ("te", "trailers")])
    return frame(1, end, stream, block)


@pytest.fixture(scope="module")
def responder() -> Iterator[ResponderProcess]:
    with ResponderProcess({}) as process:
        process.wait_status("machine", "disk", "network")
        yield process


def connect(responder: ResponderProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", responder.port), CALL_DEADLINE_S)


def read_to_end(sock: socket.socket) -> tuple[bytes, bool]:
    """What the responder says until it hangs up, and whether it hung up by a reset, which may overtake the last words."""
    found = b""
    try:
        while data := sock.recv(65536):
            found += data
    except ConnectionResetError:
        return found, True
    return found, False


def send_until_ended(sock: socket.socket, data: bytes, limit_bytes: int) -> int:
    """Send again and again, reading nothing, until the responder takes no more. Returns how much it has taken."""
    sock.settimeout(1.0)
    sent = 0
    try:
        while sent < limit_bytes:
            sent += sock.send(data)
    except (ConnectionError, TimeoutError):
        pass
    return sent


FLOODS = {
    "PING": frame(6, 0, 0, bytes(8)),
    "SETTINGS": frame(4, 0, 0, struct.pack(">HI", 4, 1000)),
    "requests": b"",
    "requests and resets": b"",
    "PRIORITY": frame(2, 0, 1, bytes((0, 0, 0, 3, 1))),
    "empty DATA": frame(0, 0, 1),
    "unknown frames": frame(99, 0, 0, bytes(100)),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_ends_its_connection(responder: ResponderProcess, kind: str) -> None:
    """20,000 frames are ten times the budget; the answer is GOAWAY with ENHANCE_YOUR_CALM (RFC 9113, section 7)."""
    before = locked_bytes(responder.process.pid)
    with connect(responder) as sock:
        sock.sendall(PREFACE + SETTINGS)
        flood = FLOODS[kind] * 20_000
        if kind == "empty DATA":
            flood = request(1, end=4) + flood
        elif kind == "requests":
            flood = b"".join(request(number) for number in range(1, 20_001, 2))
        elif kind == "requests and resets":
            flood = b"".join(request(n) + frame(3, 0, n, struct.pack(">I", 8)) for n in range(1, 20_001, 2))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read_to_end, sock)
            with contextlib.suppress(ConnectionError, TimeoutError):
                sock.sendall(flood)
            said, reset = reading.result()
    assert b"too many frames" in said or reset
    assert said.count(PING_ACK) < 20_000
    responder.status()
    assert locked_bytes(responder.process.pid) - before < GROWTH_BYTES


def test_clients_that_read_nothing(responder: ResponderProcess) -> None:
    """Each asks for all that it may and takes no byte: the responder keeps little for it, and serves others."""
    before = locked_bytes(responder.process.pid)
    window = frame(4, 0, 0, struct.pack(">HI", 4, (1 << 31) - 1)) + frame(8, 0, 0, struct.pack(">I", (1 << 30)))
    socks = [connect(responder) for _ in range(20)]
    try:
        for sock in socks:
            sock.sendall(PREFACE + window)
            send_until_ended(sock, b"".join(request(number) for number in range(1, 400, 2)), 4 << 20)
        responder.status()
        assert locked_bytes(responder.process.pid) - before < GROWTH_BYTES
    finally:
        for sock in socks:
            sock.close()


def test_headers_without_end(responder: ResponderProcess) -> None:
    with connect(responder) as sock:
        sock.sendall(PREFACE + SETTINGS + request(1, end=1) + frame(9, 0, 1, b"\0" * 1024) * 8)
        assert b"a header block is too large" in read_to_end(sock)[0]
    responder.status()


def test_a_header_bomb(responder: ResponderProcess) -> None:
    """One field of 4,000 bytes in the table, named thousands of times by one byte each (CVE-2016-6581)."""
    encoder = hpack.Encoder()
    block = encoder.encode([("a", "x" * 4000)]) + b"\xbe" * 4000
    with connect(responder) as sock:
        sock.sendall(PREFACE + SETTINGS + frame(1, 5, 1, block))
        assert b"the header list is too large" in read_to_end(sock)[0]
    responder.status()


def test_more_connections_than_it_keeps(responder: ResponderProcess) -> None:
    socks = [connect(responder) for _ in range(200)]
    try:
        status = responder.status()
        assert status.boot_id
    finally:
        for sock in socks:
            sock.close()


def test_half_a_preface_and_other_protocols(responder: ResponderProcess) -> None:
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX", b"\x16\x03\x01\x02\x00", b"\0" * 100):
        with connect(responder) as sock:
            sock.sendall(words)
            assert b"this port serves HTTP/2 alone" in read_to_end(sock)[0]


def test_garbage_after_a_good_beginning(responder: ResponderProcess) -> None:
    """Random frames, for a bounded time: the responder lives, answers, and has logged no bug."""
    random_bytes = random.Random(20261126)
    until = time.monotonic() + 3
    while time.monotonic() < until:
        with connect(responder) as sock:
            sock.settimeout(0.5)
            data = PREFACE + SETTINGS
            for _ in range(random_bytes.randrange(1, 30)):
                payload = random_bytes.randbytes(random_bytes.randrange(0, 40))
                kind, stream = random_bytes.randrange(0, 11), random_bytes.randrange(0, 8)
                data += frame(kind, random_bytes.randrange(256), stream, payload)
            try:
                sock.sendall(data)
                sock.recv(65536)
            except (ConnectionError, TimeoutError):
                continue
    responder.status()
    assert "by a bug" not in responder.log


def test_a_request_byte_by_byte(responder: ResponderProcess) -> None:
    with connect(responder) as sock:
        for byte in PREFACE + SETTINGS + request(1, end=4) + frame(0, 1, 1, bytes(5)):
            sock.sendall(bytes((byte,)))
        said = b""
        while b"grpc-status" not in said:
            data = sock.recv(65536)
            assert data
            said += data
