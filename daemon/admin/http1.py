"""One connection of a browser: HTTP/1.1 by the h11 library, requests one after the other, each bounded in size and time."""

import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote

import h11
import trio

from bentpipe.daemon.edge.unless import beside

HEAD_BYTES = 16 << 10
"""Of a request: its line and its fields. A browser sends one to two KiB."""
BODY_BYTES = 20 << 10
"""Of a form: a token of 16 KiB, percent-encoded signs in it included, and a few fields."""
FORM_FIELDS = 20
RECEIVE_BYTES = 8 << 10
REQUESTS = 1_000
"""On one connection."""
REQUEST_DEADLINE_S = 30.0
"""From the accept, or from the end of an answer, to the end of the next request."""
READ_DEADLINE_S = 20.0
"""For the browser to take an answer, and each event of a stream."""
FORM_TYPE = "application/x-www-form-urlencoded"

Send = Callable[[bytes], Awaitable[None]]


@dataclasses.dataclass(frozen=True, slots=True)
class BrowserRequest:
    """One request. Fields' names are in lower case; a field that came twice has its values joined by ", "."""

    method: str
    path: tuple[str, ...]
    """The target's segments, decoded: "/satellites/acme/builder" has three, "/" has none."""
    query: Mapping[str, str]
    fields: Mapping[str, str]
    form: Mapping[str, str]

    def cookie(self, name: str) -> str:
        """A cookie's value; "" if it was not sent, or twice."""
        sent = [each.strip().partition("=") for each in self.fields.get("cookie", "").split(";")]
        found = [value for key, _, value in sent if key == name]
        return found[0] if len(found) == 1 else ""


@dataclasses.dataclass(frozen=True, slots=True)
class HttpReply:
    """One answer: a body, or `stream`, which sends parts until it returns or the browser leaves."""

    status: HTTPStatus
    body: bytes = b""
    kind: str = "text/html; charset=utf-8"
    fields: tuple[tuple[str, str], ...] = ()
    stream: Callable[[Send], Awaitable[None]] | None = None


Handler = Callable[[BrowserRequest], Awaitable[HttpReply]]


class BadRequest(Exception):
    """The request cannot be read. The message is for the person who made it."""

    def __init__(self, words: str, status: int = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(words)
        self.status = HTTPStatus(status)


class BrowserConnection:
    """`run` serves one connection. `common` are fields of every answer."""

    def __init__(self, stream: trio.SocketStream, common: tuple[tuple[str, str], ...]) -> None:
        self._stream = stream
        self._common = common
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)

    async def run(self, handle: Handler, refuse: Callable[[BadRequest], HttpReply]) -> None:
        """Answer requests until either side ends it. Raises BrokenResourceError if the browser is gone."""
        for _ in range(REQUESTS):
            with trio.move_on_after(REQUEST_DEADLINE_S) as deadline:
                try:
                    request = await self._read()
                except BadRequest as exc:
                    await self._send(refuse(exc), last=True)
                    return
            if deadline.cancelled_caught or request is None:
                return
            answer = await handle(request)
            if answer.stream is not None:
                await self._send_stream(answer, answer.stream)
                return
            last = self._h11.their_state is not h11.DONE
            await self._send(answer, last=last, with_body=request.method != "HEAD")
            if last or self._h11.our_state is not h11.DONE:
                return
            self._h11.start_next_cycle()

    async def _read(self) -> BrowserRequest | None:
        """A complete request; None if the browser ends the connection instead. Raises BadRequest."""
        head: h11.Request | None = None
        body = b""
        try:
            while True:
                match self._h11.next_event():
                    case h11.Request() as head:
                        pass
                    case h11.Data(data=data):
                        body += data
                        if len(body) > BODY_BYTES:
                            raise BadRequest("the form is too long", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                    case h11.EndOfMessage() if head is not None:
                        return request_of(head, body)
                    case h11.NEED_DATA:
                        if self._h11.they_are_waiting_for_100_continue:
                            raise BadRequest("Expect is not served", HTTPStatus.EXPECTATION_FAILED)
                        self._h11.receive_data(bytes(await self._stream.receive_some(RECEIVE_BYTES)))
                    case _:
                        return None
        except h11.RemoteProtocolError as exc:
            raise BadRequest("this is not a request of HTTP/1.1, or it is too long", exc.error_status_hint) from exc

    def _head(self, answer: HttpReply, length: tuple[str, str], *, last: bool) -> bytes:
        fields = [("content-type", answer.kind), length, *self._common, *answer.fields]
        if last:
            fields.append(("connection", "close"))
        response = h11.Response(status_code=answer.status, headers=fields, reason=answer.status.phrase)
        return self._h11.send(response) or b""

    async def _send(self, answer: HttpReply, *, last: bool, with_body: bool = True) -> None:
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        out = self._head(answer, ("content-length", str(len(answer.body))), last=last)
        if with_body:
            out += self._h11.send(h11.Data(data=answer.body)) or b""
        out += self._h11.send(h11.EndOfMessage()) or b""
        await send_raw(self._stream, out)

    async def _send_stream(self, answer: HttpReply, stream: Callable[[Send], Awaitable[None]]) -> None:
        async def send(data: bytes) -> None:
            await send_raw(self._stream, self._h11.send(h11.Data(data=data)) or b"")

        await send_raw(self._stream, self._head(answer, ("transfer-encoding", "chunked"), last=True))
        await beside(self._wait_left, lambda: stream(send), (trio.BrokenResourceError,))
        with contextlib.suppress(h11.LocalProtocolError):
            await send_raw(self._stream, self._h11.send(h11.EndOfMessage()) or b"")

    async def _wait_left(self) -> None:
        """The browser sends nothing while it takes a stream: it closes the connection."""
        await self._stream.receive_some(RECEIVE_BYTES)


async def send_raw(stream: trio.SocketStream, data: bytes) -> None:
    """Send within the deadline. Raises BrokenResourceError."""
    with trio.move_on_after(READ_DEADLINE_S) as deadline:
        await stream.send_all(data)
    if deadline.cancelled_caught:
        raise trio.BrokenResourceError("the browser takes nothing")


def request_of(head: h11.Request, body: bytes) -> BrowserRequest:
    """Read a request's parts. Raises BadRequest."""
    names = [name for name, _ in head.headers]
    if {b"content-length", b"transfer-encoding"} <= set(names):
        # RFC 9112 §6.3: it may be an attempt to have a proxy and us disagree on where the request ends.
        raise BadRequest("two lengths of one body")
    fields: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    target = head.target.decode("latin-1")
    path, _, query = target.partition("?")
    if not path.startswith("/"):
        raise BadRequest("the request's target is not a path")
    form = fields.get("content-type", "").partition(";")[0].strip().lower() == FORM_TYPE
    if body and not form:
        raise BadRequest(f"a body must be {FORM_TYPE}", HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    return BrowserRequest(
        head.method.decode("ascii"),
        tuple(unquote(each) for each in path[1:].split("/")) if path != "/" else (),
        _pairs(query),
        fields,
        _pairs(body.decode("latin-1")),
    )


def _pairs(text: str) -> dict[str, str]:
    """Raises BadRequest."""
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=FORM_FIELDS))
    except ValueError as exc:
        raise BadRequest("the form has too many fields") from exc
