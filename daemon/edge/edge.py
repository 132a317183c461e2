"""What all connections of the edge share. The service's assembly makes one."""

import dataclasses
from collections.abc import Mapping

from bentpipe.daemon.connections.deadlines import Deadlines
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.greeters import Greeters
from bentpipe.daemon.connections.outcomes import ConnectionCounters
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.edge.announcements import Announcements
from bentpipe.daemon.edge.gatekeeper import Gatekeeper
from bentpipe.daemon.edge.handoff import HandOff
from bentpipe.daemon.edge.identity import Identities
from bentpipe.daemon.edge.plane_splicer import PlaneSplicer
from bentpipe.daemon.edge.services import HttpService, Service
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.records.book import Book


@dataclasses.dataclass(frozen=True, slots=True)
class Edge:
    """The parts that a session works with."""

    fleet: Fleet
    identities: Identities
    services: tuple[Service, ...]
    """They answer the connections whose first request is for them; all others are for satellites."""
    api: HttpService
    """The control API, which answers on the ports that are configured for it."""
    handoff: HandOff
    counters: ConnectionCounters
    book: Book
    """The records of all connections."""
    quotas: Quotas
    satellite_tls: Mapping[SatelliteKey, SatelliteTls]
    greetings: Deadlines
    """From accept to the first complete request."""
    announcements: Announcements
    greeters: Greeters
    planes: PlaneSplicer | None = None
    """The data planes, if the sockets of clients and satellites are theirs."""
    gatekeeper: Gatekeeper | None = None
    """Tells them how they may admit clients themselves."""
