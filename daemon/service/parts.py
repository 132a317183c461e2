"""The daemon as one value: its parts, connected to each other. `assembly.py` builds it, `running.py` runs it.

It decides nothing. Code that has to read a running daemon (the metrics, the signals, a test) gets this value.
"""

import collections
import dataclasses
from collections.abc import Mapping

import trio

from bentpipe.config.model import Config
from bentpipe.daemon.api.operations import Operations
from bentpipe.daemon.api.server import ControlApi
from bentpipe.daemon.connections.outcomes import ConnectionCounters
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.edge.edge import Edge
from bentpipe.daemon.edge.handoff import HandOff
from bentpipe.daemon.edge.health import HealthBoard
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.provisioning import Provisioner
from bentpipe.daemon.fleet.registrar import Registrar
from bentpipe.daemon.fleet.reserve_keeper import ReserveKeeper
from bentpipe.daemon.ledger.recorder import Recorder
from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.providers.process.provider import ProcessProvider
from bentpipe.daemon.providers.router import Providers
from bentpipe.daemon.service.accounts import AccountParts
from bentpipe.daemon.service.admin_page import AdminPage
from bentpipe.daemon.service.api import ApiNews
from bentpipe.daemon.service.certificate_watch import CertificateWatch
from bentpipe.daemon.service.connection_records import ConnectionRecords
from bentpipe.daemon.service.current import Current
from bentpipe.daemon.service.plane_counts import told_certificate_ends
from bentpipe.daemon.service.plane_engines import EngineReadings
from bentpipe.daemon.service.planes import Planes
from bentpipe.daemon.service.ports import Ports
from bentpipe.daemon.service.reload import Reloader
from bentpipe.daemon.service.rolling import Rolling
from bentpipe.daemon.service.satellite_ca import SatelliteCa
from bentpipe.daemon.service.satellite_changes import SatelliteChanges
from bentpipe.daemon.service.stores import Stores
from bentpipe.daemon.service.turns import TurnMeter
from bentpipe.native.engine import Engine


@dataclasses.dataclass(frozen=True, slots=True)
class Records:
    """The stores, and what the daemon writes down of the satellites' changes of state."""

    stores: Stores
    recorder: Recorder | None
    """None if no ledger is kept."""
    connections: ConnectionRecords
    """The records of connections."""
    arrivals: collections.Counter[SatelliteState] = dataclasses.field(default_factory=collections.Counter)
    """How often satellites came into each state."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """All parts of a daemon."""

    current: Current
    """The configuration."""
    reloader: Reloader
    changes: SatelliteChanges
    edge: Edge
    health: HealthBoard
    account_parts: AccountParts
    api: ControlApi
    operations: Operations
    """What the satellites do."""
    api_news: ApiNews
    engine: Engine | None
    """None: data planes have the connections."""
    engines: EngineReadings
    """The engine, or those of the data planes."""
    provider: Providers
    processes: ProcessProvider | None
    """None: no satellite is a local process."""
    records: Records
    provisioner: Provisioner | None
    """None: no satellite is launched or removed at run time."""
    reserve: ReserveKeeper | None
    """None: no machine is launched ahead."""
    satellite_ca: SatelliteCa | None
    """None: the daemon issues no certificates."""
    registrar: Registrar | None
    """None: no satellite registers itself."""
    ports: Ports
    certificate_watch: CertificateWatch
    page: AdminPage
    rolling: Rolling | None = None
    """None: there is no ledger, or it keeps no sums."""
    planes: Planes | None = None
    """The data planes, if they are processes of their own."""
    turns: TurnMeter = dataclasses.field(default_factory=TurnMeter)
    accepting: trio.Event = dataclasses.field(default_factory=trio.Event)
    """Is set once clients are accepted."""
    drain: trio.Event = dataclasses.field(default_factory=trio.Event)
    """Set it to begin the drain."""
    leave: trio.Event = dataclasses.field(default_factory=trio.Event)
    """Set it, before `drain`, to leave all connections to the next control plane instead."""

    @property
    def config(self) -> Config:
        """The configuration with which it runs now."""
        return self.current.config

    @property
    def certificate_ends(self) -> Mapping[str, float]:
        """Until when each certificate's file holds, in seconds since the epoch, in this process and in data planes."""
        told = () if self.planes is None else (plane.counters for plane in self.planes.splicer)
        return {**self.certificate_watch.ends, **told_certificate_ends(told)}

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """(IP address, port) of each client listener, as bound."""
        if self.planes is not None:
            return tuple(each.address for each in self.config.listener if each.address is not None)
        return tuple(listener.address for listener in self.ports.listeners)

    @property
    def metrics_addresses(self) -> tuple[tuple[str, int], ...]:
        """(IP address, port) of each socket of the metrics, as bound."""
        return self.ports.metrics.addresses

    @property
    def fleet(self) -> Fleet:
        """The satellites."""
        return self.edge.fleet

    @property
    def handoff(self) -> HandOff:
        """The spliced connections."""
        return self.edge.handoff

    @property
    def counters(self) -> ConnectionCounters:
        """The connections, counted."""
        return self.edge.counters

    @property
    def quotas(self) -> Quotas:
        """The places of all connections."""
        return self.edge.quotas

    @property
    def recorder(self) -> Recorder | None:
        """Writes the ledger; None if none is kept."""
        return self.records.recorder

    def reload(self) -> None:
        """Take over the configuration as it is in the files now, and try again what only people can mend.

        SIGHUP says that they acted. If there is a mistake in the files, nothing changes, and the log says why.
        """
        self.reloader.ask()

    def leave_satellites(self) -> None:
        """From now on the end of the daemon leaves local satellites running; the next one finds them. Drains nothing."""
        if self.processes is not None:
            self.processes.leave_nowait()

    def drain_local_api(self) -> None:
        """Take no more calls on the Unix socket, if there is one."""
        if self.ports.local_api is not None:
            self.ports.local_api.api.drain()
