"""A browser's connection: whatever it sends, in whatever pieces, it gets an answer or an end."""

import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest
import trio

from bentpipe.daemon.admin import http1
from bentpipe.daemon.admin.http1 import (
    BODY_BYTES,
    HEAD_BYTES,
    BadRequest,
    BrowserConnection,
    BrowserRequest,
    HttpReply,
    Send,
)

FORM = b"application/x-www-form-urlencoded"


class Served:
    """A connection, and the requests that were read on it."""

    def __init__(self) -> None:
        self.requests: list[BrowserRequest] = []
        self.ended = trio.Event()

    async def handle(self, request: BrowserRequest) -> HttpReply:
        self.requests.append(request)
        return HttpReply(HTTPStatus.OK, b"hello", "text/plain")

    def refuse(self, problem: BadRequest) -> HttpReply:
        return HttpReply(problem.status, str(problem).encode(), "text/plain")

    async def run(self, stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await BrowserConnection(stream, (("x-common", "1"),)).run(self.handle, self.refuse)
        self.ended.set()


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
async def client(served: Served, nursery: trio.Nursery) -> AsyncIterator[trio.SocketStream]:
    ours, theirs = trio.socket.socketpair()
    nursery.start_soon(served.run, trio.SocketStream(theirs))
    stream = trio.SocketStream(ours)
    async with stream:
        yield stream


async def answer_of(client: trio.SocketStream) -> bytes:
    received = b""
    with trio.fail_after(30):
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in client:
                received += data
    return received


GET = b"GET /satellites/acme/b%20x?a=1&b=%C3%A4&c= HTTP/1.1\r\nHost: localhost\r\nCookie: x=1; bentpipe=v\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: 7\r\n\r\na=1&b=2" % FORM


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_requests_follow_each_other(served: Served, client: trio.SocketStream, size: int) -> None:
    both = GET + POST
    for at in range(0, len(both), size):
        await client.send_all(both[at : at + size])
    await client.send_eof()
    answers = await answer_of(client)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == answers.count(b"x-common: 1") == 2
    first, second = served.requests
    assert (first.method, first.path) == ("GET", ("satellites", "acme", "b x"))
    assert dict(first.query) == {"a": "1", "b": "ä", "c": ""}
    assert (first.cookie("bentpipe"), first.cookie("x"), first.cookie("y")) == ("v", "1", "")
    assert (second.method, second.path, dict(second.form)) == ("POST", ("x",), {"a": "1", "b": "2"})


async def test_head_has_no_body(client: trio.SocketStream) -> None:
    await client.send_all(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await client.send_eof()
    assert (await answer_of(client)).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /" + b"x" * 2 * HEAD_BYTES + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2 * HEAD_BYTES, 431),
        (b"GET /?" + b"a=1&" * 50 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\nx", 415),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", 417),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (FORM, 2 * BODY_BYTES)
            + b"x" * 2 * BODY_BYTES,
            413,
        ),
    ],
)
async def test_what_cannot_be_read_is_refused_in_words(
    served: Served, client: trio.SocketStream, sent: bytes, status: int
) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await client.send_all(sent)
        await client.send_eof()
    answer = await answer_of(client)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert served.requests == []


async def test_a_browser_that_says_nothing_is_let_go(
    served: Served, client: trio.SocketStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1, "REQUEST_DEADLINE_S", 0.2)
    await client.send_all(GET)  # the deadline of the first request had begun
    await client.send_all(GET[:20])
    assert (await answer_of(client)).count(b"HTTP/1.1") == 1
    await served.ended.wait()


@pytest.mark.parametrize("kept", ["bentpipe=a; bentpipe=b", "", "bentpipe"])
def test_a_cookie_that_is_not_one_value_is_none(kept: str) -> None:
    assert BrowserRequest("GET", (), {}, {"cookie": kept}, {}).cookie("bentpipe") == ""


class Streaming(Served):
    def __init__(self) -> None:
        super().__init__()
        self.begun, self.left = trio.Event(), trio.Event()

    async def handle(self, request: BrowserRequest) -> HttpReply:
        async def stream(send: Send) -> None:
            try:
                self.begun.set()
                await send(b"data: 1\n\n")
                await trio.sleep_forever()
            finally:
                self.left.set()

        return HttpReply(HTTPStatus.OK, kind="text/event-stream", stream=stream)


async def test_a_stream_ends_with_its_browser(nursery: trio.Nursery) -> None:
    served = Streaming()
    ours, theirs = trio.socket.socketpair()
    nursery.start_soon(served.run, trio.SocketStream(theirs))
    async with trio.SocketStream(ours) as client:
        await client.send_all(GET)
        received = b""
        with trio.fail_after(30):
            while b"data: 1" not in received:
                received += bytes(await client.receive_some())
            await served.begun.wait()
    with trio.fail_after(30):
        await served.left.wait()
        await served.ended.wait()


async def test_a_browser_that_reads_nothing_ends_its_stream(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1, "READ_DEADLINE_S", 0.2)

    class Flooding(Streaming):
        async def handle(self, request: BrowserRequest) -> HttpReply:
            async def stream(send: Send) -> None:
                try:
                    while True:
                        await send(b"x" * 100_000)
                finally:
                    self.left.set()

            return HttpReply(HTTPStatus.OK, kind="text/event-stream", stream=stream)

    served = Flooding()
    ours, theirs = trio.socket.socketpair()
    nursery.start_soon(served.run, trio.SocketStream(theirs))
    async with trio.SocketStream(ours) as client:
        await client.send_all(GET)
        with trio.fail_after(60):
            await served.ended.wait()
