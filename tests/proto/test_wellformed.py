"""Which requests are malformed, case by case of RFC 9113."""

import pytest

from bentpipe.proto.events import HeaderList
from bentpipe.proto.wellformed import why_malformed, why_malformed_trailers

GOOD: HeaderList = ((b":method", b"POST"), (b":scheme", b"https"), (b":path", b"/a.B/C"), (b":authority", b"host"))
CONNECT: HeaderList = ((b":method", b"CONNECT"), (b":authority", b"host:1"))


@pytest.mark.parametrize(
    "fields",
    [
        GOOD,
        GOOD[:3],  # a load balancer's check has no authority (§8.3.1)
        (*GOOD, (b"te", b"trailers"), (b"x", b"")),
        (*GOOD, (b"te", b"Trailers")),
        (*GOOD, (b"host", b"HOST")),
        (*GOOD[:3], (b"host", b"a"), (b"host", b"A")),
        (*GOOD, (b"x-bytes", b"\xff in the middle\ttoo")),
        ((b":method", b"OPTIONS"), (b":scheme", b"https"), (b":path", b"*")),
        CONNECT,
    ],
)
def test_well_formed(fields: HeaderList) -> None:
    assert why_malformed(fields) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((*GOOD, (b"Upper", b"1")), "a field's name has a character"),
        ((*GOOD, (b"", b"1")), "a field's name has a character"),
        ((*GOOD, (b"sp ace", b"1")), "a field's name has a character"),
        ((*GOOD, (b"co:lon", b"1")), "a field's name has a character"),
        ((*GOOD, (b"n\x7f", b"1")), "a field's name has a character"),
        ((*GOOD, (b"n\xe4", b"1")), "a field's name has a character"),
        ((*GOOD, (b"n", b" 1")), "the value of n has a character"),
        ((*GOOD, (b"n", b"1\t")), "the value of n has a character"),
        ((*GOOD, (b"n", b"1\r\nm: 2")), "the value of n has a character"),
        ((*GOOD, (b"n", b"\x00")), "the value of n has a character"),
        ((*GOOD, (b"connection", b"close")), "connection is a field of HTTP/1.1"),
        ((*GOOD, (b"proxy-connection", b"close")), "is a field of HTTP/1.1"),
        ((*GOOD, (b"keep-alive", b"1")), "is a field of HTTP/1.1"),
        ((*GOOD, (b"transfer-encoding", b"chunked")), "is a field of HTTP/1.1"),
        ((*GOOD, (b"upgrade", b"h2c")), "is a field of HTTP/1.1"),
        ((*GOOD, (b"te", b"gzip")), "te is for trailers only"),
        ((*GOOD, (b":status", b"200")), ":status is not a pseudo-header field of a request"),
        ((*GOOD, (b":protocol", b"websocket")), ":protocol is not a pseudo-header field of a request"),
        ((*GOOD, (b":path", b"/")), ":path is given twice"),
        ((*GOOD[:3], (b"x", b"1"), GOOD[3]), ":authority comes after other fields"),
        (GOOD[1:], ":method is missing"),
        ((GOOD[0], *GOOD[2:]), ":scheme is missing"),
        ((*GOOD[:2], GOOD[3]), ":path is missing"),
        ((*GOOD[:2], (b":path", b"")), ":path is empty"),
        ((), ":method is missing"),
        (CONNECT[:1], ":authority is missing"),
        ((*CONNECT, (b":path", b"/")), "CONNECT with :path"),
        ((*CONNECT, (b":scheme", b"https")), "CONNECT with :scheme"),
        ((*GOOD, (b"host", b"another")), "host and :authority differ"),
        ((*GOOD[:3], (b"host", b"a"), (b"host", b"b")), "host and :authority differ"),
    ],
)
def test_malformed(fields: HeaderList, words: str) -> None:
    assert words in (why_malformed(fields) or "nothing")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (((b"grpc-status", b"0"),), None),
        ((), None),
        (((b":path", b"/"),), "a pseudo-header field in trailers"),
        (((b"Upper", b"1"),), "a field's name has a character"),
        (((b"connection", b"close"),), "connection is a field of HTTP/1.1"),
    ],
)
def test_trailers(fields: HeaderList, words: str | None) -> None:
    found = why_malformed_trailers(fields)
    assert found is None if words is None else words in (found or "")
