"""The two messages of grpc.health.v1 as protobuf has them (bytes by hand, from health.proto)."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentpipe.proto.health import HealthError, ServingStatus, decode_request, encode_response


def test_responses() -> None:
    assert encode_response(ServingStatus.SERVING) == b"\0\0\0\0\2\x08\x01"
    assert encode_response(ServingStatus.UNKNOWN) == b"\0\0\0\0\0"


@pytest.mark.parametrize("name", ["", "acme/sat", "ä" * 100])
def test_requests(name: str) -> None:
    encoded = name.encode()
    length = bytes((len(encoded) & 0x7F | 0x80, len(encoded) >> 7)) if len(encoded) > 127 else bytes((len(encoded),))
    message = b"\x0a" + length + encoded if encoded else b""
    assert decode_request(b"\0" + len(message).to_bytes(4) + message) == name


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0\0\0",
        b"\0\0\0\0\1",
        b"\1\0\0\0\0",
        b"\0\0\0\0\0\0\0\0\0\0",
        b"\0\0\0\0\2\x0a\x05",
        b"\0\0\0\0\3\x0a\x01\xff",
        b"\0\0\0\0\2\x08\x01",
        b"\0\0\0\0\6\x0a\xff\xff\xff\xff\xff",
    ],
)
def test_requests_that_are_none(body: bytes) -> None:
    with pytest.raises(HealthError):
        decode_request(body)


@given(st.binary(max_size=40))
def test_any_bytes_raise_nothing_else(message: bytes) -> None:
    with contextlib.suppress(HealthError):
        decode_request(b"\0" + len(message).to_bytes(4) + message)
