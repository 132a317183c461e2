"""grpc.health.v1.Health: the health of the daemon and, for callers that may use them, of satellites. Wakes no satellite.

Service "" is the daemon, or the satellite that the request's metadata or server name ask for; "ORG/NAME" is a satellite.
A satellite's health needs the same proof as its use, and "unknown" and "not yours" get the same answer. A satellite that
sleeps is SERVING: if a client calls it, the client is answered.
"""

import dataclasses
from collections.abc import Callable

from bentpipe.daemon.edge.identity import Claim, Identities, TlsIdentity
from bentpipe.daemon.errors import BentpipeError, InvalidMetadata, NoSuchSatellite
from bentpipe.daemon.fleet.batched_release import BatchedEvent, BatchedRelease
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.proto.answering import AnsweredCall, Answering
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.health import SERVICE_PATH, HealthError, ServingStatus, decode_request, encode_response
from bentpipe.proto.messages import is_grpc
from bentpipe.proto.request import MetadataError, parse_request

USABLE = {
    SatelliteState.OPERATIONAL,
    SatelliteState.SLEEP,
    SatelliteState.STARTING,
    SatelliteState.STOPPING,
    SatelliteState.UPDATING,
}
NOT_GRPC = b"This is grpc.health.v1.Health: POST, content-type application/grpc.\n"
HTTP_METHOD_NOT_ALLOWED, HTTP_UNSUPPORTED_MEDIA_TYPE = 405, 415

Subject = SatelliteKey | None
"""A satellite, or the daemon itself."""


class HealthBoard:
    """Knows the health of the daemon and of each satellite, and wakes the tasks that wait for a change."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._draining = self._leaving = False
        self._batches = BatchedRelease()
        self._waiting: dict[BatchedEvent, None] = {}
        self.changes = 0
        """How often anything may have changed."""

    @property
    def ending(self) -> bool:
        """Whether what is asked here has to be asked on another connection from now on."""
        return self._draining or self._leaving

    async def wait_change(self, seen: int) -> None:
        """Return when there are more `changes` than `seen`. Of thousands of tasks that wait, a few return in each turn."""
        if self.changes != seen:
            return
        news = self._batches.event()
        self._waiting[news] = None
        try:
            await news.wait()
        finally:
            self._waiting.pop(news, None)

    def drain(self) -> None:
        """Say NOT_SERVING for everything from now on."""
        self._draining = True
        self.change()

    def leave(self) -> None:
        """End the connections of those who ask, and say the same as before: the next control plane takes them."""
        self._leaving = True
        self.change()

    def change(self) -> None:
        """Wake all tasks that wait for a change."""
        self.changes += 1
        waiting, self._waiting = self._waiting, {}
        for news in waiting:
            news.set()

    def status(self, subject: Subject) -> ServingStatus:
        """Say what the status is now. Raises NoSuchSatellite."""
        state = None if subject is None else self._fleet.get(subject).shown_state
        if self._draining:
            return ServingStatus.NOT_SERVING
        if state is SatelliteState.UNKNOWN:
            return ServingStatus.UNKNOWN
        return ServingStatus.SERVING if state is None or state in USABLE else ServingStatus.NOT_SERVING


@dataclasses.dataclass(slots=True)
class _Watch:
    subject: Subject
    claim: Claim | None
    """The client's right to know; None for the daemon's own health."""
    last: ServingStatus | None = None


class HealthService:
    """The calls of one connection."""

    def __init__(
        self,
        board: HealthBoard,
        identities: Identities,
        answering: Answering,
        tls: TlsIdentity,
        domain: str | None,
        proved: Callable[[Claim], None] = lambda claim: None,
    ) -> None:
        """`proved` is called for every call whose client may use the satellite that it asks about."""
        self._board = board
        self._identities = identities
        self._answering = answering
        self._tls = tls
        self._domain = domain
        self._proved = proved
        self._watches: dict[int, _Watch] = {}

    @property
    def watching(self) -> bool:
        """Whether the client waits for changes."""
        return bool(self._watches)

    def end(self, stream_id: int) -> None:
        """Forget a call that the client has ended."""
        self._watches.pop(stream_id, None)

    def handle(self, call: AnsweredCall) -> str:
        """Answer a call. Returns its method and result, for the counters."""
        fields = dict(call.headers)
        path = fields.get(b":path", b"").decode("latin-1")
        if fields.get(b":method") != b"POST":
            self._answering.send_text(call.stream_id, HTTP_METHOD_NOT_ALLOWED, NOT_GRPC)
            return "HTTP 405"
        if not is_grpc(fields.get(b"content-type", b"")):
            self._answering.send_text(call.stream_id, HTTP_UNSUPPORTED_MEDIA_TYPE, NOT_GRPC)
            return "HTTP 415"
        method = path.removeprefix(SERVICE_PATH)
        if not path.startswith(SERVICE_PATH) or method not in ("Check", "Watch"):
            words = "this connection began with the daemon's own services, and this is none of them"
            self._answering.finish(call.stream_id, GrpcStatus.UNIMPLEMENTED, words)
            return "UNIMPLEMENTED"
        try:
            return f"{method} {self._answer(call, watch=method == 'Watch')}"
        except BentpipeError as exc:
            self._answering.finish(call.stream_id, exc.status, exc.peer_hint)
            return f"{method} {exc.status.name}"

    def _answer(self, call: AnsweredCall, *, watch: bool) -> str:
        try:
            claim = self._claim(call)
            subject = claim.key if claim is not None else None
            status = self._board.status(subject)
        except NoSuchSatellite:
            # By the protocol a Watch waits for a service that does not exist yet.
            if not watch:
                raise
            self._answering.send_message(call.stream_id, encode_response(ServingStatus.SERVICE_UNKNOWN))
            return ServingStatus.SERVICE_UNKNOWN.name
        if watch:
            self._watches[call.stream_id] = _Watch(subject, claim)
            self.publish()
        else:
            self._answering.send_message(call.stream_id, encode_response(status))
            self._answering.finish(call.stream_id, GrpcStatus.OK)
        return status.name

    def _claim(self, call: AnsweredCall) -> Claim | None:
        """Check the client's right to know; None if it asks about the daemon. Raises BentpipeError."""
        try:
            service = decode_request(call.body)
            request = parse_request(call.headers)
        except (HealthError, MetadataError) as exc:
            raise InvalidMetadata(str(exc)) from exc
        org, slash, name = service.partition("/")
        if service and not slash:
            raise NoSuchSatellite(f"unknown service {service!r}", peer_hint="unknown service")
        if service and request.satellite is not None and request.satellite != (org, name):
            raise InvalidMetadata("the service and the metadata are for different satellites")
        if service:
            request = dataclasses.replace(request, satellite=(org, name))
        if not self._identities.names_satellite(request, self._tls, self._domain):
            return None
        claim = self._identities.identify(request, self._tls, self._domain)
        self._identities.authorize(claim)
        self._proved(claim)
        return claim

    def publish(self) -> None:
        """Send every Watch a status that has changed. If a Watch's window is full, it gets the newest status later."""
        for stream_id, watch in list(self._watches.items()):
            try:
                if watch.claim is not None:
                    self._identities.check_again(watch.claim)
                status = self._board.status(watch.subject)
            except BentpipeError as exc:  # the client has lost its right to know
                del self._watches[stream_id]
                self._answering.finish(stream_id, exc.status, exc.peer_hint)
                continue
            if status is not watch.last and not self._answering.unsent(stream_id):
                watch.last = status
                self._answering.send_message(stream_id, encode_response(status))
