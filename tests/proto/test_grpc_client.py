"""The client's side of a call, against our own server's side in memory, and against servers that break off."""

import contextlib

import h2.config
import h2.connection
import h2.settings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beds.http2 import EMPTY_SETTINGS
from bentpipe.proto.errors import ErrorCode
from bentpipe.proto.frames import FrameType, frame
from bentpipe.proto.grpc_client import ClientCall, ClientError
from bentpipe.proto.grpc_server import API_BOUNDS, CallBegan, CallComplete, CallData, GrpcServer
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.messages import encode_message


def call(message: bytes = b"request") -> ClientCall:
    metadata = (("authorization", "Bearer x"),)
    return ClientCall("/p.S/M", message, authority="edge:1", scheme="https", metadata=metadata)


@pytest.mark.parametrize("size", [0, 7, 200_000])
def test_a_call_with_answers_and_a_status(size: int) -> None:
    ours, server = call(bytes(size)), GrpcServer(API_BOUNDS)
    body, answers, done = b"", list[bytes](), False
    while ours.status is None:
        for event in server.receive_data(ours.data_to_send(), 0.0):
            match event:
                case CallBegan(_, headers):
                    assert (b"authorization", b"Bearer x") in headers
                    assert (b":path", b"/p.S/M") in headers
                case CallData(stream_id, data, window_bytes):
                    body += data
                    server.acknowledge(stream_id, window_bytes)
                case CallComplete(stream_id):
                    assert not done
                    done = True
                    for number in range(3):
                        server.send_message(stream_id, encode_message(b"%d" % number))
                    server.finish(stream_id, GrpcStatus.ABORTED, "weil: ünd 100 %")
                case _:
                    raise AssertionError(event)
        answers += ours.receive_data(server.data_to_send())
    assert body == encode_message(bytes(size))
    assert answers == [b"0", b"1", b"2"]
    assert (ours.status, ours.words) == (GrpcStatus.ABORTED, "weil: ünd 100 %")


def answered(headers: list[tuple[str, str]]) -> ClientCall:
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    ours = call()
    server.receive_data(ours.data_to_send())
    server.send_headers(1, headers, end_stream=True)
    ours.receive_data(server.data_to_send())
    return ours


@pytest.mark.parametrize("status", ["", "x", "99"])
def test_what_is_not_a_grpc_answer(status: str) -> None:
    with pytest.raises(ClientError, match="HTTP status 404"):
        answered([(":status", "404"), *([("grpc-status", status)] if status else [])])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "ended"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "."),
        (EMPTY_SETTINGS + frame(FrameType.GOAWAY, 0, 0, bytes(8) + b"too many"), "too many"),
        (EMPTY_SETTINGS + frame(FrameType.GOAWAY, 0, 0, bytes(7) + b"\x0b"), "GOAWAY: error"),
        (EMPTY_SETTINGS + frame(FrameType.RST_STREAM, 0, 1, int(ErrorCode.CANCEL).to_bytes(4)), "reset the call"),
    ],
)
def test_servers_that_break_off(data: bytes, words: str) -> None:
    ours = call()
    ours.data_to_send()
    with pytest.raises(ClientError, match=words):
        ours.receive_data(data)


@given(st.binary(max_size=200))
def test_any_bytes_raise_nothing_but_client_error(data: bytes) -> None:
    ours = call()
    with contextlib.suppress(ClientError):
        ours.receive_data(EMPTY_SETTINGS + data)
    ours.data_to_send()
