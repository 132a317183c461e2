"""The data planes as processes of their own: connects to them, adopts what they have, serves their clients.

One task for each plane (`_run_plane`) owns its link. If the plane that accepts clients is gone, `_run_planes` has another
one started. A plane is found by its socket in the folder of planes: the one that accepts, and older ones that drain.
"""

import contextlib
import errno
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from bentpipe.config.model import Config
from bentpipe.daemon.connections.ends import OUTCOME_ENDS
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.coordination.contract import Coordination
from bentpipe.daemon.edge.edge import Edge
from bentpipe.daemon.edge.gatekeeper import Gatekeeper
from bentpipe.daemon.edge.handoff import Splice
from bentpipe.daemon.edge.plane import RemotePlane, SnapshotAnswer
from bentpipe.daemon.edge.plane_channel import PlaneChannel
from bentpipe.daemon.edge.plane_splicer import PlaneSplicer, splice_id_of
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes import snapshots as s
from bentpipe.daemon.planes.bounds import HELLO_S
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.link import Link, LinkEnd
from bentpipe.daemon.planes.sockets import connect_private, plane_sockets
from bentpipe.daemon.planes.splice_tag import SpliceTag, TagUnreadable
from bentpipe.daemon.planes.table import NEWEST_VERSION, OLDEST_VERSION, Plane
from bentpipe.daemon.records.record import LOST
from bentpipe.daemon.service.connection_records import host_name
from bentpipe.daemon.service.plane_admissions import moved_of, reason_of_end, record_of, take_admitted
from bentpipe.daemon.service.plane_arrivals import PlaneArrivals
from bentpipe.daemon.service.plane_counts import OUTCOMES, add_counters
from bentpipe.daemon.service.plane_engines import PlaneEngines
from bentpipe.daemon.service.plane_files import reload_planes
from bentpipe.daemon.service.plane_form import FILELESS, PlaneForm
from bentpipe.daemon.service.plane_ports import PlanePorts
from bentpipe.daemon.service.plane_start import Children, find_or_start_plane, is_live, live_planes
from bentpipe.daemon.service.successor_note import SuccessorNote
from bentpipe.daemon.tasks import Decision, Owner, run_owned
from bentpipe.native.engine import Ended, EndReason
from bentpipe.proto.errors import ErrorCode
from bentpipe.proto.refusal import goaway

log = logging.getLogger("bentpipe")

ENDS_A_TURN = 64
"""Splices of a plane that is gone, accounted for in one turn: each takes some 0.1 ms."""

METERS_EVERY_S = 10.0
"""Between two questions what all splices have moved."""

SYNC_S = 30.0
"""For a plane's snapshot: a million splices take some seconds."""

LOOK_S = 1.0
"""Between two looks for a new data plane: one that is being upgraded has a successor."""

AGAIN_S, AGAIN_MOST_S = 0.1, 5.0
"""Before a data plane is started again, doubling: one that dies at once must not fill the log."""

ENDED_S, ENDED_LOOK_S = 10.0, 0.02
"""For a plane that has drained, or has been told to cut what is left, to end its process."""

OTHER_PORTS = (
    "the data plane does not listen where the configuration says, since it was started with another one: "
    "start another data plane, or stop this one"
)

FindPlanes = Callable[[], Awaitable[Sequence[Path]]]
"""Finds the sockets of all data planes; starts a plane if none accepts clients."""


class PlaneUnusable(OSError):
    """A data plane that cannot be used: another daemon has it, or it speaks another version."""


@dataclass(frozen=True)
class CutOff:
    """A data plane that lives, or is still dying, though the link to it is over."""

    plane: RemotePlane
    path: Path
    end: LinkEnd
    splices: Sequence[int]
    """What it had when the link ended: they stay in use until the plane is found again, or is gone."""


class Planes:
    """All data planes of a daemon; `splicer` is what the hand-off uses of them."""

    def __init__(
        self, config: Config, find: FindPlanes, children: Children, folder: Path, *, waits_for_end: bool
    ) -> None:
        """`children` are the planes that `find` has started, `folder` has the sockets of all.

        `waits_for_end`: whether the end of this process waits for theirs, since nothing else ends them."""
        self._folder, self._waits_for_end = folder, waits_for_end
        self._children = children
        self.splicer = self._splicer = PlaneSplicer()
        self.engines = PlaneEngines(lambda: self._splicer)
        self._limits = config.limits
        self._words = _words_of(config)
        self._find = find
        self._ports = PlanePorts(config.listener)
        self._wanted_ports = {
            each.address[1] for each in config.listener if each.address is not None and each.address[1]
        }
        self._elsewhere: set[int] = set()
        """Numbers of the planes that were said not to listen where the configuration says."""
        self.ports = {each.address[1] for each in config.listener if each.address is not None}
        """TCP ports of listeners: those of the configuration, and those that a data plane says it has."""
        self._numbers = itertools.count(1)
        self._known: dict[str, RemotePlane] = {}
        """By the socket's name."""
        self._cut_off: dict[str, CutOff] = {}
        """By the socket's name."""
        self._edge: Edge | None = None
        self._coordination: Coordination | None = None
        """None until `enter_all`."""
        self._succeeding = trio.Lock()
        self._sessions: trio.Nursery | None = None
        self._arrivals = PlaneArrivals()
        self.note = SuccessorNote(lambda: self._splicer)
        self._ending = False
        self._lost = trio.Event()
        self.adopted: set[SatelliteKey] = set()
        """Satellites with a splice that lived when this daemon started."""

    # -- the life of the planes ----------------------------------------------------------------------------------------

    async def start(self, edge: Edge, nursery: trio.Nursery) -> None:
        """Connect to all planes and adopt their splices. Raises PlaneUnusable if there is none that can be used.

        Clients are kept waiting until `serve`.
        """
        self._edge = edge
        try:
            await self._connect_all(nursery)
        except PlaneUnusable:
            raise
        except OSError as exc:
            raise PlaneUnusable(exc.errno or errno.ENOENT, str(exc)) from exc
        nursery.start_soon(run_owned, Owner("data planes"), self._run_planes, nursery)
        nursery.start_soon(run_owned, Owner("meters"), self._run_meters)
        nursery.start_soon(run_owned, Owner("arrivals"), self._arrivals.run_arrivals, edge)

    async def enter_all(self, coordination: Coordination) -> None:
        """Tell other hosts who uses what already, before any of them may think that nobody does."""
        self._coordination = coordination
        await self._succeed(coordination)

    async def _succeed(self, coordination: Coordination) -> None:
        """Enter for all that is spliced, then give back what earlier processes of this host have entered."""
        edge = self._edge
        assert edge is not None
        async with self._succeeding:
            for key in sorted(edge.handoff.satellites, key=str):
                try:
                    await coordination.enter(key, trio.lowlevel.checkpoint)
                except StoreError as exc:
                    log.error("not entered", extra={"fields": {"satellite": str(key), "error": str(exc)}})
                satellite = edge.fleet.find(key)
                if satellite is not None and key not in edge.handoff.satellites:
                    satellite.leave_if_unused()  # the last splice ended before there was an entry to give back
            # What a plane that hangs has is not entered anew: it is in use by what its predecessors have entered.
            if edge.gatekeeper is None or not edge.gatekeeper.unheard:
                self.note.hand_on(coordination)

    def serve(self, sessions: trio.Nursery) -> None:
        """Take clients in, each in a task of `sessions`."""
        self._sessions = self._arrivals.sessions = sessions
        for plane in self._splicer:
            plane.accept()

    @property
    def _gatekeeper(self) -> Gatekeeper | None:
        return None if self._edge is None else self._edge.gatekeeper

    async def _connect_all(self, nursery: trio.Nursery) -> None:
        failure: OSError | None = None
        found = await self._find()
        if (gatekeeper := self._gatekeeper) is not None:
            gatekeeper.only_these_live([path.name for path in found])
        for path in found:
            if path.name not in self._known:
                try:
                    await self._connect(path, nursery)
                except OSError as exc:
                    log.error("a data plane cannot be used", extra={"fields": {"plane": path.name, "error": str(exc)}})
                    failure = exc
        if not self._known:
            raise failure or PlaneUnusable(errno.ENOENT, "no data plane can be used")

    async def _connect(self, path: Path, nursery: trio.Nursery) -> None:
        gatekeeper = self._gatekeeper
        if gatekeeper is not None and path.name not in self._cut_off:
            gatekeeper.expect(path.name)
        try:
            sock = connect_private(path)
        except ConnectionRefusedError:
            return  # it has died since it was found
        link = Link(sock, Plane.DATA)
        plane = RemotePlane(link, next(self._numbers), self)
        if (before := self._cut_off.pop(path.name, None)) is not None:
            plane.go_on_for(before.plane)
        self._known[path.name] = plane
        self._splicer.add(plane)
        nursery.start_soon(
            run_owned, Owner("data plane", path.name, Decision.GIVE_UP), self._run_plane, plane, link, path
        )
        plane.send_nowait(
            r.HelloRecord(r.LINK_ID, OLDEST_VERSION, NEWEST_VERSION, 0, os.getpid(), "bentpipe", path.name, b"")
        )
        with trio.move_on_after(HELLO_S):
            await plane.wait_greeted()
        if plane.hello is None or not plane.hello.newest >= OLDEST_VERSION or plane.hello.oldest > NEWEST_VERSION:
            link.close_soon()
            raise PlaneUnusable(errno.EPROTO, f"{path}: it does not speak as this version does: {plane.hello}")
        plane.send_nowait(r.SeatRecord(r.LINK_ID, False))
        with trio.move_on_after(SYNC_S):
            await plane.synced.wait()
        if plane.seated is None:
            words = "it does not answer" if link.bye is None else link.bye.words
            raise PlaneUnusable(errno.EBUSY, f"{path}: another daemon has this data plane: {words}")
        plane.send_nowait(self._limits_record())
        plane.send_nowait(r.WordsRecord(r.LINK_ID, self._words))
        stopped = self.note.read(plane.seated.note)
        # All planes get all names: this process may die before it has given back what they stand for.
        self.note.write_nowait()
        for key in stopped:
            self._expect_stop(key)
        if gatekeeper is not None:
            gatekeeper.seated(plane)
            if plane.synced.is_set():
                gatekeeper.heard(path.name)
            else:
                gatekeeper.expect(path.name)
                owner = Owner("late snapshot", path.name, Decision.GIVE_UP)
                nursery.start_soon(run_owned, owner, gatekeeper.hear_late, path.name, plane.synced)
        fields = {"plane": path.name, "pid": plane.hello.pid, "session": plane.seated.session, "adopted": plane.adopted}
        log.info("data plane seated", extra={"fields": fields})
        if self._sessions is not None:
            plane.accept()
        if self._coordination is not None:
            # Found after the start: what it knows of earlier processes' entries is given back, too.
            owner = Owner("inherited entries", path.name, Decision.GIVE_UP)
            nursery.start_soon(run_owned, owner, self._succeed, self._coordination)

    def _expect_stop(self, key: SatelliteKey) -> None:
        satellite = None if self._edge is None else self._edge.fleet.find(key)
        if satellite is not None:
            satellite.expect_stop()
            words = "it may be being stopped: an earlier control plane died meanwhile"
            log.warning(words, extra={"fields": {"satellite": str(key)}})

    async def _run_plane(self, plane: RemotePlane, link: Link, path: Path) -> None:
        try:
            end = await link.run_link(plane.receive, plane.gather)
        finally:
            link.flush_nowait()
            link.close()
            splices = plane.lost()
        self._known.pop(path.name, None)
        if not self._ending and is_live(path):
            # Its connections live: they stay in use, and the next link to the same plane goes on with them.
            fields = {"plane": path.name, "why": end.value, "broken": link.broken, "spliced": len(splices)}
            log.error("cut off from a data plane that lives", extra={"fields": fields})
            self._cut_off[path.name] = CutOff(plane, path, end, splices)
        else:
            await self._account_for(CutOff(plane, path, end, splices))
        self._lost.set()

    async def _account_for_dead(self) -> None:
        """The kernel closes a dying process's sockets one after the other: a plane may look alive when its link ends."""
        for name, cut in list(self._cut_off.items()):
            if not is_live(cut.path) and self._cut_off.pop(name, None) is not None:
                await self._account_for(cut)

    async def _account_for(self, gone: CutOff) -> None:
        """A plane is gone, and its splices with it."""
        plane, splices = gone.plane, gone.splices
        if not self._ending:
            fields = {"plane": gone.path.name, "why": gone.end.value, "cut": len(splices)}
            log.log(logging.ERROR if splices else logging.INFO, "a data plane is gone", extra={"fields": fields})
        for number, connection_id in enumerate(splices, 1):
            splice_id = splice_id_of(plane, connection_id)
            if self._edge is not None and self._edge.handoff.is_live(splice_id):
                self._edge.handoff.take_end(
                    Ended(splice_id, EndReason.ENGINE_CLOSED, moved_of(*plane.moved(connection_id)), 0)
                )
            plane.over(connection_id)
            if number % ENDS_A_TURN == 0:
                await trio.lowlevel.checkpoint()
        self.engines.forget(plane)
        if (gatekeeper := self._gatekeeper) is not None:
            gatekeeper.forget(plane)
            gatekeeper.heard(gone.path.name)
        self._splicer.remove(plane)

    async def _run_planes(self, nursery: trio.Nursery) -> None:
        """Have a plane started again whenever one is gone, and connect to each new one."""
        pause_s = AGAIN_S
        while True:
            with trio.move_on_after(LOOK_S):
                await self._lost.wait()
            self._children.reap()
            if not self._lost.is_set() and not self._cut_off and not await self._is_new():
                continue
            self._lost = trio.Event()
            while not self._ending:
                await self._account_for_dead()
                try:
                    await self._connect_all(nursery)
                    pause_s = AGAIN_S
                    break
                except OSError as exc:
                    log.error("no data plane", extra={"fields": {"error": str(exc), "again_in_s": pause_s}})
                    await trio.sleep(pause_s)
                    pause_s = min(2 * pause_s, AGAIN_MOST_S)

    async def _is_new(self) -> bool:
        found = await trio.to_thread.run_sync(lambda: list(plane_sockets(self._folder)))
        return any(path.name not in self._known for path in found)

    async def _run_meters(self) -> None:
        while True:
            await trio.sleep(METERS_EVERY_S)
            await self._splicer.refresh()

    # -- PlaneEvents ---------------------------------------------------------------------------------------------------

    def arrived(self, plane: RemotePlane, channel: PlaneChannel, record: r.ArrivedRecord) -> None:
        """See PlaneEvents."""
        port = self._ports.find(plane.counters, record.listener)
        if self._edge is None or self._sessions is None or port is None:
            raise ProtocolBroken("a client of a listener that is not in the configuration")
        self._arrivals.put(plane, channel, record, port)

    def is_live(self, plane: RemotePlane, record: r.LiveRecord) -> None:
        """See PlaneEvents."""
        edge = self._edge
        assert edge is not None
        try:
            tag = SpliceTag.decode(record.tag)
        except TagUnreadable as exc:
            log.error(
                "a splice that cannot be accounted for", extra={"fields": {"peer": record.peer, "error": str(exc)}}
            )
            return
        if edge.handoff.is_live(splice_id_of(plane, record.id)):
            return  # the link was over for a moment
        lease = edge.fleet.adopt(tag.key, tag.address)
        place = edge.quotas.adopt(tag.host, tag.payer, tag.key)
        kept = record_of(edge, tag, record.peer)
        splice = Splice(tag.key, tag.principal, record.peer, lease, place, kept, tag.credentials)
        edge.handoff.adopt(splice_id_of(plane, record.id), splice)
        plane.adopted += 1
        self.adopted.add(tag.key)

    def was_admitted(self, plane: RemotePlane, record: s.AdmittedRecord) -> None:
        """See PlaneEvents."""
        if self._edge is not None:
            take_admitted(self._edge, plane, record)

    def has_answered(self, plane: RemotePlane, record: SnapshotAnswer) -> None:
        """See PlaneEvents."""
        if (gatekeeper := self._gatekeeper) is not None:
            gatekeeper.answered(plane, record)

    def has_failed(self, plane: RemotePlane, connection_id: int) -> None:
        """See PlaneEvents."""
        if self._edge is not None:
            self._edge.handoff.drop(splice_id_of(plane, connection_id))

    def has_ended(self, plane: RemotePlane, record: r.EndedRecord) -> None:
        """See PlaneEvents."""
        edge = self._edge
        assert edge is not None
        splice_id = splice_id_of(plane, record.id)
        if not record.reason:
            edge.handoff.drop(splice_id)
            return
        ended = Ended(
            splice_id, reason_of_end(record.reason), moved_of(record.up, record.down, record.moments), record.error
        )
        before = record.before[:2]
        if edge.handoff.is_live(splice_id):
            if len(before) == 2:
                edge.handoff.said_before(splice_id, *before)
            edge.handoff.take_end(ended)
            return
        with contextlib.suppress(TagUnreadable):
            tag = SpliceTag.decode(record.tag)
            kept = record_of(edge, tag, record.peer)
            if len(before) == 2:
                kept.up_bytes, kept.down_bytes = before
            edge.handoff.account(tag.key, ended, kept)

    def has_counted(self, plane: RemotePlane, before: Mapping[str, int] | None) -> None:
        """See PlaneEvents. What the plane counts has not come here: clients that left before they were offered."""
        ports = {count for name, count in plane.counters.items() if name.startswith(r.PORT_COUNTERS)}
        self.ports |= ports
        missing = self._wanted_ports - ports
        if missing and not plane.counters.get("draining") and plane.number not in self._elsewhere:
            self._elsewhere.add(plane.number)
            log.error(OTHER_PORTS, extra={"fields": {"not_open": sorted(missing), "open": sorted(ports)}})
        if self._edge is not None and before is not None:
            add_counters(self._edge.counters, self._edge.quotas.reached, before, plane.counters)

    def was_unoffered(self, record: r.UnofferedRecord) -> None:
        """See PlaneEvents. The plane has counted it: only records and histograms are told here."""
        if self._edge is None:
            return
        kept = self._edge.book.reopen("", record.peer, record.wall_us / 1e6)
        kept.up_bytes, kept.down_bytes = record.up, record.down
        kept.finish(OUTCOME_ENDS.get(OUTCOMES.get(record.outcome, Outcome.BROKEN), LOST), record.error)
        kept.close()

    def is_busy(self, plane: RemotePlane, record: r.BusyRecord) -> None:
        """See PlaneEvents."""
        if self._edge is not None:
            self._edge.handoff.still_used(splice_id_of(plane, record.id))

    # -- the end -------------------------------------------------------------------------------------------------------

    async def reload(self, credentials: Mapping[str, Path]) -> list[str]:
        """See `reload_planes`."""
        return await reload_planes(list(self._splicer), credentials)

    async def read_counters(self) -> None:
        """Learn what all planes have counted by now."""
        async with trio.open_nursery() as nursery:
            for plane in list(self._splicer):
                nursery.start_soon(run_owned, Owner("data plane", "counters", Decision.GIVE_UP), plane.read_counters)

    def follow(self, config: Config) -> None:
        """Have the planes hold to the limits of this configuration."""
        self._limits = config.limits
        for plane in self._splicer:
            plane.send_nowait(self._limits_record())

    def _limits_record(self) -> r.LimitsRecord:
        limits = self._limits
        return r.LimitsRecord(
            id=r.LINK_ID,
            clients=limits.places_for_strangers,
            per_prefix=limits.max_connections_per_address,
            handshakes_per_s=0,
            greeting_ms=round(limits.greeting_deadline_s * 1000),
        )

    def drain(self, deadline_s: float) -> None:
        """The planes accept no more clients, and exit after their last connection."""
        self._ending = True
        for plane in self._splicer:
            plane.send_nowait(r.DrainRecord(r.LINK_ID, int(deadline_s * 1000)))

    async def wait_ended(self) -> None:
        """Wait for the planes that this process has started or found, after `drain`; for ENDED_S at most."""
        with trio.move_on_after(ENDED_S):
            while self._children.reap() or (self._waits_for_end and live_planes(self._folder)):
                await trio.sleep(ENDED_LOOK_S)

    def leave(self) -> None:
        """Let go of all planes: they keep what is spliced, and offer every other client to the next control plane."""
        self._ending = True
        for plane in self._splicer:
            plane.leave()


def make_planes(config: Config, config_path: Path | None, form: PlaneForm) -> Planes | None:
    """The data planes; None if connections live in this process. Raises OSError."""
    folder = form.folder
    if folder is None:
        return None
    if config_path is None:
        raise OSError(errno.EINVAL, FILELESS)

    children = Children()

    async def find() -> Sequence[Path]:
        children.keep(await find_or_start_plane(config_path, folder, is_external=form.is_external))
        return live_planes(folder)

    return Planes(config, find, children, folder, waits_for_end=not form.is_external)


def _words_of(config: Config) -> bytes:
    """What clients hear that have waited too long for a control plane."""
    words = f"the control plane of edge host {host_name(config)} is away: nothing was done, try again"
    return goaway(ErrorCode.NO_ERROR, words)
