"""Brings an admitted client to its satellite: lease, dial, introduction, replay, hand-off.

If the satellite is awake and can be reached, all of this is done at once. Otherwise the client is held (`watching.py`) until
the satellite is ready. From the replay on the client hears the satellite, and we must not say anything to it any more.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Iterator

import trio

from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.ends import CUT, CUT_WORDS
from bentpipe.daemon.connections.outcomes import ConnectionOver, Outcome
from bentpipe.daemon.connections.replay import relay_until_ack
from bentpipe.daemon.connections.transport import OverLimit, Transport
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.channel import Channel
from bentpipe.daemon.edge.dial import SatelliteUnreachable, dial, dial_at_once
from bentpipe.daemon.edge.edge import Edge
from bentpipe.daemon.edge.handoff import Pending, Splice
from bentpipe.daemon.edge.identity import Claim
from bentpipe.daemon.edge.introduction import HungUp, Introduction
from bentpipe.daemon.edge.plane_channel import PlaneChannel
from bentpipe.daemon.edge.plane_splicer import REPLAY_DEADLINE_S
from bentpipe.daemon.edge.unless import unless
from bentpipe.daemon.edge.watching import Hold, held
from bentpipe.daemon.errors import BentpipeError, Cut, DialFailed
from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.records.record import Phase
from bentpipe.proto.errors import GreetingError

log = logging.getLogger("bentpipe.edge")

HUNG_UP_S, HUNG_UP_PAUSE_S = 3.0, 0.2
"""If the satellite accepts connections and hangs up, it is dialled again for this time, with this pause between. A machine
that is being stopped does so, until the cloud says that it is being stopped."""

DEATHS_PER_HOLD = 2
"""How often the satellite may die between lease and dial before its client is told; each further lease wakes it again."""

DEAD_AGAIN = "the satellite answers when it is probed, but not its client"


class Splicing:
    """One admitted client on its way to its satellite."""

    def __init__(self, edge: Edge, caller: Caller, claim: Claim, satellite: Satellite, tell_by: float) -> None:
        """The client counts as held from now on. Until `tell_by` it can still be told why its satellite does not wake."""
        self._edge = edge
        self._caller = caller
        self._record = caller.record
        self._claim = claim
        self._satellite = satellite
        self._since = trio.current_time()
        self._tell_by = tell_by
        self._hears_satellite = False

    async def run(self) -> Outcome:
        """Splice client and satellite, unless the operator cuts the client before.

        Raises BentpipeError (in words for the client), GreetingError, TransportError, ConnectionOver.
        """
        claim = self._claim
        with self._edge.handoff.pending(claim.key, claim.who, claim.credentials) as pending:
            await self._splice_at_once_or_hold(pending)
            return Outcome.SPLICED
        self._caller.place.scope = None
        if not self._hears_satellite:
            raise Cut(CUT_WORDS)
        self._record.finish(CUT)
        return Outcome.REFUSED

    async def _splice_at_once_or_hold(self, pending: Pending) -> None:
        """Splice at once if that can be done, else hold the client.

        Most of a busy host's connections are spliced at once, and such a client need not be watched meanwhile: a task, a
        nursery and two waits less are a fifth of the control plane's time for a connection.
        """
        lease = self._satellite.lease_nowait(self._claim.who)
        if lease is None:
            return await self._hold(pending)
        try:
            if not await self._splice_at_once(lease, pending):
                # This lease lives until the client has another: the satellite must not go to sleep in between.
                self._satellite.suspect()
                await self._hold(pending)
        finally:
            if not lease.kept:
                lease.release()

    async def _splice_at_once(self, lease: Lease, pending: Pending) -> bool:
        """Returns False if that fails: then the satellite has to be looked at, and the client to be watched meanwhile."""
        self._record.reach(Phase.LEASED)
        target = await dial_at_once(lease.address, self._find_tls(), self._caller.dials)
        if target is None:
            return False
        self._record.reach(Phase.DIALLED)
        with contextlib.closing(target):
            introduction = Introduction(self._caller, target)
            try:
                if not await introduction.make_at_once():
                    return False
            except HungUp:
                return False
            except DialFailed:
                self._satellite.report_unreachable()
                raise
            await self._splice(target, introduction, lease, pending)
        return True

    # -- held --------------------------------------------------------------------------------------------------------

    async def _hold(self, pending: Pending) -> None:
        """Hold the client until the satellite is ready, then splice them."""
        self._record.reach(Phase.HELD)
        self._record.marks[Phase.LEASED] = math.nan  # the lease that it has had was of no use
        with held(self._caller) as hold:
            deaths, hung_up_until = 0, math.inf
            while deaths <= DEATHS_PER_HOLD:
                try:
                    if await self._lease_and_splice(hold, pending):
                        return
                    deaths, hung_up_until = deaths + 1, math.inf
                except HungUp:
                    # Its machine may be being stopped: the fleet looks at it, waits until it is stopped, and starts it.
                    self._satellite.report_unreachable()
                    hung_up_until = min(hung_up_until, trio.current_time() + HUNG_UP_S)
                    if trio.current_time() >= hung_up_until:
                        raise
                    await hold.rest(HUNG_UP_PAUSE_S)
            raise DialFailed(DEAD_AGAIN, peer_hint=f"{DEAD_AGAIN}; it may die as soon as it is awake")

    async def _lease_and_splice(self, hold: Hold, pending: Pending) -> bool:
        """Returns False if the satellite died before it could be reached."""
        claim, satellite = self._claim, self._satellite
        wait = (claim.who, claim.payer, hold)
        async with satellite.lease(*wait, since=self._since, tell_by=self._tell_by) as lease:
            self._record.reach(Phase.LEASED)
            self._record.woken_by = satellite.woken_by
            # In the step of the grant: a held client may have lost its right meanwhile, and is then refused as a newcomer.
            self._edge.identities.check_again(claim)
            with self._reporting_unreachable():
                target = await self._dial(hold, lease)
            if target is None:
                return False
            self._record.reach(Phase.DIALLED)
            dialled_at = trio.current_time()
            with contextlib.closing(target):
                introduction = Introduction(self._caller, target)
                with self._reporting_unreachable():
                    if not await self._introduce(hold, introduction, lease):
                        return False
                    # Before it gets a request: the dial took so long that the address may be another machine's by now.
                    if not satellite.is_at(lease.address, since=dialled_at):
                        return False
                    hold.end()
                    # A PING that came meanwhile may have made us send SETTINGS.
                    await introduction.make()
                await self._splice(target, introduction, lease, pending)
        return True

    async def _dial(self, hold: Hold, lease: Lease) -> Channel | None:
        """Returns None if the lease is over, or if the satellite cannot be reached."""
        # Most succeed at once. To watch the client and the lease meanwhile would take a nursery and two tasks for each of a
        # crowd.
        made = await dial_at_once(lease.address, self._find_tls(), self._caller.dials)
        if made is not None and lease.over.is_set():
            made.close()
            return None
        if made is not None:
            return made

        try:
            return await self._dial_watched(hold, lease)
        except SatelliteUnreachable as exc:
            # Its clients go on waiting: the fleet looks at the satellite, and starts it if somebody has stopped it.
            fields = {"satellite": str(self._claim.key), "error": str(exc)}
            log.warning("satellite could not be reached", extra={"fields": fields})
            self._satellite.report_unreachable()
            return None

    async def _dial_watched(self, hold: Hold, lease: Lease) -> Channel | None:
        """Dial again and again, and watch the client and the lease meanwhile. Returns None if the lease is over."""
        made: Channel | None = None

        async def go_on() -> None:
            nonlocal made
            made = await dial(lease.address, self._find_tls, lease.over, self._caller.dials)

        try:
            await hold.during(go_on)
        except BaseException:
            if made is not None:
                made.close()
            raise
        return made

    def _find_tls(self) -> SatelliteTls | None:
        return self._edge.satellite_tls.get(self._claim.key)

    @staticmethod
    async def _introduce(hold: Hold, introduction: Introduction, lease: Lease) -> bool:
        """Returns False if the lease is over before it is done. Raises DialFailed."""
        if not await introduction.make_at_once():
            lease.suspect()
            await hold.during(functools.partial(unless, lease.over, introduction.make))
        return introduction.done

    @contextlib.contextmanager
    def _reporting_unreachable(self) -> Iterator[None]:
        try:
            yield
        except DialFailed:
            self._satellite.report_unreachable()
            raise

    # -- replay and hand-off -----------------------------------------------------------------------------------------

    async def _splice(self, target: Channel, introduction: Introduction, lease: Lease, pending: Pending) -> None:
        """Replay and hand off; the lease is then the splice's."""
        caller, claim, identities = self._caller, self._claim, self._edge.identities
        identities.check_again(claim)
        if introduction.heard is not None:
            self._record.reach(Phase.FIRST_BYTE)
            self._edge.announcements.hear(claim.key, introduction.heard)
        splice = Splice(claim.key, claim.who, caller.peer, lease, caller.place, caller.record, claim.credentials)
        if isinstance(target, PlaneChannel):
            await self._go(target, introduction, splice, pending)
        elif isinstance(target, Transport) and isinstance(caller.transport, Transport):
            await self._replay(caller.transport, target, introduction)
            try:
                identities.check_again(claim)
            except BentpipeError as exc:
                # The client has heard the satellite: we must not say anything any more.
                self._record.status, self._record.error = exc.status.name, str(exc)
                raise ConnectionOver(Outcome.REFUSED) from exc
            # A client that was cut or evicted is not spliced in its last step.
            await trio.lowlevel.checkpoint_if_cancelled()
            self._edge.handoff.hand_off(caller.transport, target, splice, pending)
            lease.keep()
        fields = {"id": caller.record.id, "satellite": str(claim.key), "principal": claim.who, "peer": caller.peer}
        log.info("spliced", extra={"fields": fields})

    async def _go(self, half: PlaneChannel, introduction: Introduction, splice: Splice, pending: Pending) -> None:
        """Have the data plane replay and splice. A cut or an eviction comes before, or finds a splice."""
        caller, planes = self._caller, self._edge.planes
        assert planes is not None, "only data planes have such channels"
        with trio.move_on_after(REPLAY_DEADLINE_S) as deadline:
            await caller.flush()
            if caller.has_one_request:
                # The client's bytes of further requests were taken out here, so the plane does not have the transcript.
                await half.send_all(memoryview(caller.greeting.transcript_bytes)[introduction.sent_bytes :])
        if deadline.cancelled_caught:
            raise ConnectionOver(Outcome.DEADLINE)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._hears_satellite = True
        await planes.go(self._edge.handoff, caller, half, introduction, splice, pending)

    async def _replay(self, client: Transport, target: Transport, introduction: Introduction) -> None:
        """Send each side what the other has sent so far.

        Raises TransportError; ConnectionOver at the deadline, or in the relay.
        """
        caller = self._caller
        words = memoryview(introduction.words)
        rest = memoryview(caller.greeting.transcript_bytes)[introduction.sent_bytes :]
        if caller.flush_nowait():
            self._hears_satellite = True
            words = words[client.send_nowait(words) :] if words else words
            rest = rest[target.send_nowait(rest) :] if rest else rest
            if not (words or rest or caller.greeting.awaiting_ack):
                return  # nearly always so, without the cost of a deadline
        with trio.move_on_after(REPLAY_DEADLINE_S) as deadline:
            await caller.flush()
            self._hears_satellite = True
            await client.send_all(words)
            await target.send_all(rest)
            if caller.greeting.awaiting_ack:
                await self._relay(client, target)
        if deadline.cancelled_caught:
            self._record.error = "the ACK of our SETTINGS never came"
            raise ConnectionOver(Outcome.DEADLINE)

    async def _relay(self, client: Transport, target: Transport) -> None:
        """From here on the client may have read a part of one of the satellite's frames: nothing of ours may follow it."""
        caller = self._caller
        try:
            await relay_until_ack(client, target, caller.greeting.ack_filter())
        except GreetingError as exc:
            self._record.error = str(exc)
            self._edge.counters.count_malformed(exc)
            raise ConnectionOver(Outcome.MALFORMED) from exc
        except OverLimit as exc:
            self._record.error = str(exc)
            raise ConnectionOver(Outcome.MALFORMED, exc.limit) from exc
        except ConnectionOver:
            # The client must still be able to read what the satellite sent before it ended.
            await client.close_gracefully()
            raise
