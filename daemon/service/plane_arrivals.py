"""Takes in the clients that data planes offer, as a listener does that accepts them: a few in a turn, and not all at once.

A client is not taken in while it could only put out a stranger that is as new as itself, and that may be about to show a
token.
"""

import collections

import trio

from bentpipe.daemon.connections.arrival import Arrival, Proxies
from bentpipe.daemon.connections.listener import ACCEPT_BATCH, PAUSE_S
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.edge.caller import Caller, Offer
from bentpipe.daemon.edge.edge import Edge
from bentpipe.daemon.edge.identity import TlsIdentity
from bentpipe.daemon.edge.plane import RemotePlane
from bentpipe.daemon.edge.plane_channel import PlaneChannel
from bentpipe.daemon.edge.session import Session
from bentpipe.daemon.planes.records import ArrivalFlag, ArrivedRecord
from bentpipe.daemon.tasks import Decision, Owner, run_owned


class PlaneArrivals:
    """`sessions` gets a task for each client."""

    def __init__(self) -> None:
        self.sessions: trio.Nursery | None = None
        self._arrived: collections.deque[tuple[RemotePlane, PlaneChannel, ArrivedRecord, Port]] = collections.deque()
        """Clients that are not taken in yet: at most OFFERED_CLIENTS of each plane."""
        self._came = trio.Event()

    def put(self, plane: RemotePlane, channel: PlaneChannel, record: ArrivedRecord, port: Port) -> None:
        """A client has come to a listener, which speaks as `port` says."""
        self._arrived.append((plane, channel, record, port))
        self._came.set()

    async def run_arrivals(self, edge: Edge) -> None:
        """Take them in, for ever."""
        while True:
            await self._came.wait()
            self._came = trio.Event()
            while self._arrived:
                for _ in range(min(ACCEPT_BATCH, len(self._arrived))):
                    while (pause_s := edge.quotas.pause_s()) > 0:
                        await trio.sleep(min(pause_s, PAUSE_S))
                    self._take_in(edge, *self._arrived.popleft())
                await trio.lowlevel.checkpoint()

    def _take_in(
        self, edge: Edge, plane: RemotePlane, channel: PlaneChannel, record: ArrivedRecord, port: Port
    ) -> None:
        assert self.sessions is not None
        if not plane.take(channel):
            return
        name = None if record.flags & ArrivalFlag.LOCAL else (record.host, record.port)
        arrival = Arrival(edge.quotas, name, Proxies(), edge.book)
        caller = Caller(channel, arrival, plane.attempt, edge.greeters.make())
        hashed = bool(record.flags & ArrivalFlag.HASHED)
        certificate = record.certificate if record.certificate and not hashed else None
        caller.offer = Offer(
            TlsIdentity(record.server_name or None, certificate),
            bool(record.flags & ArrivalFlag.PLAINTEXT),
            record.mark if record.flags & ArrivalFlag.AGAIN else None,
        )
        session = Session(edge, caller, port)
        self.sessions.start_soon(run_owned, Owner("session", caller.peer, Decision.GIVE_UP), session.run)
