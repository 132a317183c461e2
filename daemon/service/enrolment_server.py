"""Serves machines that want a certificate: HTTP/1.1 over TLS on a listener of its own, one request a connection.

`POST /v1/enrol` and `POST /v1/renew` take and answer JSON. The machine verifies the daemon by the authority in its user
data. Each process on a machine, builds included, may connect here. So connections are few, short, and limited for each
address, and what they send is bounded.
"""

import dataclasses
import json
import logging
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

import h11
import trio

from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.logs import log_limited
from bentpipe.daemon.pki.enrolment import Enrolments
from bentpipe.daemon.pki.requests import RequestError
from bentpipe.daemon.pki.rules import Denied
from bentpipe.daemon.tasks import Decision, Owner, run_owned

log = logging.getLogger("bentpipe.pki")

CONNECTIONS = 128
"""At once. If there are more, the oldest of the most crowded address is closed."""
CONNECTIONS_OF_ONE = 8
"""At once of one address: a machine needs one."""
BURST, PER_S, ADDRESSES = 50, 10.0, 4096
"""Connections of one address: at once and in the long run. A build that floods the port takes a few percent of the control
plane's time. Machines behind one NAT gateway try again by themselves."""
DEADLINE_S = 10.0
"""From accept to the end of the answer."""
HEAD_BYTES, BODY_BYTES = 8 << 10, 16 << 10
"""Of a request: a key and a signing request in PEM have some 600 bytes."""
RECEIVE_BYTES = 4 << 10
LIMITS = QuotaLimits(
    strangers=CONNECTIONS, strangers_bytes=CONNECTIONS * (128 << 10), per_prefix=CONNECTIONS_OF_ONE, admitted=0
)

ENROL, RENEW = "/v1/enrol", "/v1/renew"
FIELDS = {
    ENROL: ("satellite", "launch", "token", "request"),
    RENEW: ("satellite", "launch", "key", "request", "signature"),
}
"""What each request's JSON must have, all of it text; in the order of the functions' parameters."""
DENIED = "no certificate for this machine; the daemon's log says why"
"""For all denials: a caller must not learn which satellites there are."""
TRY_LATER = "the daemon cannot reach its store: try again"


class AddressRates:
    """A token bucket for each address. It remembers those that have used theirs, ADDRESSES at most."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._full_at: dict[str, float] = {}
        """When the bucket will be full again."""

    def take(self, address: str) -> bool:
        """Take a token. Returns False if there is none."""
        now = self._now()
        full_at = max(self._full_at.pop(address, now), now) + 1 / PER_S
        if round((full_at - now) * PER_S, 3) > BURST:
            self._full_at[address] = full_at - 1 / PER_S
            return False
        self._full_at[address] = full_at
        if len(self._full_at) > ADDRESSES:
            del self._full_at[next(iter(self._full_at))]  # it has been silent for longest
        return True


@dataclasses.dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    body: Mapping[str, object]


class EnrolmentServer:
    """`make_context` returns the TLS context with the daemon's present certificate."""

    def __init__(
        self, sockets: Sequence[socket.socket], enrolments: Enrolments, make_context: Callable[[], ssl.SSLContext]
    ) -> None:
        self._sockets = sockets
        self._make_context = make_context
        self._context = make_context()
        self._enrolments = enrolments
        self._quotas = Quotas(LIMITS, trio.current_time)
        self._rates = AddressRates(trio.current_time)

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """(IP address, port) of each socket, as bound."""
        return tuple(sock.getsockname()[:2] for sock in self._sockets)

    def renew_context(self) -> None:
        """The daemon's certificate is another one."""
        self._context = self._make_context()

    async def run_enrolment(self) -> None:
        """Serve for ever; closes the sockets when cancelled."""
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in self._sockets]
        try:
            async with trio.open_nursery() as machines:
                for listener in listeners:
                    machines.start_soon(run_owned, Owner("enrolment"), self._accept_all, listener, machines)
        finally:
            for listener in listeners:
                listener.socket.close()

    async def _accept_all(self, listener: trio.SocketListener, machines: trio.Nursery) -> None:
        while True:
            stream = await listener.accept()
            machines.start_soon(run_owned, Owner("enrolment", decision=Decision.GIVE_UP), self._serve, stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                peer = str(stream.socket.getpeername()[0])
            except OSError:
                return  # it has left already
            if not self._rates.take(peer):
                return  # without a TLS handshake: that is what costs
            place = self._quotas.open(peer)
            tls = trio.SSLStream(stream, self._context, server_side=True, https_compatible=True)
            try:
                with trio.move_on_after(DEADLINE_S) as place.scope:
                    await self._answer_one(tls)
                    await tls.aclose()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                # A machine that does not know our authority; a scanner; or it has left.
                fields = {"peer": peer, "error": str(exc.__cause__ or exc)}
                log_limited(log, "enrolment connection", "a connection of a machine failed", fields)
            finally:
                place.release()

    async def _answer_one(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        try:
            path, body = await _read_request(stream, connection)
            answer = await self._answer(path, body)
        except h11.RemoteProtocolError as exc:
            answer = _refusal(HTTPStatus(exc.error_status_hint), str(exc))
        data = json.dumps(answer.body).encode()
        fields = [("content-type", "application/json"), ("content-length", str(len(data))), ("connection", "close")]
        if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        response = h11.Response(status_code=answer.status, headers=fields, reason=answer.status.phrase)
        for event in (response, h11.Data(data=data), h11.EndOfMessage()):
            await stream.send_all(connection.send(event) or b"")

    async def _answer(self, path: str, body: bytes) -> _Answer:
        try:
            fields = _fields_of(path, body)
            issued = await (self._enrolments.enrol(*fields) if path == ENROL else self._enrolments.renew(*fields))
        except RequestError as exc:
            return _refusal(HTTPStatus.BAD_REQUEST, str(exc))
        except Denied:
            return _refusal(HTTPStatus.FORBIDDEN, DENIED)
        except StoreError as exc:
            log_limited(log, "enrolment store", "no certificate can be given", {"error": str(exc)}, logging.ERROR)
            return _refusal(HTTPStatus.SERVICE_UNAVAILABLE, TRY_LATER)
        return _Answer(HTTPStatus.OK, dataclasses.asdict(issued))


async def _read_request(stream: trio.SSLStream[trio.SocketStream], connection: h11.Connection) -> tuple[str, bytes]:
    """Read a request. Returns its path and body. Raises RemoteProtocolError if it is malformed, too long or of no use."""
    path, body = "", b""
    while True:
        match connection.next_event():
            case h11.Request() as head:
                path = head.target.decode("ascii", errors="replace")
                if path not in FIELDS:
                    raise h11.RemoteProtocolError(f"there is only {ENROL} and {RENEW}", 404)
                if head.method != b"POST":
                    raise h11.RemoteProtocolError("POST only", 405)
            case h11.Data(data=data):
                body += data
                if len(body) > BODY_BYTES:
                    raise h11.RemoteProtocolError(f"the body is longer than {BODY_BYTES} bytes", 413)
            case h11.EndOfMessage():
                return path, body
            case h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(RECEIVE_BYTES)))
            case _:
                raise h11.RemoteProtocolError("the connection has ended before the request was complete")


def _fields_of(path: str, body: bytes) -> list[str]:
    """The request's fields in their order. Raises RequestError."""
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise RequestError("the body is not JSON") from exc
    wanted = FIELDS[path]
    if (
        not isinstance(found, dict)
        or set(found) != set(wanted)
        or not all(isinstance(found[each], str) for each in wanted)
    ):
        raise RequestError(f"the body must be an object in JSON with these texts and no other: {', '.join(wanted)}")
    return [found[each] for each in wanted]


def _refusal(status: HTTPStatus, words: str) -> _Answer:
    return _Answer(status, {"error": words})
