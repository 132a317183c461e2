"""A connection that speaks HTTP/1.1, on the h11 library: requests one after the other, small and soon over."""

from http import HTTPStatus

import h11
import trio

from bentpipe.daemon.accounts.contract import Access
from bentpipe.daemon.api.account import BODY_BYTES, AccountPages, HttpAnswer, HttpRequest, request_of
from bentpipe.daemon.connections.outcomes import ConnectionCounters, Outcome
from bentpipe.daemon.connections.pacing import take_turn
from bentpipe.daemon.connections.quotas import QuotaKind
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.identity import TlsIdentity

HEAD_BYTES = 24 << 10
"""A request's line and fields: a token of 16 KiB, and the fields that clients and their proxies add."""
REQUESTS = 100
"""On one connection; the Earthly CLI makes a new one for each."""
REQUEST_DEADLINE_S = 10.0
"""From one answer to the next complete request, and for the client to read the answer."""


CONTINUE = h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[], reason=HTTPStatus.CONTINUE.phrase)
"""For a client that waits with its body (`Expect: 100-continue`, RFC 9110 §10.1.1)."""

NOT_HTTP = "this is not a request of HTTP/1.1, or it is too long"


class HttpConnection:
    """One such connection."""

    def __init__(
        self,
        pages: AccountPages,
        counters: ConnectionCounters,
        draining: trio.Event,
        caller: Caller,
        tls: TlsIdentity,
    ) -> None:
        self._pages = pages
        self._counters = counters
        self._draining = draining
        self._caller = caller
        self._tls = tls
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)

    @property
    def last_stream(self) -> int:
        """HTTP/1.1 has no streams."""
        return 0

    def dispose(self) -> None:
        """There is nothing to free: h11 keeps no cycle of references."""

    async def run(self) -> Outcome:
        """Serve until either side ends it, or the daemon drains. Raises TransportError."""
        self._h11.receive_data(self._caller.take_all())
        for _ in range(REQUESTS):
            with trio.move_on_after(REQUEST_DEADLINE_S) as deadline:
                try:
                    request = await self._next_request()
                except h11.RemoteProtocolError as exc:
                    await self._send(_error(HTTPStatus(exc.error_status_hint), NOT_HTTP), last=True)
                    return Outcome.ANSWERED
            if deadline.cancelled_caught:
                return Outcome.DEADLINE
            if request is None:
                return Outcome.ANSWERED
            # One read may bring a hundred requests.
            await take_turn(last=self._is_strangers)
            answer = await self._pages.answer(request, self._promote)
            with trio.move_on_after(REQUEST_DEADLINE_S):
                last = self._draining.is_set() or self._h11.their_state is not h11.DONE
                await self._send(answer, last=last, with_body=request.method != "HEAD")
            if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
                return Outcome.ANSWERED
            self._h11.start_next_cycle()
        return Outcome.ANSWERED

    async def _next_request(self) -> HttpRequest | None:
        """Read a complete request; None if the client ends the connection instead. Raises RemoteProtocolError."""
        head: h11.Request | None = None
        body_bytes = 0
        while True:
            match self._h11.next_event():
                case h11.Request() as head:
                    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in head.headers}:
                        # RFC 9112 §6.3: it may be an attempt to have a proxy and us disagree on where the request ends.
                        raise h11.RemoteProtocolError("two lengths of one body")
                case h11.Data(data=data):
                    body_bytes += len(data)
                    if body_bytes > BODY_BYTES:
                        raise h11.RemoteProtocolError("the body is too long", 413)
                case h11.EndOfMessage() if head is not None:
                    return self._request(head)
                case h11.NEED_DATA:
                    if self._h11.they_are_waiting_for_100_continue:
                        await self._caller.transport.send_all(self._h11.send(CONTINUE) or b"")
                    await self._read()
                case _:
                    return None

    async def _read(self) -> None:
        data = self._caller.transport.receive_nowait()
        while data is None:
            await self._caller.transport.wait_readable()
            data = self._caller.transport.receive_nowait()
        await take_turn(last=self._is_strangers)
        self._h11.receive_data(data)
        unread, _ = self._h11.trailing_data
        if self._caller.place.kind is QuotaKind.STRANGER:
            self._caller.place.keep(len(unread))

    @property
    def _is_strangers(self) -> bool:
        return self._caller.place.kind is not QuotaKind.PRINCIPAL

    def _request(self, head: h11.Request) -> HttpRequest:
        authorizations = [value for name, value in head.headers if name == b"authorization"]
        method, target = head.method.decode("ascii"), head.target.decode("latin-1")
        return request_of(method, target, authorizations, self._tls.certificate_der)

    def _promote(self, access: Access) -> None:
        self._caller.place.promote(access.name, None)

    async def _send(self, answer: HttpAnswer, *, last: bool, with_body: bool = True) -> None:
        self._counters.answers[answer.label] += 1
        data = answer.data
        fields = [
            ("content-type", "application/json"),
            ("content-length", str(len(data))),
            ("cache-control", "no-store"),
        ]
        if last:
            fields.append(("connection", "close"))
        out = (
            self._h11.send(h11.Response(status_code=answer.status, headers=fields, reason=answer.status.phrase)) or b""
        )
        if with_body:
            out += self._h11.send(h11.Data(data=data)) or b""
        out += self._h11.send(h11.EndOfMessage()) or b""
        await self._caller.transport.send_all(out)


def _error(status: HTTPStatus, words: str) -> HttpAnswer:
    return HttpAnswer(status, {"message": words}, f"HTTP {status.value}")
