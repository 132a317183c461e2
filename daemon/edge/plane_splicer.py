"""The splices of all data planes, as the hand-off sees them; and the GO that makes one.

What splices have moved is known as of the last METERS. That may be seconds ago, so a splice that is to be ended as quiet is
ended by the data plane only if it has moved no more than a quiet connection does since then. Else the plane says BUSY.
"""

from collections.abc import Iterator

import trio

from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.outcomes import ConnectionOver, Outcome
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.dial import NotConnected
from bentpipe.daemon.edge.handoff import HandOff, Pending, Splice
from bentpipe.daemon.edge.introduction import Introduction
from bentpipe.daemon.edge.plane import GoFailed, RemotePlane
from bentpipe.daemon.edge.plane_channel import PlaneChannel
from bentpipe.daemon.fleet.traffic import QUIET_BYTES_PER_WINDOW
from bentpipe.daemon.model import Address
from bentpipe.daemon.planes.records import GoFlag, GoRecord, Shutting
from bentpipe.daemon.planes.splice_tag import NO_HOST, SpliceTag
from bentpipe.native.engine import SpliceId

PLANE_BITS = 64
"""Ids of planes begin here in a SpliceId: two planes use the same ids."""

REPLAY_DEADLINE_S = 10.0
"""How long the replay may take, including the ACK of our SETTINGS. The ACK would break the satellite's connection, so it
must be taken out before the splice."""

NO_PLANE = "no data plane is there that could connect"


def splice_id_of(plane: RemotePlane, connection_id: int) -> SpliceId:
    """The splice's id among those of all planes."""
    return SpliceId(plane.number << PLANE_BITS | connection_id)


class PlaneSplicer:
    """See Splicer: all data planes, of which one may drain while another accepts."""

    def __init__(self) -> None:
        self._planes: dict[int, RemotePlane] = {}

    def add(self, plane: RemotePlane) -> None:
        """From now on the plane's splices can be found."""
        self._planes[plane.number] = plane

    def remove(self, plane: RemotePlane) -> None:
        """The plane is gone, and all its splices are accounted for."""
        self._planes.pop(plane.number, None)

    def __iter__(self) -> Iterator[RemotePlane]:
        """The planes there are."""
        return iter(tuple(self._planes.values()))

    async def attempt(self, address: Address, tls: SatelliteTls | None, deadline_s: float) -> PlaneChannel:
        """Connect to a satellite from the newest plane: see Dials."""
        newest = next(reversed(self._planes.values()), None)
        if newest is None:
            raise NotConnected(NO_PLANE)
        return await newest.attempt(address, tls, deadline_s)

    def _of(self, splice_id: SpliceId) -> tuple[RemotePlane, int]:
        return self._planes[splice_id >> PLANE_BITS], splice_id & (1 << PLANE_BITS) - 1

    def moved(self, splice_id: SpliceId) -> tuple[int, int]:
        """See Splicer."""
        plane, connection_id = self._of(splice_id)
        return plane.moved(connection_id)

    def abort(self, splice_id: SpliceId) -> None:
        """See Splicer."""
        plane, connection_id = self._of(splice_id)
        plane.shut(connection_id, Shutting.RESET)

    def end_quiet(self, splice_id: SpliceId, *, cut: bool) -> None:
        """See Splicer."""
        plane, connection_id = self._of(splice_id)
        moved = sum(plane.moved(connection_id)) + QUIET_BYTES_PER_WINDOW
        plane.shut(connection_id, Shutting.IF_QUIET_RESET if cut else Shutting.IF_QUIET, moved)

    async def refresh(self) -> None:
        """See Splicer."""
        async with trio.open_nursery() as nursery:
            for plane in self:
                nursery.start_soon(plane.read_meters)

    async def go(
        self,
        handoff: HandOff,
        caller: Caller,
        half: PlaneChannel,
        introduction: Introduction,
        splice: Splice,
        pending: Pending,
    ) -> None:
        """Have the plane replay and splice. From the first step on the splice has the lease and the place, whatever comes.

        Raises ConnectionOver if the plane could not splice them; the client's connection is over then.
        """
        client = caller.transport
        assert isinstance(client, PlaneChannel)
        plane = self._planes.get(client.plane_number)
        if plane is None:
            raise ConnectionOver(Outcome.BROKEN)
        asked = plane.go(_go_record(client, half, caller, introduction, splice))
        client.detached()
        half.detached()
        splice_id = splice_id_of(plane, client.id)
        splice.lease.keep()
        splice.record.up_bytes, splice.record.down_bytes = client.received_bytes, client.sent_bytes
        handoff.join(splice_id, splice, pending)
        try:
            await plane.wait_went(asked)
        except GoFailed as exc:
            if exc.refused:
                client.close_after_all()
                half.close_after_all()
            raise ConnectionOver(Outcome(exc.outcome) if exc.outcome else Outcome.BROKEN) from exc


def _go_record(
    client: PlaneChannel, half: PlaneChannel, caller: Caller, introduction: Introduction, splice: Splice
) -> GoRecord:
    frame_at = caller.reads_frames_from
    tag = SpliceTag(
        splice.key,
        splice.principal,
        caller.place.principal,
        caller.arrival.address or NO_HOST,
        splice.credentials,
        splice.lease.address,
        splice.record.id,
        round(splice.record.wall_s, 3),
    )
    return GoRecord(
        id=client.id,
        half=half.id,
        flags=GoFlag.ACK_OWED if caller.greeting.awaiting_ack else GoFlag.NONE,
        client_from=frame_at if caller.has_one_request else introduction.sent_bytes,
        frame_at=frame_at,
        half_from=introduction.read_bytes,
        deadline_ms=int(REPLAY_DEADLINE_S * 1000),
        tag=tag.encode(),
        words=introduction.words,
    )
