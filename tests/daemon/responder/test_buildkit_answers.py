"""What the responder makes of buildkitd's answers; grpcio plays buildkitd, with moby's methods and field numbers."""

import concurrent.futures
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from bentpipe.daemon.responder import buildkit
from bentpipe.daemon.responder.buildkit import MAX_KEPT_BYTES, MAX_RUNNING, BuildKitError, BuildKitLook, prune
from bentpipe.daemon.responder.looks import uptime_s
from bentpipe.daemon.responder.wire import decode_fields, encode_fields
from bentpipe.proto import responder_pb2 as pb

SERVICE = "moby.buildkit.v1.Control"
Answers = Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]


@contextlib.contextmanager
def played(path: Path, **methods: Answers) -> Iterator[str]:
    """A server on a Unix socket. Each method gets the request's bytes and yields the messages' bytes."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    handlers = {name: grpc.unary_stream_rpc_method_handler(each) for name, each in methods.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        yield str(path)
    finally:
        server.stop(None).wait()


def event(ref: str, began_s: int = 0, kind: int = 0, padding: int = 0) -> bytes:
    """BuildHistoryEvent. `padding` is FrontendAttrs, between the reference and the time, as Go writes them."""
    attributes = encode_fields([(1, "k"), (2, b"v" * padding)]) if padding else None
    record = encode_fields([(1, ref), (3, attributes), (6, encode_fields([(1, began_s)]))])
    return encode_fields([(1, kind or None), (2, record)])


def seen(path: str) -> pb.BuildKit:
    look = BuildKitLook(path)
    look.look()
    return pb.BuildKit.FromString(look.section(uptime_s()))


def test_the_request_asks_for_active_builds_and_an_end(tmp_path: Path) -> None:
    asked = []

    def history(request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        asked.append(dict(decode_fields(request)))
        yield from ()

    with played(tmp_path / "s", ListenBuildHistory=history) as path:
        found = seen(path)
    assert asked == [{1: 1, 3: 1}]  # ActiveOnly, EarlyExit
    assert (found.look.error, found.running_count) == ("", 0)


def test_builds_are_told_with_their_ages_the_oldest_first(tmp_path: Path) -> None:
    now = int(time.time())

    def history(_request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield event("young", now - 10)
        yield event("old", now - 3600)
        yield event("ended", now - 5000, kind=1)

    with played(tmp_path / "s", ListenBuildHistory=history) as path:
        found = seen(path)
    assert [each.ref for each in found.running] == ["old", "young"]
    assert 3_600_000 <= found.running[0].age_ms < 3_700_000
    assert found.running_count == 2


def test_long_records_are_cut_and_counted(tmp_path: Path) -> None:
    """A client chooses how long its attributes are: its reference comes before them."""

    def history(_request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        for size in (MAX_KEPT_BYTES - 100, MAX_KEPT_BYTES, 300_000, 3_000_000):
            yield event(f"r{size}", 1, padding=size)
        yield event("short", 2)

    with played(tmp_path / "s", ListenBuildHistory=history) as path:
        found = seen(path)
    assert found.look.error == ""
    assert found.running_count == 5
    assert {each.ref for each in found.running} >= {"r65436", "r65536", "r300000", "r3000000", "short"}


def test_thousands_of_builds_are_counted_and_few_are_kept(tmp_path: Path) -> None:
    def history(_request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(3000, 0, -1):
            yield event(f"{number:05}" + "x" * 300, number)

    with played(tmp_path / "s", ListenBuildHistory=history) as path:
        found = seen(path)
    assert found.running_count == 3000
    assert [each.ref[:5] for each in found.running] == [f"{number:05}" for number in range(1, MAX_RUNNING + 1)]
    assert all(len(each.ref) == 128 for each in found.running)


def test_a_refusal_and_a_missing_method_are_told(tmp_path: Path) -> None:
    def history(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.abort(grpc.StatusCode.UNAVAILABLE, "the history is broken")
        yield b""

    with played(tmp_path / "s", ListenBuildHistory=history) as path:
        assert seen(path).look.error == "BuildKitError: buildkitd answers with status 14: the history is broken"
    with played(tmp_path / "t") as path:
        assert "status 12" in seen(path).look.error


def test_an_answer_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buildkit, "ANSWER_DEADLINE_S", 0.5)
    ended = threading.Event()

    def history(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(ended.set)
        yield event("one")
        ended.wait(20)

    with played(tmp_path / "s", ListenBuildHistory=history) as path:
        found = seen(path)
        assert "time" in found.look.error
        assert not found.look.HasField("age_ms")
        assert ended.wait(20)  # it has hung up, and leaves nothing running in buildkitd


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 9 * 1000, b"", b"\xff" * 100])
def test_something_else_on_the_socket(tmp_path: Path, words: bytes) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def serve() -> None:
        client, _ = listener.accept()
        client.sendall(words)
        client.close()

    thread = threading.Thread(target=serve)
    thread.start()
    found = seen(str(tmp_path / "s"))
    thread.join()
    listener.close()
    assert found.look.error
    assert found.running_count == 0


def test_prune_asks_for_what_both_buildkits_understand(tmp_path: Path) -> None:
    asked = []

    def pruned(request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        asked.append(dict(decode_fields(request)))
        yield encode_fields([(1, "id"), (4, 1000)])
        yield encode_fields([(1, "other")])
        yield encode_fields([(1, "of unknown size"), (4, (1 << 64) - 1)])

    with played(tmp_path / "s", Prune=pruned) as path:
        assert list(prune(path, 5 << 30, 10)) == [1000, 0, 0]
        assert list(prune(path, 0, 10)) == [1000, 0, 0]
    assert asked == [{2: 1, 4: 5 << 30}, {2: 1, 4: 0}]


def test_a_prune_that_fails_midway(tmp_path: Path) -> None:
    def pruned(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield encode_fields([(4, 7)])
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no space left on device")

    with played(tmp_path / "s", Prune=pruned) as path:
        sizes = prune(path, 0, 10)
        assert next(sizes) == 7
        with pytest.raises(BuildKitError, match="no space left on device"):
            next(sizes)
