"""Connects the registration of satellites with the parts that keep something of each satellite. Starts nothing."""

import dataclasses
from collections.abc import Collection

from bentpipe.config.model import Config
from bentpipe.daemon.api.compute import Specs
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.trust_material import TrustMaterial
from bentpipe.daemon.errors import InvalidRequest
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.registrar import Registrar
from bentpipe.daemon.ids import machine_id_of
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.providers.registered import RegisteredProvider
from bentpipe.daemon.registry.registered import RegisteredSatellite
from bentpipe.daemon.service.provisioning import SatelliteParts
from bentpipe.daemon.service.stores import Stores
from bentpipe.native.engine import Ktls
from bentpipe.native.tls import TlsError

SIZE = "registered"
"""What the API says instead of a machine type."""


@dataclasses.dataclass(slots=True)
class RegisteredSatelliteParts:
    """The `RegisteredParts` of `daemon/fleet/registrar.py`."""

    parts: SatelliteParts
    provider: RegisteredProvider
    ktls: Ktls
    authorities: dict[SatelliteKey, str] = dataclasses.field(default_factory=dict)
    """The authority of each satellite that speaks TLS, in PEM, as its context in `parts.tls` was made of it."""

    def check_authority(self, root_ca: str) -> None:
        """See RegisteredParts."""
        try:
            TrustMaterial(root_ca).make_context(self.ktls)
        except TlsError as exc:
            raise InvalidRequest(f"certificate.root_ca cannot be used: {exc}") from exc

    def register(self, satellite: RegisteredSatellite, *, age_s: float) -> None:
        """See RegisteredParts."""
        key = satellite.key
        machine_id = machine_id_of(key)
        self.parts.specs[key] = Specs(satellite.platform, SIZE, satellite.version)
        if not satellite.root_ca:
            self.authorities.pop(key, None)
            self.parts.tls.pop(key, None)
        elif self.authorities.get(key) != satellite.root_ca:
            material = TrustMaterial(satellite.root_ca)
            context = material.make_context(self.ktls)
            self.parts.tls[key] = SatelliteTls(context, trust=f"registered:{key}", material=material)
            self.authorities[key] = satellite.root_ca
        proven = bool(satellite.root_ca)
        self.provider.heard(machine_id, satellite.address, satellite.beat_us, proven=proven, age_s=age_s)
        self.parts.machines.providers.add(machine_id, self.provider)

    def end_use(self, key: SatelliteKey) -> None:
        """See RegisteredParts."""
        self.parts.end_use(key)

    def forget(self, key: SatelliteKey) -> None:
        """See RegisteredParts."""
        self.authorities.pop(key, None)
        self.parts.forget(key)
        self.provider.forget(machine_id_of(key))


def make_registrar(
    config: Config, fleet: Fleet, stores: Stores, parts: SatelliteParts, ktls: Ktls, own_ports: Collection[int]
) -> Registrar | None:
    """Make what registers satellites; None if the configuration does not allow it, or there is no store."""
    section, provider = config.registration, parts.machines.registered
    if section is None or provider is None or stores.registered is None:
        return None
    registered = RegisteredSatelliteParts(parts, provider, ktls)
    most = config.limits.max_registered_per_org
    return Registrar(fleet, stores.registered, registered, section, own_ports, most_per_org=most)
