"""Hostile openings over real sockets: each meets its limit, is told its name, is counted, and leaves nothing behind.

The limits themselves, at their value and one past it, are in tests/proto/test_limits.py.
"""

import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import hpack
import pytest
import trio
import trustme

from beds.hosts.form import serve_file
from beds.hosts.in_process import PLAIN, PREFACE, TLS, TOKEN, counted, exchange, frames_of, goaway_of, write_config
from beds.http2 import EMPTY_SETTINGS, texts
from beds.peers.crowd import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    call,
    frame,
    headers,
)
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.connections.transport import RECEIVE_BYTES
from bentpipe.daemon.edge import splicing
from bentpipe.daemon.edge.announcements import LEAST
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.serve import Daemon
from bentpipe.proto import limits
from bentpipe.proto.errors import ErrorCode

NEVER_READY = """
[[satellite]]
org = "acme"
name = "{name}"
hold_limit = "{hold_limit}"
[satellite.process]
command = ["sleep", "1000", "{{port}}"]
stop_grace = "1s"
"""
PRIORITY, WINDOW_UPDATE, CONTINUATION, UNKNOWN = 2, 8, 9, 0xFA
CALM, FRAME_SIZE, FLOW, PROTOCOL, COMPRESSION = (
    ErrorCode.ENHANCE_YOUR_CALM,
    ErrorCode.FRAME_SIZE_ERROR,
    ErrorCode.FLOW_CONTROL_ERROR,
    ErrorCode.PROTOCOL_ERROR,
    ErrorCode.COMPRESSION_ERROR,
)
START = PREFACE + EMPTY_SETTINGS
HELD = START + frame(HEADERS, END_HEADERS, 1, headers("never", TOKEN))
PINGS = frame(PING, 0, 0, b"12345678")
QUIET = [
    frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
    frame(PRIORITY, 0, 3, b"\0\0\0\5\1"),
    frame(UNKNOWN, 0, 0, b"x"),
    frame(PING, 1, 0, bytes(8)),
]
BOMB = hpack.Encoder().encode([(b"k", b"v" * 4000)], huffman=False) + b"\xbe" * 50
RESET = struct.pack("ii", 1, 0)
PATIENCE_S = 15.0
DRIP_S = 0.02


@pytest.fixture
async def daemon(tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA) -> AsyncIterator[Daemon]:
    sections = NEVER_READY.format(name="never", hold_limit="10m") + NEVER_READY.format(name="brief", hold_limit="1s")
    path = write_config(
        tmp_path,
        authority,
        client_authority,
        limits='greeting_deadline = "1s"\nheld_bytes = "512KiB"',
        sections=sections,
    )
    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve_file, path)
        yield running
        running.handoff.abort_all()
        running.drain.set()


def waiting(daemon: Daemon, name: str = "never") -> int:
    return daemon.fleet.get(SatelliteKey("acme", name)).waiting


async def wait_waiting(daemon: Daemon, count: int, name: str = "never") -> None:
    with trio.fail_after(PATIENCE_S):
        while waiting(daemon, name) != count:
            await trio.sleep(0.01)


async def refused_by(daemon: Daemon, sent: bytes, limit: str, code: ErrorCode, port: int = PLAIN) -> None:
    answer = await exchange(daemon, port, sent)
    assert frames_of(answer)[0][:2] == (SETTINGS, 0), "a server's first frame is SETTINGS"
    error_code, words = goaway_of(answer)
    assert error_code == code
    assert limit.encode() in words or code in (FRAME_SIZE, FLOW)
    await counted(daemon, Outcome.MALFORMED)
    assert daemon.counters.malformed == {limit: 1}
    assert waiting(daemon) == 0
    assert daemon.quotas.used_bytes == 0


@pytest.mark.parametrize(
    ("limit", "code", "flood"),
    [
        ("SETTINGS_FRAMES", CALM, EMPTY_SETTINGS * 100),
        ("SETTINGS_ENTRIES", CALM, frame(SETTINGS, 0, 0, bytes(6 * 1000))),
        ("PING_FRAMES", CALM, PINGS * 100),
        *(("OPENING_FRAMES", CALM, quiet * 200) for quiet in QUIET),
        ("GREETING_BYTES", CALM, frame(UNKNOWN, 0, 0, bytes(16_384)) * 5),
        ("FRAME_BYTES", FRAME_SIZE, b"\xff\xff\xff\x01\x04\0\0\0\1"),
        ("CONTINUATION_FRAMES", CALM, frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1) * 100),
        (
            "HEADER_BLOCK_BYTES",
            CALM,
            frame(HEADERS, 0, 1, bytes(16_384)) + frame(CONTINUATION, 0, 1, bytes(16_384)) * 2,
        ),
        ("HEADER_LIST_BYTES", CALM, frame(HEADERS, END_HEADERS, 1, BOMB)),
        ("HEADER_FIELDS", CALM, frame(HEADERS, END_HEADERS, 1, b"\x82" * 500)),
        ("TABLE_BYTES", COMPRESSION, frame(HEADERS, END_HEADERS, 1, b"\x3f\xff\xff\x03\x83")),
        ("PROTOCOL_ERROR", PROTOCOL, frame(RST_STREAM, 0, 1, bytes(4)) * 10),
        ("PROTOCOL_ERROR", PROTOCOL, frame(DATA, 0, 1) * 10),
    ],
)
async def test_floods_before_the_request(daemon: Daemon, limit: str, code: ErrorCode, flood: bytes) -> None:
    if code is PROTOCOL:
        answer = await exchange(daemon, PLAIN, START + flood)
        assert goaway_of(answer)[0] == PROTOCOL
        await counted(daemon, Outcome.MALFORMED)
        assert daemon.counters.malformed == {limit: 1}
    else:
        await refused_by(daemon, START + flood, limit, code)


@pytest.mark.parametrize(
    ("limit", "code", "flood"),
    [
        ("SETTINGS_FRAMES", CALM, EMPTY_SETTINGS * 100),
        ("PING_PER_S", CALM, PINGS * 1000),
        *(("QUIET_FRAMES", CALM, quiet * 3000) for quiet in QUIET),
        ("RST_STREAM_FRAMES", CALM, frame(RST_STREAM, 0, 1, bytes(4)) * 200),
        ("EMPTY_DATA_FRAMES", CALM, frame(DATA, 0, 1) * 2000),
        ("HELD_HEADERS", CALM, frame(HEADERS, END_HEADERS, 3) * 2000),
        ("WINDOW_BYTES", FLOW, frame(DATA, 0, 1, bytes(16_384)) * 5),
        ("FRAME_BYTES", FRAME_SIZE, b"\x01\0\0\0\0\0\0\0\1"),
        ("CONTINUATION_FRAMES", CALM, frame(HEADERS, 0, 3) + frame(CONTINUATION, 0, 3) * 100),
        (
            "HEADER_BLOCK_BYTES",
            CALM,
            frame(HEADERS, 0, 3, bytes(16_384)) + frame(CONTINUATION, 0, 3, bytes(16_384)) * 2,
        ),
    ],
)
async def test_floods_while_held(daemon: Daemon, limit: str, code: ErrorCode, flood: bytes) -> None:
    await refused_by(daemon, HELD + flood, limit, code)


async def test_rapid_reset_while_held(daemon: Daemon) -> None:
    """CVE-2023-44487: the satellite, once awake, would have got all of them in one gulp."""
    block = headers("never", TOKEN)
    flood = b"".join(
        frame(HEADERS, END_HEADERS, stream, block) + frame(RST_STREAM, 0, stream, bytes(4))
        for stream in range(3, 403, 2)
    )
    await refused_by(daemon, HELD + flood, "RST_STREAM_FRAMES", CALM)


async def test_a_flood_over_tls(daemon: Daemon, authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def flood() -> bytes:
        received = b""
        with (
            socket.create_connection(daemon.addresses[TLS], timeout=PATIENCE_S) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as tls,
        ):
            tls.sendall(HELD + PINGS * 100)
            while data := tls.recv(1 << 16):
                received += data
        return received

    assert goaway_of(await trio.to_thread.run_sync(flood)) == (CALM, b"over the limit PING_PER_S")
    assert daemon.counters.malformed == {"PING_PER_S": 1}


async def test_an_empty_header_block_is_not_a_request(daemon: Daemon) -> None:
    answer = await exchange(daemon, PLAIN, START + frame(HEADERS, END_HEADERS | END_STREAM, 1))
    assert (RST_STREAM, 0, 1, PROTOCOL.to_bytes(4)) in frames_of(answer), "it is malformed, which ends the stream"
    assert goaway_of(answer) == (0, b":method is missing")
    await counted(daemon, Outcome.REFUSED)


# -- slow ones --------------------------------------------------------------------------------------------------------


async def drip(daemon: Daemon, port: int, at_once: bytes, slowly: bytes) -> bytes:
    """Say `slowly` a byte at a time, for as long as the connection lives. Returns what was said to us."""
    received = b""
    stream = await trio.open_tcp_stream(*daemon.addresses[port])
    with trio.fail_after(PATIENCE_S):
        async with stream, trio.open_nursery() as nursery:

            async def talk() -> None:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await stream.send_all(at_once)
                    for byte in slowly:
                        await stream.send_all(bytes((byte,)))
                        await trio.sleep(DRIP_S)

            nursery.start_soon(talk)
            with contextlib.suppress(trio.BrokenResourceError):
                async for data in stream:
                    received += data
            nursery.cancel_scope.cancel()
    return received


def client_hello() -> bytes:
    hello = ssl.MemoryBIO()
    begun = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        begun.do_handshake()
    return hello.read()


async def test_slow_loris_at_every_stage(daemon: Daemon) -> None:
    """Each keeps talking, and none gets longer than greeting_deadline for it."""
    long_block = headers("never", TOKEN) + hpack.Encoder().encode([(b"x", b"y" * 300)], huffman=False)
    fragment = frame(CONTINUATION, 0, 1, b"")
    stages = [
        (PLAIN, b"", b""),
        (TLS, b"", b""),
        (TLS, b"", client_hello()),
        (PLAIN, b"", PREFACE[:-1]),
        (PLAIN, PREFACE, frame(SETTINGS, 0, 0, bytes(6 * 30))),
        (PLAIN, START, frame(HEADERS, END_HEADERS, 1, long_block)),
        (PLAIN, START + frame(HEADERS, 0, 1, long_block), fragment * 8 + frame(CONTINUATION, END_HEADERS, 1)[:8]),
        (PLAIN, START, frame(UNKNOWN, 0, 0, b"x") * 60),
    ]
    answers: list[bytes] = [b""] * len(stages)

    async def run(number: int) -> None:
        answers[number] = await drip(daemon, *stages[number])

    async with trio.open_nursery() as nursery:
        for number in range(len(stages)):
            nursery.start_soon(run, number)
    await counted(daemon, Outcome.DEADLINE, len(stages))
    assert answers[:4] == [b""] * 4
    for answer in answers[4:]:
        assert goaway_of(answer) == (0, b"no complete request before greeting_deadline")
    assert daemon.quotas.used_bytes == 0


async def test_slow_data_while_held_ends_with_the_hold(daemon: Daemon) -> None:
    opening = START + frame(HEADERS, END_HEADERS, 1, headers("brief", TOKEN))
    answer = await drip(daemon, PLAIN, opening, frame(DATA, 0, 1, b"x" * 10_000))
    frames = frames_of(answer)
    [trailers] = [f for f in frames if f[0] == HEADERS]
    assert texts(hpack.Decoder().decode(trailers[3]))["grpc-status"] == "14"
    assert frames[-1][0] == GOAWAY
    await counted(daemon, Outcome.REFUSED)
    assert daemon.counters.refusals == {"UNAVAILABLE": 1}


async def test_the_ack_of_our_settings_never_comes(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """The satellite is awake and answers, but without the ACK there is no splice, and no hold-up for ever."""
    monkeypatch.setattr(splicing, "REPLAY_DEADLINE_S", 3.0)
    request = call("sat", TOKEN)[len(START) :]
    stream = await trio.open_tcp_stream(*daemon.addresses[PLAIN])
    with trio.fail_after(PATIENCE_S):
        async with stream:
            await stream.send_all(START)
            assert await stream.receive_some() == LEAST.frame()
            await stream.send_all(request)
            with contextlib.suppress(trio.BrokenResourceError):
                async for _ in stream:
                    pass
    await counted(daemon, Outcome.DEADLINE)
    assert daemon.handoff.live == 0


async def test_broken_frames_while_the_ack_is_awaited(daemon: Daemon) -> None:
    stream = await trio.open_tcp_stream(*daemon.addresses[PLAIN])
    with trio.fail_after(PATIENCE_S):
        async with stream:
            await stream.send_all(START)
            assert await stream.receive_some() == LEAST.frame()
            await stream.send_all(call("sat", TOKEN)[len(START) :])
            received = b""
            while not any(kind == HEADERS for kind, *_ in frames_of(received)):
                received += await stream.receive_some()
            await stream.send_all(b"\xff\xff\xff\0\0\0\0\0\1")
            with contextlib.suppress(trio.BrokenResourceError):
                async for _ in stream:
                    pass
    await counted(daemon, Outcome.MALFORMED)
    with trio.fail_after(PATIENCE_S):
        while not daemon.counters.malformed:
            await trio.sleep(0.01)  # a data plane of its own tells what it counts each second
    assert daemon.counters.malformed == {"FRAME_BYTES": 1}


# -- held -------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def held(daemon: Daemon, sent: bytes = HELD) -> AsyncIterator[trio.SocketStream]:
    before = waiting(daemon)
    stream = await trio.open_tcp_stream(*daemon.addresses[PLAIN])
    async with stream:
        await stream.send_all(sent)
        await wait_waiting(daemon, before + 1)
        yield stream


async def test_pings_are_answered_and_a_wait_goes_on(daemon: Daemon) -> None:
    async with held(daemon) as stream:
        received = b""
        for number in range(5):
            payload = number.to_bytes(8)
            await stream.send_all(frame(PING, 0, 0, payload))
            with trio.fail_after(PATIENCE_S):
                while (PING, 1, 0, payload) not in frames_of(received):
                    data = await stream.receive_some()
                    assert data
                    received += data
        assert waiting(daemon) == 1


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_gives_its_place_back(daemon: Daemon, reset: bool, full: bool) -> None:
    """Also behind a full transcript, from which nothing more is read."""
    async with held(daemon) as stream:
        if full:
            block = frame(HEADERS, 0, 3, bytes(16_384)) + frame(CONTINUATION, END_HEADERS, 3, bytes(16_000))
            with trio.fail_after(PATIENCE_S):
                while daemon.quotas.used_bytes < limits.TRANSCRIPT_BYTES:
                    await stream.send_all(block)
                    await trio.sleep(0.01)
            assert daemon.quotas.used_bytes < limits.TRANSCRIPT_BYTES + RECEIVE_BYTES
            # What comes now stays in the kernel.
            await stream.send_all(block)
            await exchange(daemon, PLAIN, b"GET / HTTP/1.1\r\n\r\n")
            assert daemon.quotas.used_bytes < limits.TRANSCRIPT_BYTES + RECEIVE_BYTES
        if reset:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    await wait_waiting(daemon, 0)
    await counted(daemon, Outcome.CLIENT_GONE)
    assert daemon.quotas.used_bytes == 0


async def test_a_client_that_resets_every_stream_keeps_its_place(daemon: Daemon) -> None:
    async with held(daemon) as stream:
        await stream.send_all(frame(RST_STREAM, 0, 1, b"\0\0\0\x08") + PINGS)
        with trio.fail_after(PATIENCE_S):
            assert frames_of(await stream.receive_some())[-1][0] == PING
        assert waiting(daemon) == 1
        # GOAWAY and no stream that waits for an answer: it is as good as gone.
        await stream.send_all(frame(GOAWAY, 0, 0, bytes(8)))
        await wait_waiting(daemon, 0)
    await counted(daemon, Outcome.CLIENT_GONE)


async def test_goaway_with_a_stream_open_is_a_client_that_still_waits(daemon: Daemon) -> None:
    async with held(daemon) as stream:
        await stream.send_all(frame(GOAWAY, 0, 0, bytes(8)) + PINGS)
        with trio.fail_after(PATIENCE_S):
            assert frames_of(await stream.receive_some())[-1][0] == PING
        assert waiting(daemon) == 1
        await stream.send_all(frame(GOAWAY, 0, 0, b"\0\0\0\1\0\0\0\2"))
        await wait_waiting(daemon, 0)


async def test_what_all_the_held_have_said_is_bounded(daemon: Daemon) -> None:
    """limits.held_bytes: who brings much is refused by name, and who brings little is not."""
    much = frame(DATA, 0, 1, bytes(16_000)) * 4
    async with contextlib.AsyncExitStack() as clients:
        for _ in range(8):
            await clients.enter_async_context(held(daemon, HELD + much))
        one_more = await clients.enter_async_context(held(daemon))
        await one_more.send_all(much)
        received = b""
        with trio.fail_after(PATIENCE_S):
            async for data in one_more:
                received += data
        [trailers] = [f for f in frames_of(received) if f[0] == HEADERS]
        assert texts(hpack.Decoder().decode(trailers[3]))["grpc-status"] == "8"
        await counted(daemon, Outcome.REFUSED)
        assert daemon.counters.refusals == {"RESOURCE_EXHAUSTED": 1}
        small = await clients.enter_async_context(held(daemon))
        await small.send_all(PINGS)
        with trio.fail_after(PATIENCE_S):
            assert frames_of(await small.receive_some())[-1][:2] == (PING, 1)
    await wait_waiting(daemon, 0)
    with trio.fail_after(PATIENCE_S):
        while daemon.quotas.used_bytes:  # what is said to a client that has left is counted until its end is known
            await trio.sleep(0.01)


async def test_nothing_of_it_disturbs_a_client_beside(daemon: Daemon) -> None:
    async with trio.open_nursery() as nursery:
        for flood in (PINGS * 1000, frame(DATA, 0, 1) * 2000, QUIET[0] * 3000, frame(HEADERS, END_HEADERS, 3) * 2000):
            nursery.start_soon(exchange, daemon, PLAIN, HELD + flood)
        stream = await trio.open_tcp_stream(*daemon.addresses[PLAIN])
        async with stream:
            await stream.send_all(call("sat", TOKEN, b"beside"))
            received = b""
            with trio.fail_after(PATIENCE_S):
                while not any(kind == DATA and b"beside" in payload for kind, _, _, payload in frames_of(received)):
                    data = await stream.receive_some()
                    assert data
                    received += data
