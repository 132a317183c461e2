"""The port at which machines enrol, under real TLS clients: hostile requests, floods, and machines that leave."""

import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from beds.hosts.enrolling import EnrolmentBed, enrolment_bed
from beds.ports import free_port
from bentpipe.daemon.pki.authority import new_key
from bentpipe.daemon.responder.enrol import DAEMON_NAME
from bentpipe.daemon.service import enrolment_server
from bentpipe.daemon.service.enrolment_server import BURST, PER_S, AddressRates

DEADLINE_S = 30.0


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[EnrolmentBed]:
    async with enrolment_bed(tmp_path, free_port()) as found:
        yield found


def request_pem() -> str:
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(new_key(), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def trusting(pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pem)
    return context


def exchange(port: int, trusted: str, data: bytes) -> bytes:
    """Send bytes over TLS, and read to the end."""
    with (
        socket.create_connection(("127.0.0.1", port), DEADLINE_S) as sock,
        trusting(trusted).wrap_socket(sock, server_hostname=DAEMON_NAME) as tls,
    ):
        tls.sendall(data)
        answer = b""
        while piece := tls.recv(65536):
            answer += piece
        return answer


def post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def ask(bed: EnrolmentBed, trusted: str, data: bytes) -> tuple[int, dict[str, object]]:
    answer = await trio.to_thread.run_sync(exchange, bed.port, trusted, data)
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


async def test_a_machine_enrols_over_the_wire(bed: EnrolmentBed) -> None:
    given = await bed.launch()
    fields = {"satellite": given.satellite, "launch": given.launch, "token": given.token, "request": request_pem()}
    status, answer = await ask(bed, given.trusted, post("/v1/enrol", json.dumps(fields).encode()))
    assert status == 200
    assert set(answer) == {"certificate", "trusted", "renew_after_s"}
    status, answer = await ask(
        bed, given.trusted, post("/v1/enrol", json.dumps({**fields, "request": request_pem()}).encode())
    )
    assert (status, answer) == (403, {"error": enrolment_server.DENIED})
    unknown = {**fields, "satellite": "no/such"}
    assert await ask(bed, given.trusted, post("/v1/enrol", json.dumps(unknown).encode())) == (status, answer)


GOOD = {"satellite": "acme/one", "launch": "1" * 64, "token": "bpm_x", "request": "x"}
HOSTILE: dict[str, tuple[bytes, int]] = {
    "no HTTP": (b"\x00\x01\x02hello\r\n\r\n", 400),
    "another method": (b"GET /v1/enrol HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "another path": (post("/metrics", b"{}"), 404),
    "a path that is not ASCII": ("POST /v1/enröl HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 400),
    "no host": (b"POST /v1/enrol HTTP/1.1\r\n\r\n", 400),
    "two lengths": (b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "a length of a body that is too long": (
        post("/v1/enrol", b"x" * (enrolment_server.BODY_BYTES + 1)),
        413,
    ),
    "chunks without end": (
        b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"400\r\n"
        + b"y" * 1024
        + b"\r\n",
        0,
    ),
    "a head that is too long": (b"POST /v1/enrol HTTP/1.1\r\nX: " + b"y" * 20_000, 431),
    "no JSON": (post("/v1/enrol", b"{"), 400),
    "nested JSON": (post("/v1/enrol", b"[" * 16_000), 400),
    "no object": (post("/v1/enrol", b"[]"), 400),
    "a field less": (post("/v1/enrol", json.dumps({**GOOD, "token": None}).encode()), 400),
    "a field more": (post("/v1/enrol", json.dumps({**GOOD, "name": "x"}).encode()), 400),
    "numbers": (post("/v1/enrol", json.dumps(dict.fromkeys(GOOD, 1)).encode()), 400),
    "another request's fields": (post("/v1/renew", json.dumps(GOOD).encode()), 400),
    "no signing request": (post("/v1/enrol", json.dumps(GOOD).encode()), 400),
    "a surrogate": (post("/v1/enrol", json.dumps({**GOOD, "request": "\ud800"}).encode()), 400),
}


@pytest.mark.parametrize("kind", [each for each in HOSTILE if HOSTILE[each][1]])
async def test_a_hostile_request_gets_an_answer_in_words(bed: EnrolmentBed, kind: str) -> None:
    data, wanted = HOSTILE[kind]
    given = await bed.launch()
    status, answer = await ask(bed, given.trusted, data)
    assert status == wanted
    assert answer["error"]


async def test_a_name_that_no_satellite_can_have_is_denied(bed: EnrolmentBed) -> None:
    given = await bed.launch()
    for name in ("\ud800/x", "acme/\0", "a" * 9000, "acme/one\n"):
        fields = {"satellite": name, "launch": given.launch, "token": given.token, "request": request_pem()}
        status, answer = await ask(bed, given.trusted, post("/v1/enrol", json.dumps(fields).encode()))
        assert (status, answer["error"]) == (403, enrolment_server.DENIED)


async def test_connections_that_say_nothing_end(bed: EnrolmentBed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment_server, "DEADLINE_S", 0.5)
    given = await bed.launch()
    data, _ = HOSTILE["chunks without end"]
    assert await trio.to_thread.run_sync(_until_closed, bed.port, given.trusted, data) == b""
    plain = await trio.open_tcp_stream("127.0.0.1", bed.port)
    with trio.fail_after(DEADLINE_S):
        assert await plain.receive_some() == b""
    await plain.aclose()


def _until_closed(port: int, trusted: str, data: bytes) -> bytes:
    try:
        return exchange(port, trusted, data)
    except OSError:
        return b""


async def test_one_address_cannot_take_all_places_for_long(bed: EnrolmentBed) -> None:
    """Connections that are held open, and a machine that comes after them."""
    given = await bed.launch()
    held = [await trio.open_tcp_stream("127.0.0.1", bed.port) for _ in range(3 * enrolment_server.CONNECTIONS_OF_ONE)]
    fields = {"satellite": given.satellite, "launch": given.launch, "token": given.token, "request": request_pem()}
    status, _ = await ask(bed, given.trusted, post("/v1/enrol", json.dumps(fields).encode()))
    assert status == 200
    for each in held:
        await each.aclose()


def test_the_rate_of_an_address() -> None:
    now = 0.0
    rates = AddressRates(lambda: now)
    assert [rates.take("a") for _ in range(BURST + 5)] == [True] * BURST + [False] * 5
    assert rates.take("b"), "another address has its own"
    now = 1.0
    assert sum(rates.take("a") for _ in range(BURST)) == PER_S
    now = 1000.0
    assert sum(rates.take("a") for _ in range(2 * BURST)) == BURST


def test_a_flood_of_addresses_is_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment_server, "ADDRESSES", 4)
    rates = AddressRates(lambda: 0.0)
    for number in range(100):
        assert rates.take(str(number))
    assert len(rates._full_at) == 4


async def test_the_daemon_is_known_by_its_name_and_authority(bed: EnrolmentBed, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    async with enrolment_bed(other, free_port()) as foreign:
        given = await foreign.launch()
        with pytest.raises(ssl.SSLCertVerificationError):
            await trio.to_thread.run_sync(exchange, bed.port, given.trusted, b"")
