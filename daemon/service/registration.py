"""Connects the registration of satellites with the parts that keep something of each satellite. Starts nothing."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from bentpipe.config.model import Config
from bentpipe.daemon.api.compute import Specs
from bentpipe.daemon.connections.dial_once import SatelliteTls
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
from bentpipe.native.tls import TlsClientContext, TlsError

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
            self._trust(root_ca)
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
            self.parts.tls[key] = self._trust(satellite.root_ca)
            self.authorities[key] = satellite.root_ca
        proven = bool(satellite.root_ca)
        self.provider.heard(machine_id, satellite.address, satellite.beat_us, proven=proven, age_s=age_s)
        self.parts.machines.providers.add(machine_id, self.provider)

    def _trust(self, root_ca: str) -> SatelliteTls:
        """Trust an authority that is in no file. Raises TlsError."""
        # OpenSSL reads authorities from a path: this one is in memory, and gone once it is closed (memfd_create(2)).
        fd = os.memfd_create("root_ca", os.MFD_CLOEXEC)
        try:
            os.write(fd, root_ca.encode())
            context = TlsClientContext(ca=Path(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)
        if self.ktls:
            context.enable_ktls()
        return SatelliteTls(context)

    def end_use(self, key: SatelliteKey) -> None:
        """See RegisteredParts."""
        self.parts.end_use(key)

    def forget(self, key: SatelliteKey) -> None:
        """See RegisteredParts."""
        self.authorities.pop(key, None)
        self.parts.forget(key)
        self.provider.forget(machine_id_of(key))


def make_registrar(
    config: Config, fleet: Fleet, stores: Stores, parts: SatelliteParts, ktls: Ktls, own_ports: Sequence[int]
) -> Registrar | None:
    """Make what registers satellites; None if the configuration does not allow it, or there is no store."""
    section, provider = config.registration, parts.machines.registered
    if section is None or provider is None or stores.registered is None:
        return None
    registered = RegisteredSatelliteParts(parts, provider, ktls)
    most = config.limits.max_registered_per_org
    return Registrar(fleet, stores.registered, registered, section, own_ports, most_per_org=most)
