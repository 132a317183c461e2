"""The service api.public.compute.Compute: see proto/compute.proto, which says what each method promises."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from bentpipe.daemon.accounts.contract import Access, Scope
from bentpipe.daemon.api.call import Call, Method, unary, waiting
from bentpipe.daemon.api.finding import Named, check_name, find_satellite, satellites_of
from bentpipe.daemon.api.reservations import Reservations
from bentpipe.daemon.api.statuses import STATUS, StateBoard
from bentpipe.daemon.api.streams import Respond, StateStream, interval_of, stream_sleep, stream_wake
from bentpipe.daemon.errors import NotPermitted, NotServed, SleepRefused
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.machine.words import NOT_OURS
from bentpipe.daemon.fleet.provisioning import Provisioner
from bentpipe.daemon.fleet.registrar import Registrar
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.fleet.updating import WantedUpdate
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.proto import compute_pb2 as pb

SERVICE_PATH = "/api.public.compute.Compute/"
DEFAULT_PORT = 443
"""Of an `:authority` without one (RFC 9110 §4.2.2)."""

NOT_PERMITTED_IN_ORG = "this credential may not manage satellites of this org: that takes the scope `manage`"
CONFIGURED = "this satellite is part of the daemon's configuration: its operator changes and removes it there"
REGISTERED = "this satellite has registered itself: who runs its machine changes it there, and registers it again"
NO_WINDOW = "this daemon changes nothing by itself, so there is no maintenance and no window for it"
NOT_UPDATED = {
    "version": "the satellite's software comes with the image of its machine type; --drop-cache gives it a machine of that",
    "maintenance_window_start": NO_WINDOW,
    "maintenance_weekends_only": NO_WINDOW,
    "feature_flags": "this daemon knows no feature flags",
}
"""The fields of an update that cannot be carried out, and why."""
NO_LAUNCH = "this daemon serves the satellites of its configuration: its operator adds one there"


class Repeated(Named, Protocol):
    """... whose answer is a stream of states."""

    @property
    def update_interval(self) -> Duration: ...  # noqa: D102


@dataclasses.dataclass(frozen=True, slots=True)
class Specs:
    """What the configuration says of a satellite's machine."""

    platform: str
    """As in Docker: "linux/amd64"."""
    size: str
    """The machine type, or what stands for it."""
    version: str = ""
    """Of the software on the satellite; empty if it is not known."""


class Compute:
    """The service's methods."""

    def __init__(
        self,
        fleet: Fleet,
        specs: Mapping[SatelliteKey, Specs],
        board: StateBoard,
        reservations: Reservations,
        satellite_address: str | None,
        provisioner: Provisioner | None = None,
        registrar: Registrar | None = None,
    ) -> None:
        """`satellite_address` is HOST:PORT of the port for builds; None: where the API is called; "": it is not known.

        Without a `provisioner` no satellite is launched or removed, without a `registrar` none registers itself.
        """
        self._fleet = fleet
        self._specs = specs
        self._board = board
        self._reservations = reservations
        self.satellite_address = satellite_address
        self._provisioner = provisioner
        self._registrar = registrar

    @property
    def methods(self) -> dict[str, Method]:
        """All of them, by path."""
        served = {
            "ListSatellites": unary(pb.ListSatellitesRequest, self._list),
            "GetSatellite": unary(pb.GetSatelliteRequest, self._get),
            "LaunchSatellite": waiting(pb.LaunchSatelliteRequest, self._launch),
            "UpdateSatellite": waiting(pb.UpdateSatelliteRequest, self._update),
            "DeleteSatellite": waiting(pb.DeleteSatelliteRequest, self._delete),
            "WakeSatellite": Method(self._wake, ends_at_once=True),
            "SleepSatellite": Method(self._sleep, ends_at_once=True),
            "ReserveSatellite": Method(self._reserve, ends_at_once=True),
        }
        return {SERVICE_PATH + name: method for name, method in served.items()}

    # -- who may what ------------------------------------------------------------------------------------------------

    def _find(self, access: Access, request: Named, scope: Scope) -> Satellite:
        """See `find_satellite`."""
        return find_satellite(self._fleet, access, request, scope)

    # -- what is -----------------------------------------------------------------------------------------------------

    def _list(self, call: Call, request: pb.ListSatellitesRequest) -> pb.ListSatellitesResponse:
        found = satellites_of(self._fleet, call.access, request.org_id)
        return pb.ListSatellitesResponse(instances=map(self._instance, found))

    def _instance(self, satellite: Satellite) -> pb.ListSatellitesResponse.SatelliteInstance:
        specs = self._specs[satellite.key]
        return pb.ListSatellitesResponse.SatelliteInstance(
            name=satellite.key.name,
            platform=specs.platform,
            status=STATUS[satellite.shown_state],
            size=specs.size,
            version=specs.version,
            last_used=self._last_used(satellite),
        )

    def _get(self, call: Call, request: pb.GetSatelliteRequest) -> pb.GetSatelliteResponse:
        satellite = self._find(call.access, request, Scope.USE)
        specs = self._specs[satellite.key]
        return pb.GetSatelliteResponse(
            id=str(satellite.key),
            platform=specs.platform,
            status=STATUS[satellite.shown_state],
            size=specs.size,
            last_used=self._last_used(satellite),
            version=specs.version,
            is_managed=satellite.rules.owned,
            satellite_address=self._address_for(call),
        )

    def _address_for(self, call: Call) -> str:
        return _with_port(call.authority) if self.satellite_address is None else self.satellite_address

    @staticmethod
    def _last_used(satellite: Satellite) -> Timestamp | None:
        last_used = satellite.last_used
        if last_used is None:
            return None
        used = Timestamp()
        used.FromSeconds(int(last_used))
        return used

    # -- what is to be -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _stream(self, call: Call, request: Repeated, scope: Scope, respond: Respond) -> Iterator[StateStream]:
        """Tell the caller a satellite's states inside the block. Raises as `_find`, and whenever it would raise later."""

        def find() -> Satellite:
            return self._find(call.access, request, scope)

        satellite = find()
        with self._board.watch(satellite.key) as watch:
            yield StateStream(call, satellite, watch, respond, interval_of(request.update_interval), find)

    async def _wake(self, call: Call) -> None:
        request = await call.only(pb.WakeSatelliteRequest)
        with self._stream(call, request, Scope.USE, _wake_response) as stream:
            await stream_wake(stream, lambda lease: None)

    async def _reserve(self, call: Call) -> None:
        request = await call.only(pb.ReserveSatelliteRequest)
        with self._stream(call, request, Scope.USE, _reserve_response) as stream:

            def reserve(lease: Lease) -> None:
                lease.keep()
                self._reservations.reserve(stream.satellite.key, call.access.name, lease)

            await stream_wake(stream, reserve)

    async def _sleep(self, call: Call) -> None:
        request = await call.only(pb.SleepSatelliteRequest)
        with self._stream(call, request, Scope.MANAGE, _sleep_response) as stream:
            if not stream.satellite.rules.owned:
                raise SleepRefused(NOT_OURS)
            await stream_sleep(stream)

    # -- satellites that come and go ---------------------------------------------------------------------------------

    async def _launch(self, call: Call, request: pb.LaunchSatelliteRequest) -> pb.LaunchSatelliteResponse:
        key = SatelliteKey(check_name(request.org_id, "org_id"), check_name(request.name, "name"))
        if not call.access.may(Scope.MANAGE, key.org, key.name):
            raise NotPermitted(NOT_PERMITTED_IN_ORG)
        if self._provisioner is None:
            raise NotServed(NO_LAUNCH)
        await self._provisioner.launch(key, request.size, request.platform, call.access.name)
        return pb.LaunchSatelliteResponse(status=STATUS[SatelliteState.CREATING])

    async def _update(self, call: Call, request: pb.UpdateSatelliteRequest) -> pb.UpdateSatelliteResponse:
        satellite = self._find(call.access, request, Scope.MANAGE)
        if not satellite.rules.owned:
            raise NotServed(REGISTERED)
        if self._provisioner is None or not self._is_launched(satellite):
            raise NotServed(CONFIGURED)
        for field, words in NOT_UPDATED.items():
            if getattr(request, field):
                raise NotServed(f"{field}: {words}")
        wanted = WantedUpdate(request.size, request.platform, request.drop_cache)
        await self._provisioner.update(satellite.key, wanted)
        return pb.UpdateSatelliteResponse()

    def _is_launched(self, satellite: Satellite) -> bool:
        return self._provisioner is not None and self._provisioner.has(satellite.key)

    async def _delete(self, call: Call, request: pb.DeleteSatelliteRequest) -> pb.DeleteSatelliteResponse:
        satellite = self._find(call.access, request, Scope.MANAGE)
        if self._registrar is not None and self._registrar.has(satellite.key):
            await self._registrar.remove(satellite.key, force=request.force)
            return pb.DeleteSatelliteResponse()
        if self._provisioner is None or not self._is_launched(satellite):
            raise NotServed(CONFIGURED)
        await self._provisioner.remove(satellite.key, force=request.force)
        return pb.DeleteSatelliteResponse()


def _wake_response(status: pb.SatelliteStatus) -> pb.WakeSatelliteResponse:
    return pb.WakeSatelliteResponse(status=status)


def _reserve_response(status: pb.SatelliteStatus) -> pb.ReserveSatelliteResponse:
    return pb.ReserveSatelliteResponse(status=status)


def _sleep_response(status: pb.SatelliteStatus) -> pb.SleepSatelliteResponse:
    return pb.SleepSatelliteResponse(status=status)


def _with_port(authority: str) -> str:
    """HOST:PORT of an `:authority`; IPv6 addresses are in brackets there."""
    host, colon, port = authority.rpartition(":")
    has_port = colon and port.isdigit() and (":" not in host or host.endswith("]"))
    return authority if has_port else f"{authority}:{DEFAULT_PORT}"
