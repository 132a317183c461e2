"""Reads the first requests of clients that may be admitted here: in C where their greeting is, in a third of the time.

A request that is not plain is for the control plane to judge: what it would refuse, what shows no token, health checks.
"""

import hashlib

from bentpipe.daemon.connections.native_greeting import NativeGreeting
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.connections.server_name import named_satellites
from bentpipe.native.lib import Pointer
from bentpipe.native.request import RequestReader, TokenRequest
from bentpipe.proto.api_paths import API_PATHS
from bentpipe.proto.events import HeaderList, RequestHeaders
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.health import HEALTH_PATHS
from bentpipe.proto.request import MetadataError, parse_request
from bentpipe.proto.trace_context import trace_context


class FirstRequests:
    """Reads them."""

    def __init__(self) -> None:
        self._readers = {serves_api: RequestReader(own_paths(serves_api=serves_api)) for serves_api in (False, True)}

    def read(
        self, greeting: Greeting | NativeGreeting, first: RequestHeaders, server_name: str, port: Port
    ) -> TokenRequest | None:
        """Read the request that the greeting has told last. Returns None if it is not plain.

        `server_name`: the client's (SNI), or "".
        """
        if not isinstance(greeting, NativeGreeting):
            return read_in_python(first.headers, server_name or None, port)
        name, below = (each.encode() if each else None for each in (server_name, port.satellite_domain))
        return self._readers[port.serves_api].read(greeting.request_fields, name, below)

    def rules(self, port: Port) -> Pointer:
        """The rules of a port, for C. They stay as long as this object."""
        domain = port.satellite_domain
        return self._readers[port.serves_api].rules(domain.encode() if domain else None)


def own_paths(*, serves_api: bool) -> tuple[bytes, ...]:
    """What the paths of requests begin with that the daemon answers itself, at a port with or without the control API."""
    return (*HEALTH_PATHS, *API_PATHS) if serves_api else HEALTH_PATHS


def read_in_python(headers: HeaderList, server_name: str | None, port: Port) -> TokenRequest | None:
    """The same in Python."""
    try:
        request = parse_request(headers)
    except MetadataError:
        return None
    named = named_satellites(request, server_name, port.satellite_domain)
    own = own_paths(serves_api=port.serves_api)
    if len(named) != 1 or not request.token or request.path.encode("latin-1").startswith(own):
        return None
    [key] = named
    parent, state = trace_context(headers)
    digest = hashlib.sha256(request.token.encode()).digest()
    return TokenRequest(key.org, key.name, digest, parent.encode(), state.encode())
