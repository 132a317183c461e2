"""One client, from accept to hand-off or refusal.

Straight line: opening, admission, lease (held), dial, replay, hand-off. This is the only place where a connection's
error is told to the client, logged and dropped.
"""

import dataclasses
import logging
from collections.abc import Callable

import trio

from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.dial import dial
from bentpipe.daemon.edge.handoff import HandOff, Splice
from bentpipe.daemon.edge.health import HealthBoard
from bentpipe.daemon.edge.identity import Claim, Identities, TlsIdentity
from bentpipe.daemon.edge.in_place import InPlace, is_ours
from bentpipe.daemon.edge.opening import Port, read_request
from bentpipe.daemon.edge.outcomes import Counters, Gone, Outcome
from bentpipe.daemon.edge.replay import relay_until_ack
from bentpipe.daemon.edge.transport import Transport, TransportError
from bentpipe.daemon.errors import BentpipeError, InvalidMetadata
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import SatelliteKey
from bentpipe.native.tls import TlsClientContext
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.events import RequestHeaders
from bentpipe.proto.refusal import Responder
from bentpipe.proto.request import MetadataError, parse_request

log = logging.getLogger("bentpipe.edge")

REPLAY_DEADLINE_S = 10.0
"""How long replay may take, and the ACK of our SETTINGS may be missing: it would break the satellite's connection, so
without it there is no splice."""

REFUSAL_DEADLINE_S = 5.0
"""To send a refusal and let the client read it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Edge:
    """What every session shares."""

    fleet: Fleet
    identities: Identities
    health: HealthBoard
    handoff: HandOff
    counters: Counters
    satellite_tls: dict[SatelliteKey, tuple[TlsClientContext, str | None]]
    greeting_deadline_s: float


class Session:
    """One accepted connection; `run` takes it to its end and never raises an Exception."""

    def __init__(self, edge: Edge, client: Transport, port: Port, peer: str) -> None:
        self._edge = edge
        self._caller = Caller(client, peer)
        self._client = client
        self._port = port
        self._peer = peer

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
                headers, identity = await read_request(self._caller, self._port)
            if deadline.cancelled_caught:
                return Outcome.DEADLINE
            if is_ours(headers):
                domain = self._port.satellite_domain
                edge = self._edge
                in_place = InPlace(self._caller, edge.health, edge.identities, edge.counters, identity, domain)
                return await in_place.run()
            return await self._hold(*self._admit(headers, identity))
        except GreetingError as exc:
            return await self._malformed(exc)
        except BentpipeError as exc:
            return await self._refuse(exc)

    def _admit(self, headers: RequestHeaders, identity: TlsIdentity) -> tuple[Claim, Satellite]:
        try:
            request = parse_request(headers.headers)
        except MetadataError as exc:
            raise InvalidMetadata(str(exc)) from exc
        claim = self._edge.identities.identify(request, identity, self._port.satellite_domain)
        self._edge.identities.authorize(claim)
        return claim, self._edge.fleet.get(claim.key)

    # -- held --------------------------------------------------------------------------------------------------------

    async def _hold(self, claim: Claim, satellite: Satellite) -> Outcome:
        """Wait for the satellite with the client in hand, then splice them. Raises BentpipeError, GreetingError, Gone."""
        failure: BentpipeError | GreetingError | TransportError | Gone | None = None
        async with trio.open_nursery() as nursery:
            watch = trio.CancelScope()
            watched = trio.Event()

            async def watch_client() -> None:
                nonlocal failure
                try:
                    with watch:
                        await self._caller.read_while_held()
                except (GreetingError, TransportError, Gone) as exc:
                    failure = exc
                    nursery.cancel_scope.cancel()
                watched.set()

            nursery.start_soon(watch_client)
            try:
                async with satellite.lease(claim.who) as lease:
                    tls, server_name = self._edge.satellite_tls.get(claim.key, (None, None))
                    target = await self._dial(satellite, lease, tls, server_name)
                    try:
                        watch.cancel()
                        await watched.wait()
                        await self._replay(target)
                        self._edge.handoff.hand_off(
                            self._client, target, Splice(claim.key, claim.who, self._peer, lease, self._on_splice_end)
                        )
                        lease.keep()
                    finally:
                        target.close()
            except (BentpipeError, GreetingError, TransportError, Gone) as exc:
                failure = exc
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        log.info("spliced", extra={"fields": {"satellite": str(claim.key), "principal": claim.who, "peer": self._peer}})
        return Outcome.SPLICED

    async def _dial(
        self, satellite: Satellite, lease: Lease, tls: TlsClientContext | None, server_name: str | None
    ) -> Transport:
        try:
            return await dial(lease.address, tls, server_name)
        except BentpipeError:
            satellite.report_unreachable()
            raise

    async def _replay(self, target: Transport) -> None:
        """Send the satellite what the client said so far. Raises TransportError, GreetingError; Gone at the deadline."""
        greeting = self._caller.greeting
        with trio.move_on_after(REPLAY_DEADLINE_S) as deadline:
            await self._caller.flush()
            await target.send_all(greeting.transcript_bytes)
            if greeting.awaiting_ack:
                await relay_until_ack(self._client, target, greeting.ack_filter())
        if deadline.cancelled_caught:
            log.info("the ACK of our SETTINGS never came", extra={"fields": {"peer": self._peer}})
            raise Gone(Outcome.DEADLINE)

    # -- words to the client -----------------------------------------------------------------------------------------

    async def _refuse(self, error: BentpipeError) -> Outcome:
        log.info(
            "refused",
            extra={"fields": {"peer": self._peer, "status": error.status.name, "error": str(error)}},
        )
        self._edge.counters.refusals[error.status.name] += 1
        await self._say(Responder(self._caller.greeting).refuse(error.status, error.peer_hint))
        return Outcome.REFUSED

    async def _malformed(self, error: GreetingError) -> Outcome:
        log.info("malformed", extra={"fields": {"peer": self._peer, "error": str(error)}})
        self._edge.counters.malformed[error.limit or error.error_code.name] += 1
        await self._say(Responder(self._caller.greeting).goaway(error))
        return Outcome.MALFORMED

    async def _say(self, words: bytes) -> None:
        with trio.move_on_after(REFUSAL_DEADLINE_S):
            await self._caller.flush()
            await self._client.send_all(words)
            await self._client.close_gracefully()
