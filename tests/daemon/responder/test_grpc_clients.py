"""Real clients of gRPC ask the responder: grpcio, and the daemon's own question after a wake."""

import os
import queue
import socket
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import grpc
import pytest
import trio

from beds.peers.responder_process import CALL_DEADLINE_S, HEALTH, STATUS, ResponderProcess, locked_bytes
from bentpipe.daemon.edge.questions import Questions, ResponderTarget
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.proto.health import ServingStatus, encode_request

BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
MOST_LOCKED_BYTES = 64 << 20
"""Python with ssl, ctypes and the libraries of these: 31 MiB on this machine."""


@pytest.fixture(scope="module")
def responder() -> Iterator[ResponderProcess]:
    with ResponderProcess({}) as process:
        process.wait_status("machine", "disk")
        yield process


def call(channel: grpc.Channel, path: str, request: bytes = b"") -> tuple[bytes, grpc.Call]:
    ask = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
    answer: tuple[bytes, grpc.Call] = ask.with_call(request, timeout=CALL_DEADLINE_S)
    return answer


def refusal(channel: grpc.Channel, path: str, request: bytes = b"") -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, path, request)
    return caught.value.code(), caught.value.details()


def health_request(service: str) -> bytes:
    return encode_request(service)[5:]


def test_status(responder: ResponderProcess) -> None:
    status = responder.status()
    assert status.boot_id == BOOT_ID
    assert status.uptime_ms >= status.started_at_uptime_ms > 0
    assert status.cpus == os.sysconf("SC_NPROCESSORS_ONLN")
    assert status.version == version("bentpipe")
    assert status.slow_turns < status.uptime_ms / 1000
    assert status.machine.memory_total_bytes > status.machine.memory_available_bytes > 0
    assert status.disk.total_bytes >= status.disk.available_bytes > 0
    assert status.buildkit.look.error.startswith("BuildKitError: ")
    assert not status.buildkit.look.HasField("age_ms")


def test_health(responder: ResponderProcess) -> None:
    with responder.channel() as channel:
        answer, told = call(channel, f"{HEALTH}Check")
        assert answer == bytes((8, ServingStatus.SERVING))
        metadata = {each.key: each.value for each in told.initial_metadata()}
        assert metadata["bentpipe-boot-id"] == BOOT_ID
        assert float(metadata["bentpipe-uptime-s"]) > 0
        answer, _ = call(channel, f"{HEALTH}Check", health_request("buildkit"))
        assert answer == bytes((8, ServingStatus.NOT_SERVING))
        code, _ = refusal(channel, f"{HEALTH}Check", health_request("other"))
        assert code is grpc.StatusCode.NOT_FOUND


def test_watch_tells_the_present_and_stays_open(responder: ResponderProcess) -> None:
    with responder.channel() as channel:
        watch = channel.unary_stream(f"{HEALTH}Watch", request_serializer=bytes, response_deserializer=bytes)
        for service, expected in (
            ("", ServingStatus.SERVING),
            ("buildkit", ServingStatus.NOT_SERVING),
            ("other", ServingStatus.SERVICE_UNKNOWN),
        ):
            answers = watch(health_request(service))
            assert next(answers) == bytes((8, expected))
            call(channel, f"{HEALTH}Check")
            assert answers.is_active()
            answers.cancel()


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/List", "/a.b/C", f"{STATUS}2"])
def test_other_methods(responder: ResponderProcess, path: str) -> None:
    with responder.channel() as channel:
        assert refusal(channel, path)[0] is grpc.StatusCode.UNIMPLEMENTED


def test_a_request_that_is_too_large(responder: ResponderProcess) -> None:
    with responder.channel() as channel:
        for size in (1020, 1 << 14):
            assert refusal(channel, STATUS, bytes(size))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        call(channel, f"{HEALTH}Check")


def test_a_request_that_is_compressed(responder: ResponderProcess) -> None:
    target = f"127.0.0.1:{responder.port}"
    with grpc.insecure_channel(target, compression=grpc.Compression.Gzip) as channel:
        assert refusal(channel, f"{HEALTH}Check", b"\x0a\x40" + b"a" * 64)[0] is grpc.StatusCode.UNIMPLEMENTED


def test_many_calls_at_once_end_all(responder: ResponderProcess) -> None:
    """More than the streams that a connection may have: grpcio waits for its turn."""
    with responder.channel() as channel:
        ask = channel.unary_unary(f"{HEALTH}Check", request_serializer=bytes, response_deserializer=bytes)
        done: queue.Queue[bytes] = queue.Queue()
        calls = [ask.future(b"", timeout=CALL_DEADLINE_S) for _ in range(200)]
        for each in calls:
            done.put(each.result())
        assert done.qsize() == 200


async def test_the_daemon_reads_the_boot_id_and_the_status(responder: ResponderProcess) -> None:
    with trio.fail_after(CALL_DEADLINE_S):
        key, address = SatelliteKey("acme", "build"), Address("127.0.0.1", responder.port)
        questions = Questions({}, {key: ResponderTarget(responder.port, CALL_DEADLINE_S)}, lambda _key, _said: None)
        found = await questions.boot_info(key, address)
        reading = await questions.read(key, address)
    assert reading.boot_id == BOOT_ID
    assert reading.machine is not None
    assert reading.disk is not None
    assert reading.running_builds is None, "there is no BuildKit"
    assert reading.buildkit_error.startswith("BuildKitError: ")
    assert found is not None
    assert found.boot_id == BOOT_ID
    assert found.uptime_s is not None
    assert found.uptime_s > 0


def test_memory_is_locked_and_bounded(responder: ResponderProcess) -> None:
    if not responder.status().memory_locked:
        assert "memory cannot be locked" in responder.log
        pytest.skip("memory cannot be locked here")
    assert 0 < locked_bytes(responder.process.pid) < MOST_LOCKED_BYTES


def test_it_ends_on_sigterm_and_says_goodbye() -> None:
    with ResponderProcess({}) as process, socket.create_connection(("127.0.0.1", process.port)) as client:
        client.settimeout(CALL_DEADLINE_S)
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        process.wait_status("machine")
        process.process.terminate()
        said = b""
        while data := client.recv(65536):
            said += data
        assert process.process.wait(CALL_DEADLINE_S) == 0
    assert b"the responder ends" in said
