"""The data plane's end of its control sockets: who may connect, and which control plane has the one seat.

A control plane that has died is read to the end of its socket before the next one sits: a GO that it sent is carried out.
One that hangs can be replaced: it gets YIELD, and what it had sent without being read is dropped.
"""

import dataclasses
import logging
import os

import trio

from bentpipe.daemon.dataplane.plane import DataPlane
from bentpipe.daemon.dataplane.plane_socket import PlaneSocket
from bentpipe.daemon.planes.bounds import HELLO_S, NOTE_BYTES
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.link import Link, LinkEnd
from bentpipe.daemon.planes.records import (
    LINK_ID,
    ByeCode,
    HelloRecord,
    PingRecord,
    Record,
    SeatedRecord,
    SeatRecord,
    YieldRecord,
)
from bentpipe.daemon.planes.snapshots import PlaneFeature
from bentpipe.daemon.planes.sockets import PeerDenied, check_peer
from bentpipe.daemon.planes.table import NEWEST_VERSION, OLDEST_VERSION, Plane
from bentpipe.daemon.tasks import Decision, Owner, run_owned

log = logging.getLogger("bentpipe.dataplane")

MOST_LINKS = 16
"""Control planes that are connected, seated or not. Each is a process of this user."""
DEAD_S = 1.0
"""For the end of a control plane that is dead: the rest of its socket is read in some turns."""
TAKE_OVER_S = 0.2
"""The same before a control plane that hangs is replaced."""
PING_S = 2.0
FULL_PAUSE_S = 0.1


@dataclasses.dataclass(eq=False, slots=True)
class _Visitor:
    """A control plane that is connected."""

    link: Link
    pid: int = 0
    scope: trio.CancelScope = dataclasses.field(default_factory=trio.CancelScope)
    over: trio.Event = dataclasses.field(default_factory=trio.Event)
    greeted: bool = False
    seated: bool = False
    asked: bool = False
    """It has asked for the seat."""
    replaced: bool = False
    """Another one has taken its seat."""


class SeatServer:
    """Listens for control planes. Takes the socket over."""

    def __init__(self, plane: DataPlane, sock: PlaneSocket, name: str, build: str, digest: bytes) -> None:
        """`name` is the plane's, `build` names the program, `digest` what it knows of listeners and satellites."""
        self._plane = plane
        self._sock = sock
        self._hello = HelloRecord(
            LINK_ID, OLDEST_VERSION, NEWEST_VERSION, PlaneFeature.SNAPSHOTS, os.getpid(), build, name, digest
        )
        self._visitors: set[_Visitor] = set()
        self._seated: _Visitor | None = None
        self._changing = trio.Lock()

    @property
    def is_taken(self) -> bool:
        """Whether a control plane sits."""
        return self._seated is not None

    def leave(self) -> None:
        """Say to all control planes that this process ends in good order."""
        for visitor in self._visitors:
            visitor.link.say_bye(ByeCode.LEAVING, "the data plane has drained")
            visitor.link.close()

    async def run_seats(self) -> None:
        """Serve control planes for ever."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_owned, Owner("seat ping"), self._ping)
                while True:
                    await self._accept(nursery)
        finally:
            self._sock.close()

    async def _accept(self, nursery: trio.Nursery) -> None:
        if len(self._visitors) >= MOST_LINKS:
            await trio.sleep(FULL_PAUSE_S)
            return
        try:
            sock = await self._sock.accept()
        except OSError as exc:
            log.warning("no control plane can connect", extra={"fields": {"error": str(exc)}})
            await trio.sleep(FULL_PAUSE_S)
            return
        visitor = _Visitor(Link(sock, Plane.CONTROL))
        try:
            visitor.pid = check_peer(sock)
        except PeerDenied as exc:
            log.warning("not a control plane of this user", extra={"fields": {"error": str(exc)}})
            visitor.link.say_bye(ByeCode.DENIED, str(exc))
            visitor.link.close()
            return
        self._visitors.add(visitor)
        nursery.start_soon(run_owned, Owner("control plane", "", Decision.GIVE_UP), self._serve, visitor, nursery)

    async def _serve(self, visitor: _Visitor, nursery: trio.Nursery) -> None:
        link = visitor.link
        end: LinkEnd | None = None
        try:
            link.send_nowait(dataclasses.replace(self._hello, holder=self._holder()))
            with visitor.scope:
                nursery.start_soon(run_owned, Owner("hello", "", Decision.GIVE_UP), self._expect_hello, visitor)
                gather = self._plane.streams.joiner.gather
                end = await link.run_link(lambda record: self._receive(visitor, record, nursery), gather)
        finally:
            if visitor.seated:
                self._seated = None
                self._plane.unseat()
                _tell_away(visitor, end)
            link.close()
            visitor.over.set()
            self._visitors.discard(visitor)

    def _holder(self) -> tuple[int, ...]:
        """See HelloRecord."""
        if self._seated is None:
            return ()
        silent_s = trio.current_time() - self._plane.reports.heard_at
        return self._seated.pid, max(0, round(1000 * silent_s))

    async def _expect_hello(self, visitor: _Visitor) -> None:
        with trio.move_on_after(HELLO_S):
            await visitor.over.wait()
        if not visitor.greeted and not visitor.over.is_set():
            visitor.link.say_bye(ByeCode.BROKEN, "no HELLO in time")
            visitor.scope.cancel()

    def _receive(self, visitor: _Visitor, record: Record, nursery: trio.Nursery) -> None:
        if visitor.seated:
            if isinstance(record, HelloRecord | SeatRecord):
                raise ProtocolBroken("HELLO or SEAT from the control plane that sits")
            self._plane.receive(record, nursery)
        elif isinstance(record, HelloRecord) and not visitor.greeted:
            visitor.greeted = True
            if record.newest < OLDEST_VERSION or record.oldest > NEWEST_VERSION:
                visitor.link.say_bye(ByeCode.VERSION, f"this data plane speaks {OLDEST_VERSION} to {NEWEST_VERSION}")
                visitor.scope.cancel()
        elif isinstance(record, SeatRecord) and visitor.greeted and not visitor.asked:
            visitor.asked = True
            owner = Owner("seat", "", Decision.GIVE_UP)
            nursery.start_soon(run_owned, owner, self._seat, visitor, record.take_over)
        else:
            raise ProtocolBroken("a record before the seat was given")

    async def _seat(self, visitor: _Visitor, take_over: bool) -> None:
        async with self._changing:
            old = self._seated
            if old is not None:
                with trio.move_on_after(TAKE_OVER_S if take_over else DEAD_S):
                    await old.over.wait()
                if not old.over.is_set():
                    if not take_over:
                        visitor.link.say_bye(ByeCode.SEAT_TAKEN, "another control plane sits and is alive")
                        visitor.scope.cancel()
                        return
                    old.link.send_nowait(YieldRecord(LINK_ID, "another control plane has taken the seat"))
                    old.link.flush_nowait()
                    old.replaced = True
                    old.scope.cancel()
                    await old.over.wait()
            if visitor.over.is_set():
                return
            self._seated = visitor
            visitor.seated = True
            plane, link = self._plane, visitor.link
            plane.make_ready_for_seat()
            plane.reports.seat(link)
            link.send_nowait(SeatedRecord(LINK_ID, plane.reports.session, plane.note[:NOTE_BYTES]))
            plane.synchronise()
            fields = {"session": plane.reports.session, "live": len(plane.joined), "clients": len(plane.line.clients)}
            log.info("a control plane sits", extra={"fields": fields})

    async def _ping(self) -> None:
        number = 0
        while True:
            await trio.sleep(PING_S)
            number += 1
            self._plane.reports.send(PingRecord(LINK_ID, number))


def _tell_away(visitor: _Visitor, end: LinkEnd | None) -> None:
    """Log that the control plane that sat is away, unless it is this process that ends."""
    if end is None and not visitor.replaced:
        return
    fields = {"end": "replaced by another" if end is None else end.value, "error": visitor.link.broken}
    level = logging.INFO if end is LinkEnd.PEER_LEFT else logging.WARNING
    log.log(level, "the control plane is away", extra={"fields": fields})
