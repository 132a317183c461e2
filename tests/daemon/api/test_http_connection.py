"""The API's HTTP/1.1: its pages, many requests on a connection, and what clients can send that is not a request."""

import json
from collections.abc import AsyncIterator

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beds.hosts.api_host import SESSION, ApiHost, People, Person
from bentpipe.daemon.accounts.contract import Scope
from bentpipe.daemon.api import http_connection as module
from bentpipe.daemon.connections import pacing
from bentpipe.daemon.connections.outcomes import Outcome

ANNA = Person("anna", {("acme", "*"): frozenset({Scope.USE})})
LOGIN = b"POST /api/v0/account/login HTTP/1.1\r\nHost: edge\r\nContent-Length: 0\r\nAuthorization: token anna\r\n\r\n"
PING = b"GET /api/v0/account/ping HTTP/1.1\r\nHost: edge\r\nAuthorization: Bearer session.anna\r\n\r\n"


@pytest.fixture
async def host() -> AsyncIterator[ApiHost]:
    made = ApiHost({}, People({"anna": ANNA}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()


async def exchange(host: ApiHost, sent: bytes, *, end: bool = True) -> bytes:
    """Send, and read to the end of the stream."""
    received = b""
    with trio.fail_after(20):
        async with await trio.open_tcp_stream(*host.address) as stream:
            await stream.send_all(sent)
            if end:
                await stream.send_eof()
            try:
                async for chunk in stream:
                    received += chunk
            except trio.BrokenResourceError:
                pass
    return received


def parsed(received: bytes) -> list[tuple[int, object]]:
    """(status, JSON) of each answer."""
    answers = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        size = int(fields[b"content-length"])
        assert fields[b"content-type"] == b"application/json"
        answers.append((int(head.split(b" ")[1]), json.loads(rest[:size])))
        received = rest[size:]
    return answers


async def test_many_requests_on_one_connection(host: ApiHost) -> None:
    answers = parsed(await exchange(host, LOGIN + PING * 5))
    assert [status for status, _ in answers] == [200] * 6
    login = answers[0][1]
    assert isinstance(login, dict)
    assert login["token"] == SESSION + "anna"
    assert answers[1][1] == {"email": "anna@bentpipe.invalid", "writeAccess": False}
    assert host.counters.answers["login 200"] == 1
    assert host.counters.answers["ping 200"] == 5
    assert host.outcomes == [Outcome.ANSWERED]


async def test_byte_by_byte(host: ApiHost) -> None:
    with trio.fail_after(20):
        async with await trio.open_tcp_stream(*host.address) as stream:
            for byte in LOGIN:
                await stream.send_all(bytes((byte,)))
                await trio.sleep(0)
            received = b""
            while not received.endswith(b"}"):
                received += await stream.receive_some()
    assert parsed(received)[0][0] == 200


async def test_a_caller_that_is_known_is_on_its_principals_account(host: ApiHost) -> None:
    async with await trio.open_tcp_stream(*host.address) as stream:
        await stream.send_all(PING)
        await stream.receive_some()
        assert (host.quotas.strangers, host.quotas.admitted) == (0, 1)


@pytest.mark.parametrize(
    ("request_line", "authorization", "status"),
    [
        ("POST /api/v0/account/login", "token nobody", 401),
        ("POST /api/v0/account/login", "Bearer anna", 401),
        ("POST /api/v0/account/login", "", 401),
        ("GET /api/v0/account/login", "token anna", 405),
        ("GET /api/v0/account/ping", "Bearer nobody", 401),
        ("GET /api/v0/account/ping", "", 401),
        ("GET /api/v0/admin/organizations?includePersonalOrg=true", "bearer anna", 200),
        ("GET /api/v0/account/tokens", "Bearer anna", 200),
        ("GET /api/v1/secrets/user/std/registry/docker.io/username", "Bearer anna", 200),
        ("GET /api/v1/secrets/x", "Bearer eve", 401),
        ("GET /api/v0/secrets/x", "Bearer anna", 404),
        ("POST /api/v0/account/exchange", "Bearer id.anna", 200),
        ("POST /api/v0/account/exchange", "Bearer id.eve", 401),
        ("POST /api/v0/account/exchange", "", 401),
        ("OPTIONS *", "", 404),
        ("DELETE /api/v0/account", "Bearer anna", 404),
    ],
)
async def test_pages(host: ApiHost, request_line: str, authorization: str, status: int) -> None:
    field = f"Authorization: {authorization}\r\n" if authorization else ""
    [(found, body)] = parsed(await exchange(host, f"{request_line} HTTP/1.1\r\nHost: x\r\n{field}\r\n".encode()))
    assert found == status
    assert isinstance(body, dict)
    assert ("message" in body) is (status != 200)


async def test_two_authorizations_are_none(host: ApiHost) -> None:
    doubled = PING.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer anna\r\n\r\n")
    assert parsed(await exchange(host, doubled))[0][0] == 401


async def test_head_has_no_body(host: ApiHost) -> None:
    received = await exchange(host, b"HEAD /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 404")
    assert received.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 3 * module.HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + bytes(5_000), b"413"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
    ],
)
async def test_what_is_malformed_or_too_long(host: ApiHost, sent: bytes, status: bytes) -> None:
    assert (await exchange(host, sent)).startswith(b"HTTP/1.1 " + status)


async def test_a_body_in_chunks_is_read_over(host: ApiHost) -> None:
    chunked = LOGIN.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n"
    assert [status for status, _ in parsed(await exchange(host, chunked + PING))] == [200, 200]


@pytest.mark.parametrize("order", [1, -1])
async def test_a_body_with_two_lengths_is_refused_and_what_follows_is_not_read(host: ApiHost, order: int) -> None:
    """A proxy may go by the other length, and take what is the body to us for another client's request."""
    lengths = b"\r\n".join([b"Content-Length: 4", b"Transfer-Encoding: chunked"][::order])
    smuggled = LOGIN.replace(b"Content-Length: 0", lengths) + b"0\r\n\r\n"
    received = await exchange(host, smuggled + PING)
    assert received.startswith(b"HTTP/1.1 400")
    assert received.count(b"HTTP/1.1 ") == 1


async def test_a_client_that_waits_with_its_body_is_told_to_send_it(host: ApiHost) -> None:
    waiting = LOGIN.replace(b"Content-Length: 0", b"Content-Length: 2\r\nExpect: 100-continue")
    async with await trio.open_tcp_stream(*host.address) as stream:
        with trio.fail_after(20):
            await stream.send_all(waiting)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
            await stream.send_all(b"{}")
            assert parsed(bytes(await stream.receive_some()))[0][0] == 200


async def test_requests_that_come_at_once_are_answered_over_many_turns(
    host: ApiHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no other client waits for all of them. Without a budget each costly step has a turn of its own."""
    monkeypatch.setattr(pacing, "TURN_BUDGET_S", 0.0)
    turns = 0

    class Turns(trio.abc.Instrument):
        def after_io_wait(self, timeout: float) -> None:
            nonlocal turns
            turns += 1

    counter = Turns()
    trio.lowlevel.add_instrument(counter)
    assert len(parsed(await exchange(host, PING * 50))) == 50
    trio.lowlevel.remove_instrument(counter)
    assert turns > 50


async def test_a_request_that_does_not_end_has_a_deadline(host: ApiHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_DEADLINE_S", 0.2)
    assert await exchange(host, LOGIN[:40], end=False) == b""
    assert host.outcomes == [Outcome.DEADLINE]


async def test_a_connection_has_an_end(host: ApiHost) -> None:
    answers = parsed(await exchange(host, PING * (module.REQUESTS + 20)))
    assert len(answers) == module.REQUESTS


async def test_a_daemon_that_drains_says_so_with_its_last_answer(host: ApiHost) -> None:
    host.api.drain()
    received = await exchange(host, PING * 2, end=False)
    assert b"connection: close" in received.lower()
    assert len(parsed(received)) == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_any_bytes_end_in_an_answer_or_in_nothing(data: bytes) -> None:
    async def run() -> None:
        host = ApiHost({}, People({}))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.run)
            received = await exchange(host, b"GET / HTTP/1.1\r\n" + data)
            assert received == b"" or received.startswith(b"HTTP/1.1 ")
            with trio.fail_after(10):
                while host.quotas.total:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(run)
