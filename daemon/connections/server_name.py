"""Which satellite a connection asks for: by its TLS server name, or by its first request's metadata. Pure."""

from bentpipe.daemon.model import SatelliteKey
from bentpipe.proto.request import RouteRequest


def parse_server_name(server_name: str | None, domain: str | None) -> SatelliteKey | None:
    """Read `NAME.ORG.<domain>`. Returns None for any other name: the port may have a name of its own.

    DNS ignores case and clients may send either, so a satellite's own name must be in lower case, without a dot.
    """
    if server_name is None or domain is None:
        return None
    labels, dot, rest = server_name.lower().removesuffix(".").partition("." + domain)
    name, middle, org = labels.partition(".")
    if not dot or rest or not middle or not name or not org or "." in org:
        return None
    return SatelliteKey(org, name)


def named_satellites(request: RouteRequest, server_name: str | None, domain: str | None) -> frozenset[SatelliteKey]:
    """What the metadata and the server name name: no satellite, one, or two that differ."""
    by_metadata = None if request.satellite is None else SatelliteKey(*request.satellite)
    return frozenset(key for key in (by_metadata, parse_server_name(server_name, domain)) if key is not None)
