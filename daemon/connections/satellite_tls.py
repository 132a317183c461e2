"""Reads the certificates of the configuration by which satellites are trusted.

A control plane whose data plane is a process of its own reads none of them, and knows only what they are called there.
"""

from pathlib import Path

from bentpipe.config.model import Config, SatelliteTlsSection
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.model import SatelliteKey
from bentpipe.native.engine import Ktls
from bentpipe.native.tls import TlsClientContext


def satellite_tls_of(config: Config, ktls: Ktls | None) -> dict[SatelliteKey, SatelliteTls]:
    """Read them, or only their names if `ktls` is None. Raises TlsError, naming the file."""
    return {
        key: _trust(section.tls, section.tls.ca, ktls, f"satellite:{key}")
        for section in config.satellite
        for key in (SatelliteKey(section.org, section.name),)
        if section.tls is not None and section.tls.ca is not None
    }


def type_tls_of(config: Config, ktls: Ktls | None) -> dict[tuple[str, str], SatelliteTls]:
    """The same for machine types, by size and platform. Raises TlsError, naming the file."""
    return {
        (each.size, each.platform): _trust(each.tls, each.tls.ca, ktls, f"type:{each.size}/{each.platform}")
        for each in config.machine_type
        if each.tls is not None and each.tls.ca is not None
    }


def _trust(section: SatelliteTlsSection, ca: Path, ktls: Ktls | None, trust: str) -> SatelliteTls:
    if ktls is None:
        return SatelliteTls(None, section.server_name, trust=trust)
    context = TlsClientContext(ca=ca, certificate=section.certificate, key=section.key)
    if ktls:
        context.enable_ktls()
    return SatelliteTls(context, section.server_name, trust=trust)
