"""Where a request wants to go and whose it is, by its metadata; every way in which they can be wrong."""

import pytest

from bentpipe.proto.events import HeaderList
from bentpipe.proto.request import TOKEN_BYTES, MetadataError, RouteRequest, names_satellite, parse_request

POST: HeaderList = ((b":method", b"POST"), (b":path", b"/a.B/C"))
NAMED: HeaderList = ((b"satellite_org", b"acme"), (b"satellite_name", b"one"))


def token_of(*fields: tuple[bytes, bytes]) -> str | None:
    return parse_request((*POST, *fields)).token


@pytest.mark.parametrize("org", [b"satellite_org", b"satellite-org"])
@pytest.mark.parametrize("name", [b"satellite_name", b"satellite-name"])
def test_both_spellings_name_a_satellite(org: bytes, name: bytes) -> None:
    headers = (*POST, (org, b"acme"), (name, b"one"))
    assert parse_request(headers) == RouteRequest("/a.B/C", ("acme", "one"), None)
    assert names_satellite(headers)


def test_both_spellings_may_be_given_if_they_are_the_same() -> None:
    again: HeaderList = ((b"satellite-org", b"acme"), (b"satellite-name", b"one"), (b"satellite-token", b"t"))
    assert parse_request((*POST, *NAMED, (b"satellite_token", b"t"), *again)).satellite == ("acme", "one")


def test_a_request_may_name_nothing() -> None:
    assert parse_request(POST) == RouteRequest("/a.B/C", None, None)
    assert not names_satellite(POST)


@pytest.mark.parametrize(
    ("fields", "token"),
    [
        (((b"satellite_token", b"t"),), "t"),
        (((b"satellite-token", b"t"),), "t"),
        (((b"authorization", b"Bearer t"),), "t"),
        (((b"authorization", b"bEARER   t "),), "t"),
        (((b"authorization", b"Basic t"),), None),
        (((b"authorization", b"Basic t"), (b"satellite_token", b"u")), "u"),
        (((b"authorization", b"Bearer t"), (b"satellite_token", b"t")), "t"),
        (((b"authorization", b"bearer "),), ""),
        (((b"satellite_token", b"t" * TOKEN_BYTES),), "t" * TOKEN_BYTES),
        ((), None),
    ],
)
def test_tokens(fields: HeaderList, token: str | None) -> None:
    assert token_of(*fields) == token


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        (((b":method", b"GET"), (b":path", b"/a.B/C")), "not a gRPC request"),
        (((b":method", b"POST"),), "not a gRPC request"),
        (((b":path", b"/a.B/C"),), "not a gRPC request"),
        (((b":method", b"POST"), (b":path", b"a.B/C")), "not a gRPC request"),
        (((b":method", b"POST"), (b":path", b"")), "not a gRPC request"),
        ((*POST, (b":path", b"/a.B/D")), ":path is given 2 times"),
        ((*POST, NAMED[0]), r"satellite_name \(or satellite-name\) is missing"),
        ((*POST, NAMED[1]), r"satellite_org \(or satellite-org\) is missing"),
        ((*POST, *NAMED, NAMED[0]), "satellite_org is given 2 times"),
        ((*POST, *NAMED, (b"satellite-org", b"other")), "satellite_org and satellite-org are both given, and differ"),
        ((*POST, NAMED[0], (b"satellite_name", b"")), r"satellite_name \(or satellite-name\) is malformed"),
        ((*POST, NAMED[0], (b"satellite_name", b"n" * 65)), "is malformed: letters, digits"),
        ((*POST, NAMED[0], (b"satellite_name", b"-n")), "is malformed"),
        ((*POST, NAMED[0], (b"satellite_name", b"n.")), "is malformed"),
        ((*POST, NAMED[0], (b"satellite_name", b"a/b")), "is malformed"),
        ((*POST, NAMED[0], (b"satellite_name", b"a\n")), "is malformed"),
        ((*POST, NAMED[0], (b"satellite_name", "ä".encode())), "is malformed"),
        ((*POST, (b"satellite_token", b"t"), (b"satellite_token", b"t")), "satellite_token is given 2 times"),
        ((*POST, (b"satellite_token", b"t"), (b"satellite-token", b"u")), "are both given, and differ"),
        ((*POST, (b"satellite_token", b"t"), (b"authorization", b"Bearer u")), "carry different tokens"),
        ((*POST, (b"authorization", b"Bearer t"), (b"authorization", b"Bearer t")), "authorization is given 2 times"),
        ((*POST, (b"satellite_token", b"t" * (TOKEN_BYTES + 1))), "too long or not ASCII"),
        ((*POST, (b"satellite_token", "tä".encode())), "too long or not ASCII"),
    ],
)
def test_what_cannot_be_used_is_said(headers: HeaderList, words: str) -> None:
    with pytest.raises(MetadataError, match=words):
        parse_request(headers)


@pytest.mark.parametrize("length", [1, 2, 64])
def test_the_lengths_of_a_name(length: int) -> None:
    assert parse_request((*POST, NAMED[0], (b"satellite_name", b"n" * length))).satellite == ("acme", "n" * length)
