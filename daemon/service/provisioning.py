"""Connects the launching of satellites with the parts that keep something of each satellite. Starts nothing."""

import dataclasses
import logging

from bentpipe.config.model import Config, MachineTypeSection, SatelliteSection
from bentpipe.daemon.api.compute import Specs
from bentpipe.daemon.api.reservations import Reservations
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.edge.handoff import HandOff
from bentpipe.daemon.edge.questions import ResponderTarget
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.provisioning import Provisioner
from bentpipe.daemon.fleet.reserve_giver import ReserveGiver
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.api import specs_of
from bentpipe.daemon.service.issued_tls import IssuedTls
from bentpipe.daemon.service.machines import Machines
from bentpipe.daemon.service.readings import target_of
from bentpipe.daemon.service.stores import Stores

log = logging.getLogger("bentpipe")


@dataclasses.dataclass(frozen=True, slots=True)
class SatelliteParts:
    """The `Parts` of `daemon/fleet/satellite_parts.py`. It changes `tls`, `responders` and `specs`, which others read."""

    machines: Machines
    tls: dict[SatelliteKey, SatelliteTls]
    type_tls: dict[tuple[str, str], SatelliteTls]
    """By size and platform."""
    responders: dict[SatelliteKey, ResponderTarget]
    specs: dict[SatelliteKey, Specs]
    reservations: Reservations
    handoff: HandOff
    issued: IssuedTls | None
    proven: set[SatelliteKey]
    """See KnownAddresses."""
    reserve: ReserveGiver | None = None

    def add(self, section: SatelliteSection, kind: MachineTypeSection) -> None:
        """See Parts."""
        key = SatelliteKey(section.org, section.name)
        self.machines.add(section, is_configured=False)
        if self.reserve is not None:
            self.reserve.know(key, kind)
        self.specs[key] = Specs(kind.platform, kind.size)
        if (responder := target_of(section)) is not None:
            self.responders[key] = responder
        self._forget_tls(key)  # of an earlier type
        tls = self.type_tls.get((kind.size, kind.platform))
        if tls is not None:
            self.tls[key] = tls
        if kind.has_issued_tls and self.issued is not None:
            self.issued.add(key)
            self.proven.add(key)

    def take_up(self, section: SatelliteSection, tls: SatelliteTls | None, *, proven: bool) -> None:
        """The same for a satellite of the configuration that is taken up at run time. `tls` is of its own section."""
        key = SatelliteKey(section.org, section.name)
        self.machines.add(section, is_configured=True)
        self.specs[key] = specs_of(section)
        if (responder := target_of(section)) is not None:
            self.responders[key] = responder
        if tls is not None:
            self.tls[key] = tls
        if section.has_issued_tls and self.issued is not None:
            self.issued.add(key)
        if proven:
            self.proven.add(key)

    def end_use(self, key: SatelliteKey) -> None:
        """See Parts."""
        self.reservations.drop(key)
        cut = self.handoff.cut(lambda each: each.key == key)
        if cut:
            log.warning("connections to a removed satellite cut", extra={"fields": {"satellite": str(key), "cut": cut}})

    def forget(self, key: SatelliteKey) -> None:
        """See Parts."""
        self._forget_tls(key)
        if self.reserve is not None:
            self.reserve.forget(key)
        self.responders.pop(key, None)
        self.specs.pop(key, None)
        self.machines.forget(key)
        self.handoff.forget(key)

    def _forget_tls(self, key: SatelliteKey) -> None:
        if self.issued is not None:
            self.issued.forget(key)
        self.proven.discard(key)
        self.tls.pop(key, None)


def make_provisioner(config: Config, fleet: Fleet, stores: Stores, parts: SatelliteParts) -> Provisioner | None:
    """Make what launches satellites; None if the configuration has no machine types, or there is no store."""
    if not config.machine_type or stores.launched is None or stores.registry is None:
        return None
    return Provisioner(
        fleet,
        parts.machines.providers,
        stores.launched,
        stores.registry,
        parts,
        config.machine_type,
        most_per_org=config.limits.max_launched_per_org,
    )
