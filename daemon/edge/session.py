"""One client, from accept to hand-off or refusal.

Straight line: sniff, TLS, greeting, admission, lease (held), dial, replay, hand-off. What is said to the client in
words is said here and only here, and this is the only place where a connection's error is logged and dropped.
"""

import dataclasses
import logging
from collections.abc import Callable

import trio

from bentpipe.daemon.edge.admission import Admission, Principal
from bentpipe.daemon.edge.dial import dial
from bentpipe.daemon.edge.handoff import HandOff, Splice
from bentpipe.daemon.edge.outcomes import Counters, Gone, Outcome
from bentpipe.daemon.edge.replay import relay_until_ack
from bentpipe.daemon.edge.transport import Transport, TransportError
from bentpipe.daemon.errors import BentpipeError, InvalidMetadata
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.satellite import Lease, Satellite
from bentpipe.daemon.model import SatelliteKey
from bentpipe.native.tls import TlsClientContext, TlsConnection, TlsServerContext
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.events import GoAwayReceived, NotHttp2, PeerKind, RequestHeaders
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.refusal import HTTP1_ANSWER, TLS_ALERT, Responder
from bentpipe.proto.request import MetadataError, RouteRequest, parse_request

log = logging.getLogger("bentpipe.edge")

REPLAY_DEADLINE_S = 10.0
"""How long replay may take, and the ACK of our SETTINGS may be missing: it would break the satellite's connection, so
without it there is no splice."""

REFUSAL_DEADLINE_S = 5.0
"""To send a refusal and let the client read it."""

TLS_RECORD_HANDSHAKE = b"\x16"
"""First byte of every TLS connection (RFC 8446 §5.1, ContentType handshake)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Edge:
    """What every session shares."""

    fleet: Fleet
    admission: Admission
    handoff: HandOff
    counters: Counters
    satellite_tls: dict[SatelliteKey, tuple[TlsClientContext, str | None]]
    greeting_deadline_s: float


class Session:
    """One accepted connection; `run` takes it to its end and never raises an Exception."""

    def __init__(self, edge: Edge, client: Transport, tls: TlsServerContext | None, peer: str) -> None:
        self._edge = edge
        self._client = client
        self._tls = tls
        self._peer = peer
        self._greeting = Greeting()
        self._outbox = bytearray()

    async def run(self, on_splice_end: Callable[[], None]) -> bool:
        """Serve the connection and count its outcome; True if it was spliced: `on_splice_end` is then called later."""
        self._on_splice_end = on_splice_end
        try:
            outcome = await self._serve()
        except Gone as exc:
            outcome = exc.outcome
        except TransportError as exc:
            log.info("connection broke", extra={"fields": {"peer": self._peer, "error": str(exc)}})
            outcome = Outcome.BROKEN
        except Exception:
            log.exception("session crashed", extra={"fields": {"peer": self._peer}})
            outcome = Outcome.CRASHED
        finally:
            self._client.close()
        self._edge.counters.ended[outcome] += 1
        return outcome is Outcome.SPLICED

    async def _serve(self) -> Outcome:
        try:
            with trio.move_on_after(self._edge.greeting_deadline_s) as deadline:
                await self._start_tls()
                headers = await self._greet()
            if deadline.cancelled_caught:
                return Outcome.DEADLINE
            request, principal, satellite = self._admit(headers)
            return await self._hold(request, principal, satellite)
        except GreetingError as exc:
            return await self._malformed(exc)
        except BentpipeError as exc:
            return await self._refuse(exc)

    # -- before the request ------------------------------------------------------------------------------------------

    async def _start_tls(self) -> None:
        if self._tls is None:
            return
        first = await self._client.peek_byte()
        if not first:
            raise Gone(Outcome.PROBE)
        if first != TLS_RECORD_HANDSHAKE:
            with trio.move_on_after(REFUSAL_DEADLINE_S):
                await self._client.send_all(Responder.wrong_port("this port speaks TLS"))
                await self._client.close_gracefully()
            raise Gone(Outcome.PLAIN_ON_TLS_PORT)
        try:
            await self._client.start_tls(TlsConnection(self._tls, self._client.fileno))
        except TransportError as exc:
            log.info("TLS handshake failed", extra={"fields": {"peer": self._peer, "error": str(exc)}})
            raise Gone(Outcome.TLS_FAILED) from exc

    async def _greet(self) -> RequestHeaders:
        """Read to the end of the first header block. Raises GreetingError, Gone."""
        received = False
        while True:
            data = self._client.receive_nowait()
            if data is None:
                if received:
                    self._greeting.end_of_first_flight()
                    await self._flush()
                await self._client.wait_readable()
                continue
            if not data:
                raise Gone(Outcome.PROBE)
            received = True
            for event in self._greeting.receive_data(data, trio.current_time()):
                match event:
                    case RequestHeaders():
                        return event
                    case NotHttp2(kind=kind):
                        await self._not_http2(kind)
                    case _:
                        pass
            await self._flush()

    async def _not_http2(self, kind: PeerKind) -> None:
        answer = {PeerKind.HTTP1: HTTP1_ANSWER, PeerKind.TLS: TLS_ALERT, PeerKind.OTHER: b""}[kind]
        outcome = {
            PeerKind.HTTP1: Outcome.HTTP1,
            PeerKind.TLS: Outcome.TLS_ON_PLAIN_PORT,
            PeerKind.OTHER: Outcome.NOT_HTTP2,
        }[kind]
        await self._client.send_all(answer)
        await self._client.close_gracefully()
        raise Gone(outcome)

    def _admit(self, headers: RequestHeaders) -> tuple[RouteRequest, Principal, Satellite]:
        try:
            request = parse_request(headers.headers)
        except MetadataError as exc:
            raise InvalidMetadata(str(exc)) from exc
        principal = self._edge.admission.authenticate(request.token)
        key = SatelliteKey(request.satellite_org, request.satellite_name)
        self._edge.admission.authorize(principal, key)
        return request, principal, self._edge.fleet.get(key)

    # -- held --------------------------------------------------------------------------------------------------------

    async def _hold(self, request: RouteRequest, principal: Principal, satellite: Satellite) -> Outcome:
        """Wait for the satellite with the client in hand, then splice them. Raises BentpipeError, GreetingError, Gone."""
        key = SatelliteKey(request.satellite_org, request.satellite_name)
        failure: BentpipeError | GreetingError | TransportError | Gone | None = None
        async with trio.open_nursery() as nursery:
            watch = trio.CancelScope()
            watched = trio.Event()

            async def watch_client() -> None:
                nonlocal failure
                try:
                    with watch:
                        await self._read_while_held()
                except (GreetingError, TransportError, Gone) as exc:
                    failure = exc
                    nursery.cancel_scope.cancel()
                watched.set()

            nursery.start_soon(watch_client)
            try:
                async with satellite.lease(principal.name) as lease:
                    tls, server_name = self._edge.satellite_tls.get(key, (None, None))
                    target = await self._dial(satellite, lease, tls, server_name)
                    try:
                        watch.cancel()
                        await watched.wait()
                        await self._replay(target)
                        self._edge.handoff.hand_off(
                            self._client, target, Splice(key, principal.name, self._peer, lease, self._on_splice_end)
                        )
                        lease.keep()
                    finally:
                        target.close()
            except (BentpipeError, GreetingError, TransportError, Gone) as exc:
                failure = exc
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        log.info("spliced", extra={"fields": {"satellite": str(key), "principal": principal.name, "peer": self._peer}})
        return Outcome.SPLICED

    async def _dial(
        self, satellite: Satellite, lease: Lease, tls: TlsClientContext | None, server_name: str | None
    ) -> Transport:
        try:
            return await dial(lease.address, tls, server_name)
        except BentpipeError:
            satellite.report_unreachable()
            raise

    async def _read_while_held(self) -> None:
        """Keep the client's bytes and answer its PINGs until cancelled; a cancel falls on a wait, never on a read.

        Raises Gone when it leaves.
        """
        while True:
            self._send_outbox()
            data = None if self._greeting.transcript_full else self._client.receive_nowait()
            if data is None:
                await self._wait_held()
                continue
            if not data:
                raise Gone(Outcome.CLIENT_GONE)
            for event in self._greeting.receive_data(data, trio.current_time()):
                if isinstance(event, GoAwayReceived):
                    raise Gone(Outcome.CLIENT_GONE)
            self._outbox += self._greeting.data_to_send()
            await trio.lowlevel.checkpoint()

    async def _wait_held(self) -> None:
        """Wait for input, unless the transcript is full, and for room in the socket if the outbox has bytes."""
        async with trio.open_nursery() as nursery:
            if self._outbox:
                nursery.start_soon(self._cancel_after_writable, nursery.cancel_scope)
            if self._greeting.transcript_full:
                await trio.sleep_forever()
            await self._client.wait_readable()
            nursery.cancel_scope.cancel()

    async def _cancel_after_writable(self, scope: trio.CancelScope) -> None:
        await self._client.wait_writable()
        scope.cancel()

    async def _replay(self, target: Transport) -> None:
        """Send the satellite what the client said so far. Raises TransportError, GreetingError; Gone at the deadline."""
        with trio.move_on_after(REPLAY_DEADLINE_S) as deadline:
            await self._flush()
            await target.send_all(self._greeting.transcript_bytes)
            if self._greeting.awaiting_ack:
                await relay_until_ack(self._client, target, self._greeting.ack_filter())
        if deadline.cancelled_caught:
            log.info("the ACK of our SETTINGS never came", extra={"fields": {"peer": self._peer}})
            raise Gone(Outcome.DEADLINE)

    # -- words to the client -----------------------------------------------------------------------------------------

    def _send_outbox(self) -> None:
        if self._outbox:
            del self._outbox[: self._client.send_nowait(self._outbox)]

    async def _flush(self) -> None:
        """Send what the greeting has to say, behind what is still unsent."""
        self._outbox += self._greeting.data_to_send()
        while self._outbox:
            self._send_outbox()
            if self._outbox:
                await self._client.wait_writable()

    async def _refuse(self, error: BentpipeError) -> Outcome:
        log.info(
            "refused",
            extra={"fields": {"peer": self._peer, "status": error.status.name, "error": str(error)}},
        )
        self._edge.counters.refusals[error.status.name] += 1
        responder = Responder(self._greeting)
        await self._say(responder.refuse(error.status, error.peer_hint))
        return Outcome.REFUSED

    async def _malformed(self, error: GreetingError) -> Outcome:
        log.info("malformed", extra={"fields": {"peer": self._peer, "error": str(error)}})
        self._edge.counters.malformed[error.limit or error.error_code.name] += 1
        await self._say(Responder(self._greeting).goaway(error))
        return Outcome.MALFORMED

    async def _say(self, words: bytes) -> None:
        with trio.move_on_after(REFUSAL_DEADLINE_S):
            await self._flush()
            await self._client.send_all(words)
            await self._client.close_gracefully()
