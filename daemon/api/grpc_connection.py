"""A connection whose first request was for the control API: its calls served side by side, to its end.

One task reads, one writes, and each call is a task of its own. A client that does not read is not read from either, and is
let go after SEND_DEADLINE_S. A connection whose caller has proved nothing ends with `stranger_age`, as any stranger's.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Mapping

import trio

from bentpipe.daemon.accounts.contract import Access, Authority, Credentials
from bentpipe.daemon.api import account
from bentpipe.daemon.api.call import Call, Method, Stalled
from bentpipe.daemon.connections.outcomes import ConnectionCounters, ConnectionOver, Outcome
from bentpipe.daemon.connections.pacing import take_turn
from bentpipe.daemon.connections.quotas import QuotaKind
from bentpipe.daemon.connections.transport import TransportError
from bentpipe.daemon.edge.answered_times import AGE_GRACE_S, SEND_DEADLINE_S, varied_s
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.identity import TlsIdentity
from bentpipe.daemon.errors import BentpipeError, Draining, InvalidMetadata, LimitReached
from bentpipe.daemon.records.ids import quote
from bentpipe.daemon.tasks import Decision, Owner, run_owned
from bentpipe.proto.api_paths import PAGE_PATHS
from bentpipe.proto.errors import ErrorCode, GreetingError
from bentpipe.proto.events import HeaderList
from bentpipe.proto.grpc_server import API_BOUNDS, CallBegan, CallComplete, CallData, CallEnded, GrpcServer
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.messages import MessageError, is_grpc
from bentpipe.proto.refusal import PIECE_BYTES
from bentpipe.proto.request import MetadataError, parse_request

log = logging.getLogger("bentpipe.api")

OUTBOX_BYTES = 64 << 10
"""Of answers that wait for the socket, after which the methods wait too."""
CALL_BYTES = 16 << 10
"""What is counted for a call beside its words: its task, scopes and messages."""

SHOWN_PATH_CHARS = 200
"""Of a path that nobody serves, in the answer: a longer one only costs, since Python encodes each character."""

NOT_GRPC = b"This is a gRPC service: POST, content-type application/grpc.\n"
HTTP_METHOD_NOT_ALLOWED, HTTP_UNSUPPORTED_MEDIA_TYPE = 405, 415
BROKEN_WORDS = "the edge host has made a mistake; its log says which"
TURNED_AWAY = "this connection was without a request for too long to lead to a satellite: connect again"
DRAINING_WORDS = "the edge host is shutting down; try again in a moment"


class Services:
    """What every connection shares: the methods, who may call them, and whether the daemon drains."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        authority: Authority,
        counters: ConnectionCounters,
        stranger_age_s: float,
    ) -> None:
        """`methods` are by path, "/package.Service/Method"."""
        self.methods = methods
        self.authority = authority
        self.pages = account.AccountPages(authority)
        self.counters = counters
        self.stranger_age_s = stranger_age_s
        self.draining = trio.Event()

    def count(self, path: str, status: GrpcStatus) -> None:
        """Count a call's end by its method, if there is one, so that strangers make no labels."""
        self.counters.answers[f"{self._name(path)} {status.name}"] += 1

    def took(self, path: str, seconds: float, connection_id: str) -> None:
        """Note how long a call took."""
        self.counters.call_times.observe(self._name(path), seconds, connection_id)

    def _name(self, path: str) -> str:
        return path.rpartition("/")[2] if path in self.methods else "other"


class GrpcConnection:
    """One such connection."""

    def __init__(
        self,
        services: Services,
        caller: Caller,
        tls: TlsIdentity,
        *,
        decides: Callable[[HeaderList], bool] | None = None,
    ) -> None:
        """`decides`: the client has made no request yet; it says whether the first one is for the API."""
        self._services = services
        self._decides = decides
        self._caller = caller
        self._tls = tls
        self._server = GrpcServer(API_BOUNDS)
        self._server.tail = quote(caller.record.id)
        self._calls: dict[int, Call] = {}
        self._pages: dict[int, account.IncompleteRequest] = {}
        self._nursery: trio.Nursery | None = None
        self._reading = trio.CancelScope()
        self._failure: TransportError | ConnectionOver | None = None
        """How the connection broke."""
        self._unsent = True
        """Whether there may be something to send."""
        self._something = trio.Event()
        self._all_sent = trio.Event()
        self._moved = trio.Event()
        """Windows may have opened, or a call has ended."""

    @property
    def last_stream(self) -> int:
        """The highest stream that the client opened; 0 if none."""
        return self._server.last_stream

    def dispose(self) -> None:
        """Let go of what it keeps now, and not at some collection."""
        self._server.dispose()

    async def run(self) -> Outcome:
        """Serve until either side ends it. Raises TransportError, ConnectionOver."""
        outcome = Outcome.ANSWERED
        if self._decides is not None:
            self._admit_by_certificate()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._write)
            nursery.start_soon(self._watch_end)
            try:
                with self._reading:
                    await self._read()
            except GreetingError as exc:
                self._services.counters.count_malformed(exc)
                self._caller.record.error = str(exc)
                outcome = Outcome.MALFORMED
            except (TransportError, ConnectionOver) as exc:
                self._failure = exc
            for call in list(self._calls.values()):
                self._end_call(call)
            if self._failure is None:
                if not self._server.ended:
                    self._server.close()
                self._poke()
                with contextlib.suppress(TransportError, ConnectionOver):
                    await self._flush()
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure
        return Outcome.PROBE if self._decides is not None and outcome is Outcome.ANSWERED else outcome

    def _admit_by_certificate(self) -> None:
        """Put a client that has made no request on its principal's account, if its certificate is known."""
        if self._tls.certificate_der is not None:
            with contextlib.suppress(BentpipeError):
                self._promote(self._services.authority.authenticate(Credentials(None, self._tls.certificate_der)))

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Read until the client has left, or there is nothing left to read for. Raises as `run`, and GreetingError."""
        await self._receive(self._caller.take_all())
        while not self._server.ended:
            await self._flush()
            if self._server.pause_s > 0:
                await trio.sleep(self._server.pause_s)
            data = self._caller.transport.receive_nowait()
            if data is None:
                await self._caller.transport.wait_readable()
            elif not data:
                return
            else:
                await self._receive(data)

    async def _receive(self, data: bytes) -> None:
        for at in range(0, len(data), PIECE_BYTES):
            await take_turn(last=self._caller.place.kind is not QuotaKind.PRINCIPAL)
            now = trio.current_time()
            try:
                events = self._server.receive_data(data[at : at + PIECE_BYTES], now)
            finally:
                self._poke()  # h2 has something to say in any case: an ACK, a window, a GOAWAY
            for event in events:
                match event:
                    case CallBegan(stream_id, headers) if self._is_for_another(headers):
                        self._server.turn_away(TURNED_AWAY)
                        return
                    case CallBegan(stream_id, headers):
                        self._begin(stream_id, headers, now)
                    case CallData(stream_id, body, window_bytes):
                        self._take_data(stream_id, body, window_bytes)
                    case CallComplete(stream_id):
                        self._complete(stream_id)
                    case CallEnded(stream_id):
                        self._pages.pop(stream_id, None)
                        ended = self._calls.get(stream_id)
                        if ended is not None:
                            ended.ended_by_client = True
                            self._end_call(ended)
            self._bound()
            self._tell_moved()

    def _is_for_another(self, headers: HeaderList) -> bool:
        """Whether this is the client's first request, and for a satellite or for health: nothing here passes it on."""
        decides = self._decides
        if decides is None:
            return False
        if not decides(headers):
            return True
        self._decides = None
        self._caller.place.has_request()
        return False

    def _bound(self) -> None:
        """Count what is kept. Raises GreetingError. What the principal may keep no more is refused, call by call."""
        kept = sum(CALL_BYTES + call.kept_bytes for call in self._calls.values())
        self._server.bound(kept)
        try:
            self._caller.place.keep(self._server.kept_bytes + kept)
        except LimitReached as exc:
            for call in [each for each in self._calls.values() if each.kept_bytes]:
                self._refuse(call, exc.status, exc.peer_hint)

    def _begin(self, stream_id: int, headers: HeaderList, now: float) -> None:
        fields = dict(headers)
        path = fields.get(b":path", b"").decode("latin-1")
        if path.startswith(PAGE_PATHS):
            self._begin_page(stream_id, headers, path)
            return
        if fields.get(b":method") != b"POST":
            self._server.send_text(stream_id, HTTP_METHOD_NOT_ALLOWED, NOT_GRPC)
            self._services.counters.answers["HTTP 405"] += 1
            return
        if not is_grpc(fields.get(b"content-type", b"")):
            self._server.send_text(stream_id, HTTP_UNSUPPORTED_MEDIA_TYPE, NOT_GRPC)
            self._services.counters.answers["HTTP 415"] += 1
            return
        method = self._services.methods.get(path)
        if method is None:
            self._finish(stream_id, path, GrpcStatus.UNIMPLEMENTED, f"unknown method {path[:SHOWN_PATH_CHARS]}")
            return
        try:
            access = self._authenticate(headers)
        except BentpipeError as exc:
            self._finish(stream_id, path, method.status_of(exc), exc.peer_hint)
            return
        source = self._caller.arrival.address
        call = self._calls[stream_id] = Call(self, stream_id, headers, access, now, source=source)
        told = functools.partial(self._broke, call)
        self._running.start_soon(run_owned, Owner("api call", path, Decision.GIVE_UP, told), self._serve, call, method)

    @property
    def _running(self) -> trio.Nursery:
        if self._nursery is None:
            raise AssertionError("not running")
        return self._nursery

    def _begin_page(self, stream_id: int, headers: HeaderList, target: str) -> None:
        method = dict(headers).get(b":method", b"").decode("latin-1")
        authorizations = [value for name, value in headers if name == b"authorization"]
        request = account.request_of(method, target, authorizations, self._tls.certificate_der)
        self._pages[stream_id] = account.IncompleteRequest(request)

    async def _serve_page(self, stream_id: int, request: account.HttpRequest) -> None:
        self._answer_page(stream_id, request, await self._services.pages.answer(request, self._promote))

    def _answer_page(self, stream_id: int, request: account.HttpRequest, answer: account.HttpAnswer) -> None:
        self._services.counters.answers[answer.label] += 1
        text = b"" if request.method == "HEAD" else answer.data
        self._server.send_text(stream_id, answer.status, text, b"application/json")
        self._poke()
        self._tell_moved()

    def _promote(self, access: Access) -> None:
        self._caller.place.promote(access.name, None)

    def _authenticate(self, headers: HeaderList) -> Access:
        """Say who calls, and put the connection on its account. Raises BentpipeError."""
        if self._services.draining.is_set():
            raise Draining(DRAINING_WORDS)
        try:
            token = parse_request(headers).token
        except MetadataError as exc:
            raise InvalidMetadata(str(exc)) from exc
        access = self._services.authority.authenticate(Credentials(token, self._tls.certificate_der))
        self._promote(access)
        return access

    def _take_data(self, stream_id: int, body: bytes, window_bytes: int) -> None:
        call = self._calls.get(stream_id)
        if call is None:  # a page reads no body; anything else was answered without waiting for its request
            self.acknowledge(stream_id, window_bytes)
            self._pass_over(stream_id, len(body))
            return
        try:
            call.receive_data(body, window_bytes)
        except MessageError as exc:
            self._refuse(call, exc.status, str(exc))

    def _pass_over(self, stream_id: int, body_bytes: int) -> None:
        """Count the body of a page's request, and refuse one that is too long."""
        page = self._pages.get(stream_id)
        if page is not None:
            page.body_bytes += body_bytes
            if page.body_bytes > account.BODY_BYTES:
                del self._pages[stream_id]
                self._answer_page(stream_id, page.request, account.BODY_TOO_LONG)

    def _complete(self, stream_id: int) -> None:
        page = self._pages.pop(stream_id, None)
        if page is not None:
            owner = Owner("api page", page.request.path, Decision.GIVE_UP)
            self._running.start_soon(run_owned, owner, self._serve_page, stream_id, page.request)
        call = self._calls.get(stream_id)
        if call is not None:
            try:
                call.complete()
            except MessageError as exc:
                self._refuse(call, exc.status, str(exc))

    def _refuse(self, call: Call, status: GrpcStatus, words: str) -> None:
        self._finish(call.stream_id, call.path, self._services.methods[call.path].told(status), words)
        self._end_call(call)

    # -- calls -------------------------------------------------------------------------------------------------------

    async def _serve(self, call: Call, method: Method) -> None:
        status, words = GrpcStatus.OK, ""
        with call.scope:
            try:
                await method.serve(call)
            except BentpipeError as exc:
                status, words = method.status_of(exc), exc.peer_hint
                fields = {"id": self._caller.record.id, "peer": self._caller.peer, "principal": call.access.name}
                fields["path"] = call.path
                log.info("call refused", extra={"fields": {**fields, "status": status.name, "error": str(exc)}})
            except Stalled:
                self._server.reset(call.stream_id, ErrorCode.ENHANCE_YOUR_CALM)
                status = GrpcStatus.CANCELLED
        self._services.took(call.path, trio.current_time() - call.began, self._caller.record.id)
        if call.scope.cancelled_caught:
            status, words = GrpcStatus.CANCELLED, ""
            if not call.ended_by_client and trio.current_time() >= call.deadline:
                status, words = GrpcStatus.DEADLINE_EXCEEDED, "the call's own grpc-timeout is over"
        if self._calls.pop(call.stream_id, None) is not None:
            self._finish(call.stream_id, call.path, status, words)
        elif call.ended_by_client:
            self._services.count(call.path, GrpcStatus.CANCELLED)

    def _broke(self, call: Call, failure: Exception) -> None:
        """A method has a bug. gRPC has UNKNOWN for that; clients repeat INTERNAL, and would repeat the bug."""
        self._calls.pop(call.stream_id, None)
        self._finish(call.stream_id, call.path, GrpcStatus.UNKNOWN, BROKEN_WORDS)

    def _finish(self, stream_id: int, path: str, status: GrpcStatus, words: str) -> None:
        self._services.count(path, status)
        self._server.finish(stream_id, status, words)
        self._poke()
        self._tell_moved()

    def _end_call(self, call: Call) -> None:
        self._calls.pop(call.stream_id, None)
        call.scope.cancel()

    # -- what calls need ---------------------------------------------------------------------------------------------

    def send(self, stream_id: int, message: bytes) -> None:
        """See `call.Connection`."""
        self._server.send_message(stream_id, message)
        self._poke()

    def acknowledge(self, stream_id: int, window_bytes: int) -> None:
        """See `call.Connection`."""
        self._server.acknowledge(stream_id, window_bytes)
        self._poke()

    async def wait_sent(self, stream_id: int, most_bytes: int) -> None:
        """See `call.Connection`."""
        await trio.lowlevel.checkpoint()
        while self._server.unsent(stream_id) > most_bytes or self._server.buffered_bytes > OUTBOX_BYTES:
            await self._moved.wait()

    def _tell_moved(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    # -- writing and the end -----------------------------------------------------------------------------------------

    def _poke(self) -> None:
        """There may be something to send."""
        self._unsent = True
        self._something.set()

    async def _write(self) -> None:
        """Send what there is to say, until cancelled or the connection breaks."""
        try:
            while True:
                data = self._server.data_to_send()
                if data:
                    with trio.move_on_after(SEND_DEADLINE_S) as deadline:
                        await self._caller.flush()
                        await self._caller.transport.send_all(data)
                    if deadline.cancelled_caught:
                        raise ConnectionOver(Outcome.BROKEN)
                    self._tell_moved()
                    continue
                self._unsent = False
                self._all_sent.set()
                self._all_sent = trio.Event()
                await self._something.wait()
                self._something = trio.Event()
        except (TransportError, ConnectionOver) as exc:
            self._failure = exc
            self._all_sent.set()
            self._reading.cancel()

    async def _flush(self) -> None:
        """Wait until the client has taken all that is to be said. Raises TransportError, ConnectionOver."""
        while self._unsent and self._failure is None:
            await self._all_sent.wait()
        if self._failure is not None:
            raise self._failure

    async def _watch_end(self) -> None:
        """End the connection in good order when the daemon drains, or when a stranger has been here for too long."""
        ends_at = trio.current_time() + varied_s(self._services.stranger_age_s)
        while True:
            with trio.move_on_at(ends_at):
                await self._services.draining.wait()
            if self._services.draining.is_set():
                break
            if self._caller.place.kind is QuotaKind.PRINCIPAL:
                ends_at = math.inf
                continue
            break
        self._server.announce_end()
        self._poke()
        grace = math.inf if self._services.draining.is_set() else AGE_GRACE_S
        with trio.move_on_after(grace):
            while self._server.open_streams:
                await self._moved.wait()
        self._reading.cancel()
