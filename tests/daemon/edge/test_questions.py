"""What satellites and their responders say: real gRPC servers, servers that say nothing, and some that are none."""

import concurrent.futures
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import grpc
import pytest
import trio

from beds.peers.responder_status import status
from beds.ports import free_port
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.transport import Transport
from bentpipe.daemon.edge import questions as module
from bentpipe.daemon.edge.questions import STATUS_PATH, Questions, ResponderTarget, read_boot_info
from bentpipe.daemon.fleet.resume import BootInfo
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.readings.reading import Reading, ReadingFailed, ReadResult
from bentpipe.daemon.testbed.satellite import BOOT_ID, make_server
from bentpipe.proto import responder_pb2 as pb
from bentpipe.proto.asking import MAX_ANSWER_BYTES

KEY = SatelliteKey("acme", "a")
DEADLINE_S = 15.0


async def ask(port: int) -> BootInfo | None:
    with trio.fail_after(DEADLINE_S):
        return await Questions({}, {}, lambda _key, _heard: None).boot_info(KEY, Address("127.0.0.1", port))


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


async def test_it_is_asked_after_the_steps_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of satellites may wake at once, and nobody waits for what they tell."""
    steps = list[str]()

    async def turn(*, last: bool = False) -> None:
        steps.append("a turn behind all clients" if last else "a turn")
        await trio.lowlevel.checkpoint()

    async def dials(address: Address, tls: SatelliteTls | None, deadline_s: float) -> Transport:
        steps.append("a dial")
        raise ConnectionRefusedError

    monkeypatch.setattr(module, "take_turn", turn)
    asking = Questions({}, {}, lambda _key, _heard: None, dials)
    assert await asking.boot_info(KEY, Address("127.0.0.1", 1)) is None
    assert steps == ["a turn behind all clients", "a dial"]


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


HOSTILE = [
    b"",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\0\0\0\4\0\0\0\0\0",  # SETTINGS, and no more
    b"\0\0\0\4\0\0\0\0\0" + b"\0\0\x08\6\0\0\0\0\0PINGPING" * (MAX_ANSWER_BYTES // 17 + 10),
]
HOSTILE_IDS = ["nothing", "http1", "half", "flood"]


@pytest.mark.parametrize("words", HOSTILE, ids=HOSTILE_IDS)
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


# -- the responder -----------------------------------------------------------------------------------------------------


class Answering(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """A gRPC server that answers every call with the same bytes, or as `answer` does."""

    def __init__(self, answer: Callable[[], bytes]) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self.asked.append(details.method)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.answer())


@contextlib.contextmanager
def responder(answer: Callable[[], bytes]) -> Iterator[tuple[int, Answering]]:
    handler = Answering(answer)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port, handler
    finally:
        server.stop(grace=None).wait()


async def read_from(port: int, deadline_s: float = DEADLINE_S) -> Reading:
    """Read a satellite whose builds are at another port of the same host."""
    questions = Questions({}, {KEY: ResponderTarget(port, deadline_s)}, lambda _key, _heard: None)
    with trio.fail_after(2 * DEADLINE_S):
        return await questions.read(KEY, Address("127.0.0.1", 1))


async def failed(port: int, deadline_s: float = DEADLINE_S) -> ReadingFailed:
    with pytest.raises(ReadingFailed) as caught:
        await read_from(port, deadline_s)
    return caught.value


async def test_a_responder_is_read() -> None:
    with responder(lambda: status(running=2).SerializeToString()) as (port, handler):
        reading = await read_from(port)
    assert reading.running_builds == 2
    assert handler.asked == [STATUS_PATH]


async def test_a_grpc_server_that_is_not_a_responder() -> None:
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        error = await failed(port)
    finally:
        server.stop(grace=None).wait()
    assert error.result is ReadResult.REFUSED
    assert "grpc-status 12" in str(error)


@pytest.mark.parametrize("answer", [b"", b"\xff" * 100, pb.Status(boot_id="x" * 100).SerializeToString()])
async def test_an_answer_that_no_responder_gives(answer: bytes) -> None:
    with responder(lambda: answer) as (port, _):
        assert (await failed(port)).result is ReadResult.MALFORMED


async def test_an_answer_that_is_too_large() -> None:
    with responder(lambda: b"\0" * (1 << 20)) as (port, _):
        assert (await failed(port, 1.0)).result in (ReadResult.REFUSED, ReadResult.TIMEOUT)


async def test_a_responder_that_fails_with_much_to_say() -> None:
    def fail() -> bytes:
        raise RuntimeError("\n\x1b[31m" + "e" * 500)

    with responder(fail) as (port, _):
        error = await failed(port)
    assert error.result is ReadResult.REFUSED
    assert len(str(error)) <= 200
    assert str(error).isprintable()


async def test_a_responder_that_never_answers() -> None:
    over = threading.Event()

    def wait() -> bytes:
        over.wait()
        return b""

    with responder(wait) as (port, _):
        try:
            assert (await failed(port, 0.3)).result is ReadResult.TIMEOUT
        finally:
            over.set()


async def test_a_responder_that_does_not_listen() -> None:
    assert (await failed(free_port())).result is ReadResult.UNREACHABLE


@pytest.mark.parametrize("words", HOSTILE, ids=HOSTILE_IDS)
async def test_something_else_that_listens_there(words: bytes) -> None:
    with saying(words) as port:
        assert (await failed(port)).result is ReadResult.REFUSED
