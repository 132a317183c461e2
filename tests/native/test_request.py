"""The reading of first requests in C says what proto/request.py and daemon/edge/identity.py say, or leaves it to them.

Recorded clients, both spellings, duplicates, binary forms, each limit and one past it, server names, and random requests; in
this process and under ASan and UBSan.
"""

import os
import random
from collections.abc import Iterator

import pytest

from beds.fuzz.asked import Known, compare, known_to_python, read_in_c
from beds.fuzz.asker import Asker, asker
from beds.fuzz.harness import READ_BYTES, greet
from beds.fuzz.openings import RECORDED
from beds.fuzz.requests import DOMAIN, TOKEN_LIMIT, TRACEPARENT, Asked, Requests
from bentpipe.daemon.model import SatelliteKey
from bentpipe.proto.events import HeaderList, RequestHeaders
from bentpipe.proto.trace_context import trace_context

REQUESTS = 10 * int(os.environ.get("BENTPIPE_OPENINGS", "600"))
SEED = int(os.environ.get("BENTPIPE_SEED", "0")) or random.randrange(1, 1 << 30)
POST: HeaderList = ((b":method", b"POST"), (b":path", b"/a.B/C"))
ORG, NAME, TOKEN = (b"satellite_org", b"acme"), (b"satellite_name", b"b-1"), (b"satellite_token", b"secret")
PLAIN: HeaderList = (*POST, ORG, NAME, TOKEN)
KEY = SatelliteKey("acme", "b-1")


@pytest.fixture(scope="module")
def process() -> Iterator[Asker]:
    with asker() as made:
        yield made


def both(process: Asker, asked: Asked) -> Known | None:
    """Read it in both ways of C, and by Python."""
    known = compare(asked, process.read)
    assert compare(asked) == known
    return known


def with_value(key: bytes, value: bytes) -> HeaderList:
    return tuple((each, value if each == key else old) for each, old in PLAIN)


@pytest.mark.parametrize("recorded", RECORDED)
def test_recorded_clients(recorded: tuple[bytes, bytes], process: Asker) -> None:
    events, _, _ = greet(list(recorded), READ_BYTES)
    [headers] = [event.headers for event in events if isinstance(event, RequestHeaders)]
    both(process, Asked(headers))
    named = tuple(each for each in headers if not each[0].startswith((b"satellite", b"authorization", b":method")))
    both(process, Asked((*named, ORG, NAME, TOKEN)))
    assert both(process, Asked(((b":method", b"POST"), *named, ORG, NAME, TOKEN))), (
        "real clients' other fields do not matter"
    )


BEARER = (b"authorization", b"Bearer secret")
DASHED = tuple((key.replace(b"_", b"-"), value) for key, value in (ORG, NAME, TOKEN))


@pytest.mark.parametrize(
    "headers",
    [
        PLAIN,
        (*POST, *DASHED),
        (*PLAIN, *DASHED),
        (*POST, ORG, NAME, BEARER),
        (*PLAIN, BEARER),
        (*PLAIN, *DASHED, BEARER),
        (*POST, ORG, NAME, (b"authorization", b"bEARER \t secret\r\n\v\f")),
        (*PLAIN, (b"authorization", b"Basic abc")),
        (*PLAIN, (b"authorization", b"Bearersecret")),
        (*PLAIN, (b"satellite_token-bin", b"other"), (b"satellite_org-bin", b"other"), (b"satellite-name-bin", b"x")),
        (*PLAIN, (b"Satellite_Org", b"other"), (b"AUTHORIZATION", b"Bearer other")),
        tuple(reversed(PLAIN)),
        (*PLAIN, (b"traceparent", TRACEPARENT), (b"tracestate", b"a=1")),
        (*PLAIN, (b"traceparent", TRACEPARENT), (b"traceparent", TRACEPARENT)),
        (*PLAIN, (b"traceparent", TRACEPARENT), (b"tracestate", b"a" * 513)),
        (*PLAIN, (b"traceparent", b"cc" + TRACEPARENT[2:] + b"-" + b"x" * 100), (b"tracestate", b"a=1")),
    ],
)
def test_what_is_known(headers: HeaderList, process: Asker) -> None:
    known = both(process, Asked(headers))
    assert known is not None
    assert (known.key, known.trace) == (KEY, trace_context(headers))
    assert known == known_to_python(Asked(headers))


@pytest.mark.parametrize(
    "headers",
    [
        (),
        *(tuple(each for each in PLAIN if each[0] != key) for key, _ in PLAIN),
        *((*PLAIN, each) for each in PLAIN),
        *((*PLAIN, BEARER, BEARER), (*PLAIN, *DASHED, DASHED[0]), (*PLAIN, DASHED[2], DASHED[2])),
        *((*PLAIN, (key, value + b"x")) for key, value in DASHED),
        (*PLAIN, (b"authorization", b"Bearer secret2")),
        (*PLAIN, (b"authorization", b"Bearer ")),
        (*POST, ORG, NAME, (b"authorization", b"Bearer \t\r\n")),
        (*POST, ORG, NAME, (b"authorization", b"Basic secret")),
        (*POST, ORG, NAME, (b"satellite_token-bin", b"secret")),
        *(with_value(b":method", method) for method in (b"GET", b"post", b"", b"POST ")),
        *(with_value(b":path", path) for path in (b"", b"a", b"*", b"/grpc.health.v1.Health/Check", b"/api.public.X")),
        (*PLAIN, (b"tracestate", b"a=1"), (b"tracestate", b"b=1")),
    ],
)
def test_what_is_unusual(headers: HeaderList, process: Asker) -> None:
    assert both(process, Asked(headers)) is None


NAMES = (b"a", b"Z9", b"a.b", b"a_b", b"a-b", b"x" * 64, b"a" + b"-" * 62 + b"z")
NO_NAMES = (
    *(
        b"",
        b"-a",
        b"a-",
        b".a",
        b"a.",
        b"_a",
        b"a_",
        b".",
        b"a b",
        b" a",
        b"a ",
        b"a/b",
        b"a*",
        b"a\n",
        b"\na",
        b"x" * 65,
    ),
    *(b"a\0b", b"\0", b"a\0", b"a" * 63 + b"\0", b"\xc3\xa9", b"a\xffb", b"a@b", b"a[b", b"a`b", b"a{b", b"a:b"),
)


@pytest.mark.parametrize("key", [ORG[0], NAME[0]])
def test_names(key: bytes, process: Asker) -> None:
    for value in NAMES:
        assert both(process, Asked(with_value(key, value))), value
    for value in NO_NAMES:
        assert both(process, Asked(with_value(key, value))) is None, value
    for character in range(256):
        for value in (bytes((character,)), b"a%cb" % character, b"%ca" % character, b"a%c" % character):
            both(process, Asked(with_value(key, value)))


def test_tokens_at_each_limit_and_past_it(process: Asker) -> None:
    for scheme in (None, b"Bearer ", b"bearer \t"):
        for token, known in ((b"t", True), (b"t" * TOKEN_LIMIT, True), (b"t" * (TOKEN_LIMIT + 1), False), (b"", False)):
            sent = (TOKEN[0], token) if scheme is None else (b"authorization", scheme + token)
            assert (both(process, Asked((*POST, ORG, NAME, sent))) is not None) is known
    for character in range(256):
        for value in (bytes((character,)), b"a%cb" % character, b"%ca" % character, b"a%c" % character):
            both(process, Asked(with_value(TOKEN[0], value)))
            both(process, Asked((*POST, ORG, NAME, (b"authorization", b"Bearer " + value))))


NO_METADATA = (*POST, TOKEN)


@pytest.mark.parametrize(
    ("headers", "name", "domain", "known"),
    [
        (NO_METADATA, f"b-1.acme.{DOMAIN}", DOMAIN, True),
        (NO_METADATA, f"B-1.Acme.{DOMAIN.upper()}.", DOMAIN, True),
        (PLAIN, f"b-1.acme.{DOMAIN}", DOMAIN, True),
        (PLAIN, f"b-1.acme.{DOMAIN}", None, True),
        (PLAIN, "edge.example", DOMAIN, True),
        (PLAIN, DOMAIN, DOMAIN, True),
        (PLAIN, "", DOMAIN, True),
        (PLAIN, f"a.b.c.{DOMAIN}", DOMAIN, True),
        (PLAIN, f"b-1.acme.{DOMAIN}..", DOMAIN, True),
        (PLAIN, f"b-1.acme.{DOMAIN}.{DOMAIN}", DOMAIN, True),
        (PLAIN, f"b-2.acme.{DOMAIN}", DOMAIN, False),
        (PLAIN, f"b-1.acme2.{DOMAIN}", DOMAIN, False),
        (NO_METADATA, f"b-1.acme.{DOMAIN}", None, False),
        (NO_METADATA, None, DOMAIN, False),
        (NO_METADATA, f".acme.{DOMAIN}", DOMAIN, False),
        (NO_METADATA, f"a..{DOMAIN}", DOMAIN, False),
        (NO_METADATA, f"a.b.c.{DOMAIN}", DOMAIN, False),
        (NO_METADATA, f"a_.b.{DOMAIN}", DOMAIN, False),
        (NO_METADATA, f"{'x' * 64}.{'y' * 64}.{DOMAIN}", DOMAIN, True),
        (NO_METADATA, f"{'x' * 65}.y.{DOMAIN}", DOMAIN, False),
        (NO_METADATA, f"\N{KELVIN SIGN}.acme.{DOMAIN}", DOMAIN, False),
        (PLAIN, "\N{KELVIN SIGN}", DOMAIN, False),
        (PLAIN, "x" * 255, DOMAIN, True),
        (PLAIN, "x" * 256, DOMAIN, False),
        (PLAIN, "a.b." + "d" * 249, "d" * 249, False),
        (PLAIN, "a.b." + "d" * 249, "d" * 254, True),
    ],
)
def test_server_names(headers: HeaderList, name: str | None, domain: str | None, known: bool, process: Asker) -> None:
    assert (both(process, Asked(headers, name, domain)) is not None) is known


def test_random_requests(process: Asker) -> None:
    known = 0
    for seed in range(SEED, SEED + REQUESTS):
        try:
            known += compare(Requests(seed).make()) is not None
            if seed % 3 == 0:
                compare(Requests(seed).make(), process.read)
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}: {exc}") from exc
    print(f"\nfrom seed {SEED}: {known} of {REQUESTS} are known")
    assert REQUESTS // 5 < known < REQUESTS * 4 // 5, "the requests are not what they should be"


def test_a_difference_is_found() -> None:
    """The comparison itself: a reader that says too much, too little or something else is told from the oracle."""

    def without_token(asked: Asked) -> Known | None:
        return read_in_c(Asked((*asked.headers, TOKEN)))

    def nothing(asked: Asked) -> Known | None:
        return None

    def other_name(asked: Asked) -> Known | None:
        return read_in_c(Asked(with_value(NAME[0], b"other")))

    for headers, reader in ((PLAIN[:-1], without_token), (PLAIN, nothing), (PLAIN, other_name)):
        with pytest.raises(AssertionError, match="C "):
            compare(Asked(headers), reader)
