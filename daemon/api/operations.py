"""The service bentpipe.operations.Operations: see proto/operations.proto, which says what each method promises."""

import dataclasses
import logging
from collections.abc import Callable, Iterator

import trio
from google.protobuf.timestamp_pb2 import Timestamp

from bentpipe.daemon.accounts.contract import Access, Scope
from bentpipe.daemon.api.call import Call, Method, unary, waiting
from bentpipe.daemon.api.finding import find_satellite, satellites_of
from bentpipe.daemon.api.statuses import STATUS, StateBoard
from bentpipe.daemon.edge.handoff import NOTHING_MOVED, HandOff, MovedBytes
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.reader import Reader
from bentpipe.daemon.fleet.reserve_keeper import ReserveKeeper
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.readings.condition import peaks_of
from bentpipe.proto import operations_pb2 as pb

log = logging.getLogger("bentpipe.api")

OPERATIONS_PATH = "/bentpipe.operations.Operations/"
TRAFFIC_AGE_S = 0.5
"""However many callers ask, the counters of all connections are read once in this time."""


class Operations:
    """The service's methods."""

    def __init__(
        self,
        fleet: Fleet,
        board: StateBoard,
        handoff: HandOff,
        reserve: ReserveKeeper | None = None,
        host: Callable[[], pb.HostActivity] | None = None,
    ) -> None:
        """`host` tells of the whole host, to callers who may know of all orgs; None for all others."""
        self._reserve = reserve
        self._host = host
        self._fleet = fleet
        self._board = board
        self._handoff = handoff
        self._traffic: dict[SatelliteKey, MovedBytes] = {}
        self._looked_at = Timestamp()
        self._old_at = float("-inf")
        self._reading = trio.Lock()

    @property
    def methods(self) -> dict[str, Method]:
        """All of them, by path."""
        return {
            OPERATIONS_PATH + "GetActivity": waiting(pb.GetActivityRequest, self._activity),
            OPERATIONS_PATH + "CutConnections": unary(pb.CutConnectionsRequest, self._cut),
        }

    async def _activity(self, call: Call, request: pb.GetActivityRequest) -> pb.GetActivityResponse:
        return await self.activity(call.access, request.org_id)

    async def activity(self, access: Access, org_id: str) -> pb.GetActivityResponse:
        """What the satellites of an org do, those that a caller may use. Raises InvalidRequest."""
        satellites_of(self._fleet, access, org_id)  # a malformed request costs no reading
        async with self._reading:
            if trio.current_time() >= self._old_at:
                self._traffic = await self._handoff.read_traffic()
                self._looked_at.GetCurrentTime()
                self._old_at = trio.current_time() + TRAFFIC_AGE_S
        found = satellites_of(self._fleet, access, org_id)
        reserve = self._reserves() if access.may(Scope.MANAGE, org_id, None) else ()
        return pb.GetActivityResponse(
            satellites=map(self._shown, found),
            looked_at=self._looked_at,
            reserve=reserve,
            host=None if self._host is None else self._host(),
        )

    def _reserves(self) -> Iterator[pb.ReserveActivity]:
        for each in () if self._reserve is None else self._reserve.summaries():
            yield pb.ReserveActivity(**dataclasses.asdict(each))

    def _shown(self, satellite: Satellite) -> pb.SatelliteActivity:
        traffic = self._traffic.get(satellite.key, NOTHING_MOVED)
        shown = pb.SatelliteActivity(
            name=satellite.key.name,
            status=STATUS[satellite.shown_state],
            held=satellite.waiting,
            connections=traffic.connections,
            up_bytes=traffic.up_bytes,
            down_bytes=traffic.down_bytes,
        )
        since = self._board.since(satellite.key)
        if since is not None:
            shown.since.FromMicroseconds(int(since * 1e6))
        if satellite.reader.reads and satellite.state is SatelliteState.OPERATIONAL:
            shown.reading.CopyFrom(reading_of(satellite.reader))
        return shown

    def _cut(self, call: Call, request: pb.CutConnectionsRequest) -> pb.CutConnectionsResponse:
        key = find_satellite(self._fleet, call.access, request, Scope.MANAGE).key
        count = self._handoff.cut(lambda each: each.key == key)
        fields = {"satellite": str(key), "principal": call.access.name, "cut": count}
        log.warning("connections cut", extra={"fields": fields})
        return pb.CutConnectionsResponse(cut=count)


def reading_of(reader: Reader) -> pb.Reading:
    """What a satellite's responder has told. The score of abuse is for operators: its tenant must not tune by it."""
    shown = pb.Reading(condition=reader.condition.value)
    reading = reader.last
    if reading is None:
        return shown
    peaks = peaks_of(reading)
    shown.cpu_percent, shown.memory_percent, shown.io_percent = dataclasses.astuple(peaks)
    shown.uptime_s = reading.uptime_s
    if reading.running_builds is not None:
        shown.builds = reading.running_builds
    if reading.disk is not None:
        shown.disk_used_percent = 100 * max(reading.disk.used, reading.disk.inodes_used)
    if reading.kills is not None:
        shown.oom_kills = reading.kills.machine_oom
    return shown
