"""TLS server names that name a satellite. Pure."""

from bentpipe.daemon.model import SatelliteKey


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
