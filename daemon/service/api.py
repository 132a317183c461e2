"""Puts the control API together: its services, the authority that it asks, and what it hears of satellites and splices."""

import dataclasses
from collections.abc import Callable, Mapping

import trio

from bentpipe.config.model import Config, SatelliteSection
from bentpipe.daemon.accounts.contract import Authority
from bentpipe.daemon.api import logstream
from bentpipe.daemon.api.compute import Compute, Specs
from bentpipe.daemon.api.health import HealthCalls
from bentpipe.daemon.api.operations import Operations
from bentpipe.daemon.api.operator import OperatorAuthority
from bentpipe.daemon.api.reflection import Reflection
from bentpipe.daemon.api.registration import Registration
from bentpipe.daemon.api.reservations import Reservations
from bentpipe.daemon.api.server import ControlApi
from bentpipe.daemon.api.statuses import StateBoard
from bentpipe.daemon.connections.outcomes import ConnectionCounters
from bentpipe.daemon.edge.handoff import HandOff
from bentpipe.daemon.edge.health import HealthBoard
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.provisioning import Provisioner
from bentpipe.daemon.fleet.registrar import Registrar
from bentpipe.daemon.fleet.reserve_keeper import ReserveKeeper
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.tasks import Owner, run_owned
from bentpipe.proto import compute_pb2, health_check_pb2, logstream_pb2, operations_pb2


@dataclasses.dataclass(frozen=True, slots=True)
class ApiNews:
    """What the API hears of the daemon: satellites' changes of state, and splices."""

    states: StateBoard = dataclasses.field(default_factory=StateBoard)
    reservations: Reservations = dataclasses.field(default_factory=Reservations)

    def start(self, nursery: trio.Nursery) -> None:
        """Start the task that ends reservations."""
        nursery.start_soon(run_owned, Owner("reservations"), self.reservations.run_reservations)


@dataclasses.dataclass(frozen=True, slots=True)
class Satellites:
    """What the API works with: satellites, what is known of each, their connections, and who launches or registers more."""

    fleet: Fleet
    handoff: HandOff
    specs: Mapping[SatelliteKey, Specs]
    provisioner: Provisioner | None
    registrar: Registrar | None
    health: HealthBoard
    reserve: ReserveKeeper | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Apis:
    """The API for every listener that is configured for it, and the one for the Unix socket, whose callers may do all."""

    served: ControlApi
    local: ControlApi
    services: tuple[Compute, Compute]
    """Of both."""
    operator: OperatorAuthority
    operations: Operations
    """Of the socket's."""

    def follow(self, config: Config) -> None:
        """Take over another configuration."""
        for api in (self.served, self.local):
            api.change_stranger_age(config.limits.stranger_age_s)
        served, local = self.services
        served.satellite_address = config.api.satellite_address
        local.satellite_address = _local_address(config)
        self.operator.replace_orgs(_orgs(config))


def make_apis(
    config: Config,
    satellites: Satellites,
    authority: Authority,
    counters: ConnectionCounters,
    news: ApiNews,
    host: Callable[[], operations_pb2.HostActivity],
) -> Apis:
    """Make both. What `host` tells is for the socket alone."""
    operator = OperatorAuthority(_orgs(config))
    served, compute, _ = _make(config, satellites, authority, counters, news, config.api.satellite_address)
    local, local_compute, operations = _make(config, satellites, operator, counters, news, _local_address(config), host)
    return Apis(served, local, (compute, local_compute), operator, operations)


def _orgs(config: Config) -> list[str]:
    return sorted({section.org for section in config.satellite})


def _local_address(config: Config) -> str:
    """What callers of the Unix socket dial is not an address for builds."""
    return config.api.satellite_address or ""


def _make(
    config: Config,
    satellites: Satellites,
    authority: Authority,
    counters: ConnectionCounters,
    news: ApiNews,
    address: str | None,
    host: Callable[[], operations_pb2.HostActivity] | None = None,
) -> tuple[ControlApi, Compute, Operations]:
    compute = Compute(
        *(satellites.fleet, satellites.specs, news.states, news.reservations, address),
        provisioner=satellites.provisioner,
        registrar=satellites.registrar,
    )
    operations = Operations(satellites.fleet, news.states, satellites.handoff, satellites.reserve, host)
    health, registration = HealthCalls(satellites.health), Registration(satellites.registrar)
    described = (compute_pb2, logstream_pb2, operations_pb2, health_check_pb2)
    reflection = Reflection([each.DESCRIPTOR for each in described])
    methods = {
        **compute.methods,
        **registration.methods,
        **operations.methods,
        **health.methods,
        **logstream.METHODS,
        **reflection.methods,
    }
    return ControlApi(methods, authority, counters, config.limits.stranger_age_s), compute, operations


def specs_of(section: SatelliteSection) -> Specs:
    """What the configuration says: an instance type if it names one, otherwise the kind of machine."""
    if section.ec2 is not None:
        return Specs(section.platform, section.ec2.instance_type or "ec2")
    return Specs(section.platform, "process")
