"""One client, from accept to hand-off or refusal.

Straight line: opening, admission, lease (held), dial, replay, hand-off. This is the only place where a connection's
error is told to the client, logged and dropped.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator

import trio

from bentpipe.daemon.edge.announcements import Announcements
from bentpipe.daemon.edge.arrival import Arrival
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.deadlines import Deadlines
from bentpipe.daemon.edge.dial import Unreachable, dial, dial_at_once
from bentpipe.daemon.edge.handoff import HandOff, Splice
from bentpipe.daemon.edge.health import HealthBoard
from bentpipe.daemon.edge.identity import Claim, Identities, TlsIdentity
from bentpipe.daemon.edge.in_place import InPlace, is_ours
from bentpipe.daemon.edge.introduction import Introduction
from bentpipe.daemon.edge.memory import Memory
from bentpipe.daemon.edge.opening import TLS_WANTED, Port, read_request
from bentpipe.daemon.edge.outcomes import Counters, Gone, Outcome
from bentpipe.daemon.edge.pacing import take_turn
from bentpipe.daemon.edge.replay import relay_until_ack
from bentpipe.daemon.edge.transport import OverLimit, Transport, TransportError
from bentpipe.daemon.edge.watch import StopWatching, watched
from bentpipe.daemon.errors import BentpipeError, DialFailed, InvalidMetadata, TlsWanted
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import SatelliteKey
from bentpipe.native.tls import TlsClientContext
from bentpipe.proto.errors import GreetingError, over
from bentpipe.proto.events import RequestHeaders
from bentpipe.proto.patience import tell_within_s
from bentpipe.proto.refusal import PIECE_BYTES, TOO_LATE, Refusal, goaway
from bentpipe.proto.request import MetadataError, parse_request
from bentpipe.proto.states import State

log = logging.getLogger("bentpipe.edge")

REPLAY_DEADLINE_S = 10.0
"""How long replay may take, and the ACK of our SETTINGS may be missing: it would break the satellite's connection, so
without it there is no splice."""

DEATHS_PER_HOLD = 2
"""How many deaths between lease and dial a held client waits through; each further lease wakes the satellite again."""

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
    memory: Memory
    satellite_tls: dict[SatelliteKey, tuple[TlsClientContext, str | None]]
    greetings: Deadlines
    """From accept to the first complete request."""
    announcements: Announcements
    admit_below_fd: int = 1 << 30
    """Connections whose descriptor is this or higher are closed: the rest is for the control plane."""


@contextlib.contextmanager
def _reporting_unreachable(satellite: Satellite) -> Iterator[None]:
    try:
        yield
    except DialFailed:
        satellite.report_unreachable()
        raise


class Session:
    """One accepted connection; `run` takes it to its end and never raises an Exception."""

    def __init__(self, edge: Edge, client: Transport, port: Port, arrival: Arrival) -> None:
        self._edge = edge
        self._caller = Caller(client, arrival, edge.memory)
        self._client = client
        self._port = port
        self._held_since = self._tell_by = 0.0
        """Set at admission: the client is held from then on, and until then it can still be told of a failure."""

    @property
    def _peer(self) -> str:
        return self._caller.peer

    async def run(self, on_splice_end: Callable[[], None]) -> bool:
        """Serve the connection and count its outcome; True if it was spliced: `on_splice_end` is then called later."""
        self._on_splice_end = on_splice_end
        try:
            outcome = await self._serve()
        except Gone as exc:
            outcome = exc.outcome
            if exc.limit is not None:
                self._edge.counters.malformed[exc.limit] += 1
        except TransportError as exc:
            log.info("connection broke", extra={"fields": {"peer": self._peer, "error": str(exc)}})
            outcome = Outcome.BROKEN
        except Exception:
            log.exception("session crashed", extra={"fields": {"peer": self._peer}})
            outcome = Outcome.CRASHED
        finally:
            self._caller.forget()
            # The one way out: whatever was said last is read, though more came than anybody wanted to know.
            await self._client.close_gracefully()
        self._edge.counters.ended[outcome] += 1
        return outcome is Outcome.SPLICED

    async def _serve(self) -> Outcome:
        try:
            with self._edge.greetings.scope() as deadline:
                headers, identity = await read_request(self._caller, self._port, self._edge.announcements)
            if deadline.cancelled_caught:
                return await self._too_late()
            if is_ours(headers):
                domain = self._port.satellite_domain
                edge = self._edge
                in_place = InPlace(self._caller, edge.health, edge.identities, edge.counters, identity, domain)
                return await in_place.run()
            return await self._hold(*self._admit(headers, identity))
        except GreetingError as exc:
            return await self._malformed(exc)
        except OverLimit as exc:
            with contextlib.suppress(TransportError):  # OpenSSL may have ended it by an alert of its own
                await self._malformed(over(exc.limit))
            return Outcome.MALFORMED
        except BentpipeError as exc:
            return await self._refuse(exc)

    def _admit(self, headers: RequestHeaders, identity: TlsIdentity) -> tuple[Claim, Satellite]:
        self._held_since = trio.current_time()
        self._tell_by = self._held_since + tell_within_s(headers.headers)
        try:
            request = parse_request(headers.headers)
        except MetadataError as exc:
            raise InvalidMetadata(str(exc)) from exc
        claim = self._edge.identities.identify(request, identity, self._port.satellite_domain)
        self._edge.identities.authorize(claim)
        return claim, self._edge.fleet.get(claim.key)

    # -- held --------------------------------------------------------------------------------------------------------

    async def _hold(self, claim: Claim, satellite: Satellite) -> Outcome:
        """Splice client and satellite, at once if it is awake. Raises BentpipeError, GreetingError, TransportError, Gone.

        At once is most of a busy host's connections, and they need nobody who watches the client meanwhile: a task, a
        nursery and two waits less are a fifth of the control plane's time for a connection.
        """
        lease = satellite.lease_nowait(claim.who)
        if lease is None:
            return await self._held(claim, satellite)
        try:
            target = await dial_at_once(lease.address, *self._satellite_tls(claim.key))
            if target is None:
                satellite.suspect()
                # This lease lasts as long as the other's wait: the satellite must not go to sleep in between.
                return await self._held(claim, satellite)
            try:
                introduction = Introduction(self._caller, target)
                with _reporting_unreachable(satellite):
                    if not await introduction.make_at_once():
                        await watched(self._caller, lambda _stop: introduction.make())
                await self._splice(claim, target, introduction, lease)
            finally:
                target.close()
        finally:
            if not lease.kept:
                lease.release()
        return Outcome.SPLICED

    async def _held(self, claim: Claim, satellite: Satellite) -> Outcome:
        """Wait for the satellite with the client in hand, then splice them. Raises BentpipeError, GreetingError, Gone."""

        async def wake_and_splice(stop_watching: StopWatching) -> None:
            for _ in range(DEATHS_PER_HOLD + 1):
                if await self._lease_and_splice(claim, satellite, stop_watching):
                    return
            words = "the satellite answers when it is probed, but not its client"
            raise DialFailed(words, peer_hint=f"{words}; it may die as soon as it is awake")

        await watched(self._caller, wake_and_splice)
        return Outcome.SPLICED

    async def _lease_and_splice(self, claim: Claim, satellite: Satellite, stop_watching: StopWatching) -> bool:
        """Lease, dial, splice. Returns False if the satellite died before it could be reached."""
        async with satellite.lease(claim.who, since=self._held_since, tell_by=self._tell_by) as lease:
            # In the step of the grant: who was held may have lost its right meanwhile, and gets a newcomer's refusal.
            self._edge.identities.check_again(claim)
            with _reporting_unreachable(satellite):
                target = await self._dial(claim, satellite, lease)
            if target is None:
                return False
            try:
                if not satellite.is_at(lease.address):
                    return False  # it took so long to reach that its address may be another's by now
                introduction = Introduction(self._caller, target)
                with _reporting_unreachable(satellite):
                    await introduction.make()
                    await stop_watching()
                    # A PING that came meanwhile may have made us speak.
                    await introduction.make()
                await self._splice(claim, target, introduction, lease)
            finally:
                target.close()
        return True

    def _satellite_tls(self, key: SatelliteKey) -> tuple[TlsClientContext | None, str | None]:
        return self._edge.satellite_tls.get(key, (None, None))

    async def _dial(self, claim: Claim, satellite: Satellite, lease: Lease) -> Transport | None:
        tls, server_name = self._satellite_tls(claim.key)
        try:
            return await dial(lease.address, tls, server_name, lease.over)
        except Unreachable as exc:
            # Whoever waits goes on waiting: it is looked at, and started if others have stopped it.
            fields = {"satellite": str(claim.key), "error": str(exc)}
            log.warning("satellite could not be reached", extra={"fields": fields})
            satellite.report_unreachable()
            return None

    async def _splice(self, claim: Claim, target: Transport, introduction: Introduction, lease: Lease) -> None:
        """Replay and hand off; the lease is then the splice's."""
        identities = self._edge.identities
        identities.check_again(claim)
        if introduction.heard is not None:
            self._edge.announcements.hear(claim.key, introduction.heard)
        await self._replay(target, introduction)
        try:
            identities.check_again(claim)
        except BentpipeError as exc:
            # It has heard the satellite: no word of ours may follow.
            log.info("revoked before the splice", extra={"fields": {"peer": self._peer, "error": str(exc)}})
            raise Gone(Outcome.REFUSED) from exc
        splice = Splice(claim.key, claim.who, self._peer, lease, self._on_splice_end)
        self._edge.handoff.hand_off(self._client, target, splice)
        lease.keep()
        log.info("spliced", extra={"fields": {"satellite": str(claim.key), "principal": claim.who, "peer": self._peer}})

    async def _replay(self, target: Transport, introduction: Introduction) -> None:
        """Send each side what the other said so far. Raises TransportError; Gone at the deadline and in the relay."""
        greeting = self._caller.greeting
        with trio.move_on_after(REPLAY_DEADLINE_S) as deadline:
            await self._caller.flush()
            await self._client.send_all(introduction.words)
            await target.send_all(memoryview(greeting.transcript_bytes)[introduction.sent_bytes :])
            if greeting.awaiting_ack:
                await self._relay(target)
        if deadline.cancelled_caught:
            log.info("the ACK of our SETTINGS never came", extra={"fields": {"peer": self._peer}})
            raise Gone(Outcome.DEADLINE)

    async def _relay(self, target: Transport) -> None:
        """From here on the client may have read a part of a frame of the satellite's: no word of ours may follow it."""
        try:
            await relay_until_ack(self._client, target, self._caller.greeting.ack_filter())
        except GreetingError as exc:
            self._count_malformed(exc)
            raise Gone(Outcome.MALFORMED) from exc
        except OverLimit as exc:
            log.info("malformed", extra={"fields": {"peer": self._peer, "error": str(exc)}})
            raise Gone(Outcome.MALFORMED, exc.limit) from exc
        except Gone:
            # What the satellite said before it ended must still be read.
            await self._client.close_gracefully()
            raise

    # -- words to the client -----------------------------------------------------------------------------------------

    async def _refuse(self, error: BentpipeError) -> Outcome:
        log.info(
            "refused",
            extra={"fields": {"peer": self._peer, "status": error.status.name, "error": str(error)}},
        )
        words, outcome = await self._refusal(error)
        await self._say(words)
        return outcome

    async def _refusal(self, error: BentpipeError) -> tuple[bytes, Outcome]:
        """Put it in h2's words, to whatever the client said so far."""
        refusal = Refusal()
        said = self._caller.take_all()
        try:
            for at in range(0, len(said), PIECE_BYTES):
                await take_turn()
                refusal.receive_data(said[at : at + PIECE_BYTES])
            more = True
            while more:
                await take_turn()
                more = refusal.refuse_some(error.status, error.peer_hint)
        except GreetingError as exc:
            # h2 reads what the greeting leaves to the satellite; its GOAWAY then takes the refusal's place.
            self._count_malformed(exc)
            return refusal.close(), Outcome.MALFORMED
        self._edge.counters.refusals[error.status.name] += 1
        return refusal.close(), Outcome.PLAIN_ON_TLS_PORT if isinstance(error, TlsWanted) else Outcome.REFUSED

    async def _malformed(self, error: GreetingError) -> Outcome:
        self._count_malformed(error)
        await self._say(goaway(error.error_code, error.message, self._caller.greeting.last_stream))
        return Outcome.MALFORMED

    def _count_malformed(self, error: GreetingError) -> None:
        log.info("malformed", extra={"fields": {"peer": self._peer, "error": str(error)}})
        self._edge.counters.malformed[error.limit or error.error_code.name] += 1

    async def _too_late(self) -> Outcome:
        if self._caller.wants_tls and self._caller.greeting.state is not State.PREFACE:
            return await self._refuse(TlsWanted(TLS_WANTED))
        if self._caller.greeting.state not in (State.PREFACE, State.ENDED):
            await self._say(TOO_LATE)
        return Outcome.DEADLINE

    async def _say(self, words: bytes) -> None:
        with trio.move_on_after(REFUSAL_DEADLINE_S):
            await self._caller.flush()
            await self._client.send_all(words)
            await self._client.close_gracefully()
