"""Every kind of call, by two gRPC clients to two gRPC servers, over TLS, through a real daemon."""

import hashlib
from collections.abc import Callable

import pytest

from clients import CallError, Client

pytestmark = [
    pytest.mark.parametrize("client_kind", ["grpcio", "grpclib"]),
    pytest.mark.parametrize("server_kind", ["grpcio", "grpclib"]),
]

Connect = Callable[..., Client]

DEADLINE_EXCEEDED = 4
STATUSES = (3, 5, 9, 14, 16)


def test_unary(connect: Connect, client_kind: str, server_kind: str) -> None:
    client = connect(client_kind, server_kind)
    for size in (0, 1, 4096, 1 << 20):
        message = bytes(size)
        assert client.unary("Echo", message) == message


def test_client_streaming(connect: Connect, client_kind: str, server_kind: str) -> None:
    chunks = [bytes([number]) * 50_000 for number in range(100)]
    expected = hashlib.sha256(b"".join(chunks)).hexdigest().encode()
    assert connect(client_kind, server_kind).upload(chunks) == expected


def test_server_streaming(connect: Connect, client_kind: str, server_kind: str) -> None:
    assert len(connect(client_kind, server_kind).download(5_000_001)) == 5_000_001


def test_bidirectional_streaming(connect: Connect, client_kind: str, server_kind: str) -> None:
    messages = [b"%d" % number * (number + 1) for number in range(200)]
    assert connect(client_kind, server_kind).chat(messages) == messages


def test_concurrent_streams_on_one_connection(connect: Connect, client_kind: str, server_kind: str) -> None:
    messages = [b"%d" % number for number in range(100)]
    assert connect(client_kind, server_kind).concurrent("Echo", messages) == messages


def test_half_close_then_answer(connect: Connect, client_kind: str, server_kind: str) -> None:
    """The client's END_STREAM comes long before the answer: nothing may take it for the end of the connection."""
    assert connect(client_kind, server_kind).unary("Sleep", b"0.5") == b"awake"


def test_trailers_only_errors(connect: Connect, client_kind: str, server_kind: str) -> None:
    client = connect(client_kind, server_kind)
    for status in STATUSES:
        with pytest.raises(CallError) as error:
            client.unary("Fail", b"%d" % status)
        assert (error.value.code, error.value.details) == (status, "as asked for")


def test_deadline(connect: Connect, client_kind: str, server_kind: str) -> None:
    client = connect(client_kind, server_kind)
    with pytest.raises(CallError) as error:
        client.unary("Sleep", b"20", timeout_s=0.3)
    assert error.value.code == DEADLINE_EXCEEDED
    assert client.unary("Echo", b"the connection lives") == b"the connection lives"


def test_cancellation(connect: Connect, client_kind: str, server_kind: str) -> None:
    client = connect(client_kind, server_kind)
    client.cancelled("Sleep", b"20", 0.3)
    assert client.unary("Echo", b"the connection lives") == b"the connection lives"
