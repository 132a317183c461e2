"""What each client does with each server, spliced and held: a case takes one client and leaves its connection usable."""

import hashlib
from collections.abc import Callable

import pytest

from beds.peers.clients import CallError, Client

CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE = 1, 4, 14
RESET_BY_SERVER = (CANCELLED, UNAVAILABLE)
"""What clients make of grpc-go's RST_STREAM: a server has the same deadline, and its timer may fire before the client's.
Such a call says nothing of the client's deadline, and is made again."""
DEADLINE_ATTEMPTS = 5
STATUSES = (3, 5, 9, 14, 16)
GIVE_UP_S = 0.3
"""A satellite that boots takes twice as long at least."""
BULK_CHUNK_BYTES = 1 << 16


def unary(client: Client) -> None:
    for size in (0, 1, 4096, 1 << 20):
        message = bytes(size)
        assert client.unary("Echo", message) == message


def client_streaming(client: Client) -> None:
    """Held, the client runs into its flow-control window, and goes on when the satellite's own arrives."""
    chunks = [bytes([number]) * 50_000 for number in range(100)]
    expected = hashlib.sha256(b"".join(chunks)).hexdigest().encode()
    assert client.upload(chunks) == expected


def server_streaming(client: Client) -> None:
    assert client.download(5_000_001) == 5_000_001


def bidirectional_streaming(client: Client) -> None:
    messages = [b"%d" % number * (number + 1) for number in range(200)]
    assert client.chat(messages) == messages


def concurrent_streams(client: Client) -> None:
    messages = [b"%d" % number for number in range(100)]
    assert client.concurrent("Echo", messages) == messages


def half_close_then_answer(client: Client) -> None:
    """The client's END_STREAM comes long before the answer: nothing may take it for the end of the connection."""
    assert client.unary("Sleep", b"0.2") == b"awake"


def trailers_only_errors(client: Client) -> None:
    for status in STATUSES:
        with pytest.raises(CallError) as error:
            client.unary("Fail", b"%d" % status)
        assert (error.value.code, error.value.details) == (status, "as asked for")


def deadline(client: Client) -> None:
    for _ in range(DEADLINE_ATTEMPTS):
        with pytest.raises(CallError) as error:
            client.unary("Sleep", b"20", timeout_s=GIVE_UP_S)
        if error.value.code not in RESET_BY_SERVER:
            break
    assert error.value.code == DEADLINE_EXCEEDED, error.value
    assert client.unary("Echo", b"the connection lives") == b"the connection lives"


def cancellation(client: Client) -> None:
    client.cancelled("Sleep", b"20", GIVE_UP_S)
    assert client.unary("Echo", b"the connection lives") == b"the connection lives"


def bulk(client: Client, size_bytes: int) -> None:
    """That much up while as much comes down."""
    sent, came = client.bulk(size_bytes, BULK_CHUNK_BYTES)
    assert sent == came


def some_bulk(client: Client) -> None:
    bulk(client, 4_000_001)


CASES: dict[str, Callable[[Client], None]] = {
    case.__name__: case
    for case in (
        unary,
        client_streaming,
        server_streaming,
        bidirectional_streaming,
        concurrent_streams,
        half_close_then_answer,
        trailers_only_errors,
        deadline,
        cancellation,
        some_bulk,
    )
}
