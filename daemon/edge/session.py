"""One client, from accept to hand-off or refusal.

The opening decides who answers (`services.py`): a service of the daemon's own, or the satellite that the first request asks
for. This is the only place where a connection's error is told to the client, logged and dropped.
"""

import contextlib
import logging

import trio

from bentpipe.daemon.connections.ends import refused
from bentpipe.daemon.connections.outcomes import ConnectionOver, Outcome
from bentpipe.daemon.connections.pacing import take_turn
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.connections.quotas import QuotaKind
from bentpipe.daemon.connections.transport import OverLimit, PeerLeft, TransportError
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.edge import Edge
from bentpipe.daemon.edge.identity import names_any_satellite
from bentpipe.daemon.edge.opening import TLS_WANTED, FirstRequest, OtherProtocol, read_opening
from bentpipe.daemon.edge.services import ServedConnection, answer_to, service_of
from bentpipe.daemon.edge.splicing import Splicing
from bentpipe.daemon.errors import BentpipeError, InvalidMetadata, TlsWanted
from bentpipe.daemon.records.ids import quote
from bentpipe.daemon.records.record import Phase
from bentpipe.proto.errors import ErrorCode, GreetingError, over
from bentpipe.proto.events import PeerKind
from bentpipe.proto.grpc_server import ANSWERING_BYTES, STREAM_BYTES
from bentpipe.proto.grpc_timeout import tell_within_s
from bentpipe.proto.refusal import PIECE_BYTES, Refusal, goaway, too_late
from bentpipe.proto.request import MetadataError, parse_request
from bentpipe.proto.states import State
from bentpipe.proto.trace_context import trace_context

log = logging.getLogger("bentpipe.edge")

REFUSAL_DEADLINE_S = 5.0
"""To send a refusal and let the client read it."""


class Session:
    """One accepted connection; `run` takes it to its end and never raises an Exception."""

    def __init__(self, edge: Edge, caller: Caller, port: Port) -> None:
        self._edge = edge
        self._client = caller.transport
        self._port = port
        self._caller = caller
        self._record = caller.record
        self._served: ServedConnection | None = None
        """The connection in the hands of the service that answers it, if one does."""

    @property
    def _peer(self) -> str:
        return self._caller.peer

    async def run(self) -> None:
        """Serve the connection and count its outcome. Its place is released, unless the splice has it."""
        outcome: Outcome | None = None
        with self._record, self._caller.place as place:
            try:
                with trio.CancelScope() as place.scope:
                    outcome = await self._outcome()
                    # The only way out: the client can read our last words, even if more of its bytes lie unread.
                    await self._client.close_gracefully()
                if outcome is None:
                    outcome = self._tell_evicted()
            finally:
                self._client.close()
                if self._served is not None:
                    self._served.dispose()
                if outcome not in (None, Outcome.SPLICED):
                    self._caller.note_end(outcome)
        self._edge.counters.ended[outcome] += 1

    async def _outcome(self) -> Outcome:
        try:
            return await self._serve()
        except ConnectionOver as exc:
            if exc.limit is not None:
                self._edge.counters.malformed[exc.limit] += 1
            return exc.outcome
        except TransportError as exc:
            self._record.error = str(exc)
            return Outcome.BROKEN
        except Exception as exc:
            self._record.error = f"{type(exc).__name__}: {exc}"
            log.exception("session crashed", extra={"fields": {"id": self._record.id, "peer": self._peer}})
            return Outcome.CRASHED

    async def _serve(self) -> Outcome:
        try:
            with self._edge.greetings.scope() as deadline:
                opening = await read_opening(self._caller, self._port, self._edge.announcements)
            if deadline.cancelled_caught:
                if self._has_api and self._caller.greeting.asks_nothing:
                    self._served = self._edge.api.open_waiting(self._caller, self._port.satellite_domain)
                    return await self._served.run()
                return await self._too_late()
            self._record.reach(Phase.GREETED)
            match opening:
                case FirstRequest():
                    return await self._answer(opening)
                case OtherProtocol(PeerKind.HTTP1, identity) if self._has_api:
                    self._served = self._edge.api.open_http1(self._caller, identity)
                    return await self._served.run()
                case OtherProtocol(kind):
                    return await self._answer_other(kind)
        except GreetingError as exc:
            return await self._malformed(exc)
        except OverLimit as exc:
            with contextlib.suppress(TransportError):  # OpenSSL may have ended it by an alert of its own
                await self._malformed(over(exc.limit))
            return Outcome.MALFORMED
        except BentpipeError as exc:
            return await self._refuse(exc)

    @property
    def _has_api(self) -> bool:
        return self._port.serves_api and not self._caller.wants_tls

    async def _answer(self, first: FirstRequest) -> Outcome:
        """Let the service answer that the first request is for, or its satellite. Raises what ends the connection."""
        edge, record = self._edge, self._record
        record.traceparent, record.tracestate = trace_context(first.headers.headers)
        services = (edge.api, *edge.services) if self._port.serves_api else edge.services
        domain = self._port.satellite_domain
        named = names_any_satellite(first.headers.headers, first.identity, domain)
        service = service_of(services, first.headers, names_satellite=named)
        if service is None:
            return await self._admit(first).run()
        self._served = service.open(self._caller, first.identity, domain)
        return await self._served.run()

    async def _answer_other(self, kind: PeerKind) -> Outcome:
        """Tell a client that it speaks a protocol that nobody answers here."""
        outcome, words = answer_to(kind, self._record.id, wants_tls=self._caller.wants_tls)
        self._caller.own()
        with trio.move_on_after(REFUSAL_DEADLINE_S):
            try:
                await self._client.send_all(words)
            except PeerLeft:
                return Outcome.PROBE
            await self._client.close_gracefully()
        return outcome

    def _admit(self, first: FirstRequest) -> Splicing:
        """Check that the client may use the satellite that it asks for. Raises BentpipeError."""
        tell_by = trio.current_time() + tell_within_s(first.headers.headers)
        try:
            request = parse_request(first.headers.headers)
        except MetadataError as exc:
            raise InvalidMetadata(str(exc)) from exc
        claim = self._edge.identities.identify(request, first.identity, self._port.satellite_domain)
        self._record.satellite, self._record.principal = claim.key, claim.who
        self._edge.identities.authorize(claim)
        satellite = self._edge.fleet.get(claim.key)
        self._caller.place.promote(claim.payer, claim.key)
        self._record.reach(Phase.ADMITTED)
        return Splicing(self._edge, self._caller, claim, satellite, tell_by)

    # -- words to the client -----------------------------------------------------------------------------------------

    async def _refuse(self, error: BentpipeError) -> Outcome:
        self._record.status, self._record.error = error.status.name, str(error)
        words, outcome = await self._refusal(error)
        if outcome is Outcome.REFUSED:
            self._record.finish(refused(error))
        await self._say(words)
        return outcome

    async def _refusal(self, error: BentpipeError) -> tuple[bytes, Outcome]:
        """Make a refusal of everything that the client has asked for so far, by h2."""
        refusal, last = Refusal(), self._caller.place.kind is QuotaKind.STRANGER
        said = self._caller.take_all()
        self._caller.place.note(len(said) + ANSWERING_BYTES + STREAM_BYTES * len(self._caller.greeting.open_streams))
        try:
            for at in range(0, len(said), PIECE_BYTES):
                await take_turn(last=last)
                refusal.receive_data(said[at : at + PIECE_BYTES])
            more = True
            while more:
                await take_turn(last=last)
                more = refusal.refuse_some(error.status, error.peer_hint, quote(self._record.id))
        except GreetingError as exc:
            # h2 reads more than the greeting, which leaves it to the satellite. Its GOAWAY then replaces the refusal.
            self._count_malformed(exc)
            return refusal.close(), Outcome.MALFORMED
        self._edge.counters.refusals[error.status.name] += 1
        return refusal.close(), Outcome.PLAIN_ON_TLS_PORT if isinstance(error, TlsWanted) else Outcome.REFUSED

    async def _malformed(self, error: GreetingError) -> Outcome:
        self._count_malformed(error)
        words = error.message + quote(self._record.id)
        await self._say(goaway(error.error_code, words, self._caller.greeting.last_stream))
        return Outcome.MALFORMED

    def _count_malformed(self, error: GreetingError) -> None:
        self._record.error = str(error)
        self._edge.counters.count_malformed(error)

    async def _too_late(self) -> Outcome:
        if self._caller.wants_tls and self._caller.greeting.state is not State.PREFACE:
            return await self._refuse(TlsWanted(TLS_WANTED))
        if self._caller.greeting.state not in (State.PREFACE, State.ENDED):
            await self._say(too_late(quote(self._record.id)))
        return Outcome.DEADLINE

    def _tell_evicted(self) -> Outcome:
        """Tell a stranger that it was evicted, as far as that is possible without a wait."""
        last = self._caller.greeting.last_stream if self._served is None else self._served.last_stream
        if self._caller.greeting.state not in (State.PREFACE, State.ENDED):
            self._caller.own()
            with contextlib.suppress(TransportError):
                words = (self._caller.place.eviction_words or "") + quote(self._record.id)
                self._client.send_nowait(goaway(ErrorCode.NO_ERROR, words, last))
                self._client.receive_nowait()  # closing with unread input would destroy our last words
        return Outcome.OVER_LIMIT

    async def _say(self, words: bytes) -> None:
        self._caller.place.note(len(words))
        self._caller.own()
        with trio.move_on_after(REFUSAL_DEADLINE_S):
            await self._caller.flush()
            await self._client.send_all(words)
            await self._client.close_gracefully()
