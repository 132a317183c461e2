"""Reads the certificates by which satellites are trusted."""

from pathlib import Path

from bentpipe.config.model import Config, SatelliteTlsSection
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.model import SatelliteKey
from bentpipe.native.engine import Ktls
from bentpipe.native.tls import TlsClientContext


def satellite_tls_of(config: Config, ktls: Ktls) -> dict[SatelliteKey, SatelliteTls]:
    """Read the certificates by which satellites are trusted. Raises TlsError, naming the file."""
    return {
        key: _trust(section.tls, section.tls.ca, ktls, f"satellite:{key}")
        for section in config.satellite
        for key in (SatelliteKey(section.org, section.name),)
        if section.tls is not None and section.tls.ca is not None
    }


def type_tls_of(config: Config, ktls: Ktls) -> dict[tuple[str, str], SatelliteTls]:
    """The same for machine types, by size and platform. Raises TlsError, naming the file."""
    return {
        (each.size, each.platform): _trust(each.tls, each.tls.ca, ktls, f"type:{each.size}/{each.platform}")
        for each in config.machine_type
        if each.tls is not None and each.tls.ca is not None
    }


def _trust(section: SatelliteTlsSection, ca: Path, ktls: Ktls, trust: str) -> SatelliteTls:
    context = TlsClientContext(ca=ca, certificate=section.certificate, key=section.key)
    if ktls:
        context.enable_ktls()
    return SatelliteTls(context, section.server_name, trust=trust)
