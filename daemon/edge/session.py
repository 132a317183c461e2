"""One client, from accept to hand-off or refusal.

Straight line: opening, admission, lease (held), dial, replay, hand-off. This is the only place where a connection's
error is told to the client, logged and dropped.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator

import trio

from bentpipe.daemon.edge.accounts import Accounts, Kind
from bentpipe.daemon.edge.announcements import Announcements
from bentpipe.daemon.edge.arrival import Arrival
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.deadlines import Deadlines
from bentpipe.daemon.edge.dial import Unreachable, dial, dial_at_once
from bentpipe.daemon.edge.handoff import CUT_WORDS, Coming, HandOff, Splice
from bentpipe.daemon.edge.health import HealthBoard
from bentpipe.daemon.edge.identity import Claim, Identities, TlsIdentity
from bentpipe.daemon.edge.in_place import InPlace, is_ours
from bentpipe.daemon.edge.introduction import HungUp, Introduction
from bentpipe.daemon.edge.opening import TLS_WANTED, Port, read_request
from bentpipe.daemon.edge.outcomes import ConnectionCounters, Gone, Outcome
from bentpipe.daemon.edge.pacing import take_turn
from bentpipe.daemon.edge.replay import relay_until_ack
from bentpipe.daemon.edge.transport import OverLimit, Transport, TransportError
from bentpipe.daemon.edge.unless import unless
from bentpipe.daemon.edge.watch import StopWatching, watched
from bentpipe.daemon.errors import BentpipeError, Cut, DialFailed, InvalidMetadata, TlsWanted
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import SatelliteKey
from bentpipe.native.tls import TlsClientContext
from bentpipe.proto.errors import ErrorCode, GreetingError, over
from bentpipe.proto.events import RequestHeaders
from bentpipe.proto.grpc_server import ANSWERING_BYTES, STREAM_BYTES
from bentpipe.proto.patience import tell_within_s
from bentpipe.proto.refusal import PIECE_BYTES, TOO_LATE, Refusal, goaway
from bentpipe.proto.request import MetadataError, parse_request
from bentpipe.proto.states import State

log = logging.getLogger("bentpipe.edge")

REPLAY_DEADLINE_S = 10.0
"""How long replay may take, and the ACK of our SETTINGS may be missing: it would break the satellite's connection, so
without it there is no splice."""

HUNG_UP_S, HUNG_UP_PAUSE_S = 3.0, 0.2
"""For so long a held client is dialled again whose satellite takes connections and hangs up, and the pause between: so does
a machine that is going down, until the cloud says that it is."""

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
    counters: ConnectionCounters
    accounts: Accounts
    satellite_tls: dict[SatelliteKey, tuple[TlsClientContext, str | None]]
    greetings: Deadlines
    """From accept to the first complete request."""
    announcements: Announcements
    stranger_age_s: float
    """How long a connection that the daemon answers itself may last."""
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
        self._place = arrival.place
        self._caller = Caller(client, arrival)
        self._in_place: InPlace | None = None
        self._client = client
        self._port = port
        self._held_since = self._tell_by = 0.0
        """Set at admission: the client is held from then on, and until then it can still be told of a failure."""
        self._hears_satellite = False

    @property
    def _peer(self) -> str:
        return self._caller.peer

    async def run(self) -> None:
        """Serve the connection and count its outcome. Its place is released, unless it was spliced: then by its end."""
        outcome: Outcome | None = None
        try:
            with trio.CancelScope() as stay:
                self._place.on_put_out(stay.cancel)
                outcome = await self._served()
                # The one way out: whatever was said last is read, though more came than anybody wanted to know.
                await self._client.close_gracefully()
            if outcome is None:
                outcome = self._put_out()
        finally:
            self._client.close()
            if self._in_place is not None:
                self._in_place.dispose()
            if outcome is not Outcome.SPLICED:
                self._place.release()
        self._edge.counters.ended[outcome] += 1

    async def _served(self) -> Outcome:
        try:
            return await self._serve()
        except Gone as exc:
            if exc.limit is not None:
                self._edge.counters.malformed[exc.limit] += 1
            return exc.outcome
        except TransportError as exc:
            log.info("connection broke", extra={"fields": {"peer": self._peer, "error": str(exc)}})
            return Outcome.BROKEN
        except Exception:
            log.exception("session crashed", extra={"fields": {"peer": self._peer}})
            return Outcome.CRASHED

    async def _serve(self) -> Outcome:
        try:
            with self._edge.greetings.scope() as deadline:
                headers, identity = await read_request(self._caller, self._port, self._edge.announcements)
            if deadline.cancelled_caught:
                return await self._too_late()
            if is_ours(headers):
                domain = self._port.satellite_domain
                edge = self._edge
                self._in_place = InPlace(self._caller, edge.health, edge.identities, edge.counters, identity, domain)
                return await self._in_place.run(edge.stranger_age_s)
            return await self._admitted(*self._admit(headers, identity))
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
        satellite = self._edge.fleet.get(claim.key)
        self._place.promote(claim.payer, claim.key)
        return claim, satellite

    # -- held --------------------------------------------------------------------------------------------------------

    async def _admitted(self, claim: Claim, satellite: Satellite) -> Outcome:
        """Bring the client to its satellite, unless the operator cuts it before its splice. Raises as `_hold`, and Cut."""
        outcome: Outcome | None = None
        with self._edge.handoff.coming(claim.key, claim.who, claim.credentials) as coming, coming.stay:
            outcome = await self._hold(claim, satellite, coming)
        if outcome is not None:
            return outcome
        self._place.on_put_out(None)
        if not self._hears_satellite:
            raise Cut(CUT_WORDS)
        log.info("cut before the splice", extra={"fields": {"peer": self._peer, "principal": claim.who}})
        return Outcome.REFUSED

    async def _hold(self, claim: Claim, satellite: Satellite, coming: Coming) -> Outcome:
        """Splice client and satellite, at once if it is awake. Raises BentpipeError, GreetingError, TransportError, Gone.

        At once is most of a busy host's connections, and they need nobody who watches the client meanwhile: a task, a
        nursery and two waits less are a fifth of the control plane's time for a connection.
        """
        lease = satellite.lease_nowait(claim.who)
        if lease is None:
            return await self._held(claim, satellite, coming)
        try:
            target = await dial_at_once(lease.address, *self._satellite_tls(claim.key))
            if target is None:
                satellite.suspect()
                # This lease lasts as long as the other's wait: the satellite must not go to sleep in between.
                return await self._held(claim, satellite, coming)
            try:
                introduction = Introduction(self._caller, target)
                if await self._introduce_at_once(introduction, satellite):
                    await self._splice(claim, target, introduction, lease, coming)
                    return Outcome.SPLICED
            finally:
                target.close()
            return await self._held(claim, satellite, coming)
        finally:
            if not lease.kept:
                lease.release()

    async def _introduce_at_once(self, introduction: Introduction, satellite: Satellite) -> bool:
        """Returns False if it is not done: the satellite is looked at, and the client waits for that in other hands."""
        try:
            if await introduction.make_at_once():
                return True
        except HungUp:
            pass
        except DialFailed:
            satellite.report_unreachable()
            raise
        satellite.suspect()
        return False

    async def _held(self, claim: Claim, satellite: Satellite, coming: Coming) -> Outcome:
        """Wait for the satellite with the client in hand, then splice them. Raises BentpipeError, GreetingError, Gone."""

        async def wake_and_splice(stop_watching: StopWatching) -> None:
            deaths, hung_up_until = 0, math.inf
            while deaths <= DEATHS_PER_HOLD:
                try:
                    if await self._lease_and_splice(claim, satellite, coming, stop_watching):
                        return
                    deaths, hung_up_until = deaths + 1, math.inf
                except HungUp:
                    # Its machine may be on its way down: that is looked at, and then it is waited for and started.
                    satellite.report_unreachable()
                    hung_up_until = min(hung_up_until, trio.current_time() + HUNG_UP_S)
                    if trio.current_time() >= hung_up_until:
                        raise
                    await trio.sleep(HUNG_UP_PAUSE_S)
            words = "the satellite answers when it is probed, but not its client"
            raise DialFailed(words, peer_hint=f"{words}; it may die as soon as it is awake")

        await watched(self._caller, wake_and_splice)
        return Outcome.SPLICED

    async def _lease_and_splice(
        self, claim: Claim, satellite: Satellite, coming: Coming, stop_watching: StopWatching
    ) -> bool:
        """Lease, dial, splice. Returns False if the satellite died before it could be reached."""
        async with satellite.lease(claim.who, claim.payer, since=self._held_since, tell_by=self._tell_by) as lease:
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
                    if not await introduction.make_at_once():
                        lease.suspect()
                        if not await unless(lease.over, introduction.make):
                            return False
                    await stop_watching()
                    # A PING that came meanwhile may have made us speak.
                    await introduction.make()
                await self._splice(claim, target, introduction, lease, coming)
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

    async def _splice(
        self, claim: Claim, target: Transport, introduction: Introduction, lease: Lease, coming: Coming
    ) -> None:
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
        await trio.lowlevel.checkpoint_if_cancelled()  # who was cut, or has to go, is not spliced in its last step
        splice = Splice(claim.key, claim.who, self._peer, lease, self._place, claim.credentials)
        self._edge.handoff.hand_off(self._client, target, splice, coming)
        lease.keep()
        log.info("spliced", extra={"fields": {"satellite": str(claim.key), "principal": claim.who, "peer": self._peer}})

    async def _replay(self, target: Transport, introduction: Introduction) -> None:
        """Send each side what the other said so far. Raises TransportError; Gone at the deadline and in the relay."""
        greeting = self._caller.greeting
        with trio.move_on_after(REPLAY_DEADLINE_S) as deadline:
            await self._caller.flush()
            self._hears_satellite = True
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
        refusal, last = Refusal(), self._place.kind is Kind.STRANGER
        said = self._caller.take_all()
        self._place.note(len(said) + ANSWERING_BYTES + STREAM_BYTES * len(self._caller.greeting.open_streams))
        try:
            for at in range(0, len(said), PIECE_BYTES):
                await take_turn(last=last)
                refusal.receive_data(said[at : at + PIECE_BYTES])
            more = True
            while more:
                await take_turn(last=last)
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

    def _put_out(self) -> Outcome:
        """Tell a stranger that it made room for others, as far as that needs no wait."""
        last = self._caller.greeting.last_stream if self._in_place is None else self._in_place.last_stream
        if self._caller.greeting.state not in (State.PREFACE, State.ENDED):
            with contextlib.suppress(TransportError):
                self._client.send_nowait(goaway(ErrorCode.NO_ERROR, self._place.put_out_words or "", last))
                self._client.receive_nowait()  # closing over unread input would destroy what was said
        return Outcome.OVER_LIMIT

    async def _say(self, words: bytes) -> None:
        self._place.note(len(words))
        with trio.move_on_after(REFUSAL_DEADLINE_S):
            await self._caller.flush()
            await self._client.send_all(words)
            await self._client.close_gracefully()
