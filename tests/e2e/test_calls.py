"""Every kind of call, by every gRPC client to every gRPC server, over TLS, through a real daemon."""

import hashlib
from collections.abc import Callable

import pytest

from clients import CallError, Client
from kinds import CLIENT_KINDS, SERVER_KINDS

pytestmark = [
    pytest.mark.parametrize("client_kind", CLIENT_KINDS),
    pytest.mark.parametrize("server_kind", SERVER_KINDS),
]

Connect = Callable[..., Client]

DEADLINE_EXCEEDED = 4
STATUSES = (3, 5, 9, 14, 16)


def test_unary(connected: Connect, client_kind: str, server_kind: str) -> None:
    client = connected(client_kind, server_kind)
    for size in (0, 1, 4096, 1 << 20):
        message = bytes(size)
        assert client.unary("Echo", message) == message


def test_client_streaming(connected: Connect, client_kind: str, server_kind: str) -> None:
    chunks = [bytes([number]) * 50_000 for number in range(100)]
    expected = hashlib.sha256(b"".join(chunks)).hexdigest().encode()
    assert connected(client_kind, server_kind).upload(chunks) == expected


def test_server_streaming(connected: Connect, client_kind: str, server_kind: str) -> None:
    assert connected(client_kind, server_kind).download(5_000_001) == 5_000_001


def test_bidirectional_streaming(connected: Connect, client_kind: str, server_kind: str) -> None:
    messages = [b"%d" % number * (number + 1) for number in range(200)]
    assert connected(client_kind, server_kind).chat(messages) == messages


def test_concurrent_streams_on_one_connection(connected: Connect, client_kind: str, server_kind: str) -> None:
    messages = [b"%d" % number for number in range(100)]
    assert connected(client_kind, server_kind).concurrent("Echo", messages) == messages


def test_half_close_then_answer(connected: Connect, client_kind: str, server_kind: str) -> None:
    """The client's END_STREAM comes long before the answer: nothing may take it for the end of the connection."""
    assert connected(client_kind, server_kind).unary("Sleep", b"0.2") == b"awake"


def test_trailers_only_errors(connected: Connect, client_kind: str, server_kind: str) -> None:
    client = connected(client_kind, server_kind)
    for status in STATUSES:
        with pytest.raises(CallError) as error:
            client.unary("Fail", b"%d" % status)
        assert (error.value.code, error.value.details) == (status, "as asked for")


def test_deadline(connected: Connect, client_kind: str, server_kind: str) -> None:
    client = connected(client_kind, server_kind)
    with pytest.raises(CallError) as error:
        client.unary("Sleep", b"20", timeout_s=0.3)
    assert error.value.code == DEADLINE_EXCEEDED
    assert client.unary("Echo", b"the connection lives") == b"the connection lives"


def test_cancellation(connected: Connect, client_kind: str, server_kind: str) -> None:
    client = connected(client_kind, server_kind)
    client.cancelled("Sleep", b"20", 0.3)
    assert client.unary("Echo", b"the connection lives") == b"the connection lives"


def test_bidirectional_bulk(connected: Connect, client_kind: str, server_kind: str) -> None:
    """100 MB each way at once; less where a peer in pure Python would take longer for it than all else together."""
    size_bytes = 4_000_001 if "grpclib" in (client_kind, server_kind) else 100_000_001
    sent, came = connected(client_kind, server_kind).bulk(size_bytes, 1 << 16)
    assert sent == came
