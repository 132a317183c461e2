"""An issuer's keys: fetched by one task, kept through its outages, and no more often than is said."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jwt
import pytest
import trio
import trio.testing
import trustme
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from bentpipe.config.accounts import OidcIssuerSection
from bentpipe.daemon.accounts import https_fetch
from bentpipe.daemon.accounts.https_fetch import FetchError, fetch
from bentpipe.daemon.accounts.issuer_keys import (
    ANSWER_S,
    KEYS_MOST,
    LEAST_BETWEEN_S,
    REFRESH_S,
    SOON_S,
    STALE_S,
    IssuerKeys,
    usable_keys,
)
from bentpipe.daemon.errors import TokensUnknown, Unauthenticated

ISSUER = "https://ci.example"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwk(kid: object, **changed: object) -> dict[str, object]:
    made: dict[str, object] = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key()))
    return {**made, "kid": kid, "use": "sig", "alg": "RS256", **changed}


def key_set(*kids: str) -> bytes:
    return json.dumps({"keys": [jwk(kid) for kid in kids]}).encode()


class Web:
    """What the issuer answers, and how often it was asked for keys."""

    def __init__(self, *kids: str) -> None:
        self.keys = key_set(*kids)
        self.discovery: object = {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys"}
        self.fails = False
        self.asked = 0
        self.takes_s = 0.0

    async def get(self, url: str, ca: Path | None) -> bytes:
        await trio.sleep(self.takes_s)
        if self.fails:
            raise FetchError(f"{url}: no route")
        if url == f"{ISSUER}/keys":
            self.asked += 1
            return self.keys
        assert url == f"{ISSUER}/.well-known/openid-configuration"
        return json.dumps(self.discovery).encode()


def issuer(web: Web, **section: object) -> IssuerKeys:
    made = OidcIssuerSection.model_validate({"name": "ci", "issuer": ISSUER, "audience": "bentpipe", **section})
    return IssuerKeys(made, get=web.get, now=trio.current_time)


async def kinds(keys: IssuerKeys, *kids: str) -> list[object]:
    found: list[object] = []
    for kid in kids:
        try:
            found.append((await keys.find(kid, "RS256")).key_id)
        except (Unauthenticated, TokensUnknown) as exc:
            found.append(type(exc))
    return found


async def test_a_key_is_found_and_one_that_is_not_published_is_refused(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    web = Web("a", "b")
    keys = issuer(web)
    nursery.start_soon(keys.run_fetches)
    assert await kinds(keys, "a", "b", "x", "") == ["a", "b", Unauthenticated, Unauthenticated]
    with pytest.raises(Unauthenticated):
        await keys.find("a", "ES256")


async def test_a_new_key_is_fetched_when_a_token_names_it(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    web = Web("a")
    keys = issuer(web)
    nursery.start_soon(keys.run_fetches)
    await trio.sleep(LEAST_BETWEEN_S + 1)
    web.keys = key_set("a", "new")
    began = trio.current_time()
    assert await kinds(keys, "new") == ["new"]
    assert trio.current_time() - began < 1


async def test_unknown_keys_cause_one_fetch_a_minute_whatever_is_asked(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    web = Web("a")
    keys = issuer(web)
    nursery.start_soon(keys.run_fetches)
    await trio.sleep(1)
    for number in range(600):
        assert await kinds(keys, f"x{number}") == [Unauthenticated]
        await trio.sleep(1)
    assert 9 <= web.asked <= 12
    assert len(keys._keys) == 1


async def test_keys_are_fetched_now_and_then_without_any_token(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    web = Web("a")
    nursery.start_soon(issuer(web).run_fetches)
    await trio.sleep(10 * REFRESH_S + 1)
    assert web.asked == 11


async def test_an_outage_refuses_nobody_until_the_keys_are_stale(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    web = Web("a")
    keys = issuer(web)
    nursery.start_soon(keys.run_fetches)
    await trio.sleep(1)
    web.fails = True
    await trio.sleep(STALE_S - 2)
    assert await kinds(keys, "a") == ["a"]
    assert caplog.text.count("an issuer's keys cannot be fetched") == 1
    await trio.sleep(REFRESH_S + 2)
    assert keys.age_s > STALE_S
    assert await kinds(keys, "a") == [TokensUnknown]
    web.fails = False
    await trio.sleep(SOON_S)
    assert await kinds(keys, "a") == ["a"]


@pytest.mark.parametrize(
    "empty", [b'{"keys": []}', b"{}", b"[]", b"not JSON", b"[" * 100_000, key_set("a").replace(b"RS256", b"HS256")]
)
async def test_an_empty_or_spoilt_set_keeps_the_old_keys(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, empty: bytes
) -> None:
    web = Web("a")
    keys = issuer(web)
    nursery.start_soon(keys.run_fetches)
    await trio.sleep(1)
    web.keys = empty
    await trio.sleep(2 * REFRESH_S)
    assert await kinds(keys, "a") == ["a"]


@pytest.mark.parametrize(
    "discovery",
    [
        {"issuer": "https://other.example", "jwks_uri": f"{ISSUER}/keys"},
        {"issuer": ISSUER + "/", "jwks_uri": f"{ISSUER}/keys"},
        {"jwks_uri": f"{ISSUER}/keys"},
        {"issuer": ISSUER, "jwks_uri": "http://ci.example/keys"},
        {"issuer": ISSUER, "jwks_uri": ["https://ci.example/keys"]},
        {"issuer": ISSUER},
    ],
)
async def test_a_discovery_document_of_another_is_not_believed(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, discovery: object
) -> None:
    web = Web("a")
    web.discovery = discovery
    keys = issuer(web)
    nursery.start_soon(keys.run_fetches)
    assert await kinds(keys, "a") == [TokensUnknown]
    assert web.asked == 0
    configured = issuer(web, keys_url=f"{ISSUER}/keys")
    nursery.start_soon(configured.run_fetches)
    assert await kinds(configured, "a") == ["a"]


async def test_all_who_wait_wait_for_one_fetch_and_not_for_ever(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    web = Web("a")
    web.takes_s = 2
    keys = issuer(web)
    nursery.start_soon(keys.run_fetches)
    found: list[object] = []

    async def ask() -> None:
        found.extend(await kinds(keys, "a"))

    async with trio.open_nursery() as asking:
        for _ in range(50):
            asking.start_soon(ask)
    assert (found, web.asked) == (["a"] * 50, 1)
    web.takes_s = 1000
    await trio.sleep(LEAST_BETWEEN_S + 1)
    began = trio.current_time()
    assert await kinds(keys, "x") == [Unauthenticated]
    assert trio.current_time() - began == pytest.approx(ANSWER_S)


WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)


@pytest.mark.parametrize(
    "bad",
    [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "x"},
        jwk("x", alg="HS256"),
        jwk("x", use="enc"),
        jwk(5),
        jwk("x" * 257),
        jwk("x", n="!"),
        jwk("x", e=None),
        jwk("x", d="AQAB"),
        json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(WEAK.public_key())) | {"kid": "x"},
        json.loads(jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key()))
        | {"kid": "x"},
        "text",
        None,
    ],
)
def test_keys_that_cannot_be_used_are_passed_over(bad: object) -> None:
    raw = json.dumps({"keys": [bad, jwk("good")]}).encode()
    assert {kid for kid, _ in usable_keys(raw, ("RS256", "ES256"))} == {"good"}


def test_a_set_is_bounded_and_the_first_of_two_keys_with_one_id_stays() -> None:
    with pytest.raises(FetchError):
        usable_keys(key_set(*map(str, range(KEYS_MOST + 1))), ("RS256",))
    other = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key()))
    raw = json.dumps({"keys": [jwk("a"), {**other, "kid": "a"}]}).encode()
    assert usable_keys(raw, ("RS256",))["a", "RS256"].key.public_numbers() == RSA.public_key().public_numbers()


# -- over real HTTPS ---------------------------------------------------------------------------------------------------

Answers = Callable[[ssl.SSLSocket], None]


@pytest.fixture
def authority(tmp_path: Path) -> tuple[trustme.CA, Path]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return ca, tmp_path / "ca.pem"


@pytest.fixture
def serve(authority: tuple[trustme.CA, Path]) -> Iterator[Callable[[Answers], str]]:
    ca, _ = authority
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    threads: list[threading.Thread] = []
    ended = threading.Event()

    def start(answer: Answers) -> str:
        listener = socket.create_server(("127.0.0.1", 0))

        def run() -> None:
            with listener:
                listener.settimeout(0.1)
                while not ended.is_set():
                    try:
                        plain, _ = listener.accept()
                    except TimeoutError:
                        continue
                    plain.settimeout(10)
                    try:
                        with context.wrap_socket(plain, server_side=True) as client:
                            client.recv(65536)
                            answer(client)
                    except OSError:
                        continue

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return f"https://127.0.0.1:{listener.getsockname()[1]}/keys"

    yield start
    ended.set()
    for thread in threads:
        thread.join()


def answering(status: str, body: bytes, *headers: str) -> Answers:
    head = "\r\n".join((f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""))
    return lambda client: client.sendall(head.encode() + body)


async def test_a_document_is_fetched(serve: Callable[[Answers], str], authority: tuple[trustme.CA, Path]) -> None:
    url = serve(answering("200 OK", key_set("a")))
    assert await fetch(url, authority[1]) == key_set("a")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (answering("404 Not Found", b""), "status 404"),
        (answering("302 Found", b"", "Location: https://127.0.0.1:1/"), "status 302"),
        (answering("200 OK", b"x" * (https_fetch.ANSWER_BYTES + 1)), "over 262144 bytes"),
        (lambda client: client.sendall(b"nonsense\r\n\r\n"), "https://127"),
        (lambda client: None, "https://127"),
    ],
)
async def test_no_redirect_no_error_page_and_not_more_than_the_bound(
    serve: Callable[[Answers], str], authority: tuple[trustme.CA, Path], answer: Answers, words: str
) -> None:
    with pytest.raises(FetchError, match=words):
        await fetch(serve(answer), authority[1])


async def test_a_server_with_another_certificate_is_not_believed(serve: Callable[[Answers], str]) -> None:
    with pytest.raises(FetchError, match=r"(?i)certificate"):
        await fetch(serve(answering("200 OK", key_set("a"))), None)


async def test_a_server_that_sends_a_byte_now_and_then_is_given_up(
    serve: Callable[[Answers], str], authority: tuple[trustme.CA, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(https_fetch, "DEADLINE_S", 0.5)

    def drip(client: ssl.SSLSocket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(15):
            client.sendall(b"x")
            time.sleep(0.1)

    with pytest.raises(FetchError, match="no complete answer"):
        await fetch(serve(drip), authority[1])
