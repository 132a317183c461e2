"""Reads the first requests of clients that may be admitted here: in C where their greeting is, in a third of the time.

A request that is not plain is for the control plane to judge: what it would refuse, what shows no token, health checks.
"""

import hashlib

from bentpipe.daemon.connections.native_greeting import NativeGreeting
from bentpipe.daemon.connections.server_name import named_satellites
from bentpipe.native.request import RequestReader, TokenRequest
from bentpipe.proto.events import HeaderList, RequestHeaders
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.health import HEALTH_PATHS
from bentpipe.proto.request import MetadataError, parse_request
from bentpipe.proto.trace_context import trace_context


class FirstRequests:
    """Reads them, for ports that do not serve the control API."""

    def __init__(self) -> None:
        self._reader = RequestReader(HEALTH_PATHS)

    def read(
        self, greeting: Greeting | NativeGreeting, first: RequestHeaders, server_name: str, domain: str | None
    ) -> TokenRequest | None:
        """Read the request that the greeting has told last. Returns None if it is not plain.

        `server_name`: the client's (SNI), or "". `domain`: the port's, below which server names are satellites'.
        """
        if not isinstance(greeting, NativeGreeting):
            return read_in_python(first.headers, server_name or None, domain)
        name, below = (each.encode() if each else None for each in (server_name, domain))
        return self._reader.read(greeting.request_fields, name, below)


def read_in_python(headers: HeaderList, server_name: str | None, domain: str | None) -> TokenRequest | None:
    """The same in Python."""
    try:
        request = parse_request(headers)
    except MetadataError:
        return None
    named = named_satellites(request, server_name, domain)
    if len(named) != 1 or not request.token or request.path.encode("latin-1").startswith(HEALTH_PATHS):
        return None
    [key] = named
    parent, state = trace_context(headers)
    digest = hashlib.sha256(request.token.encode()).digest()
    return TokenRequest(key.org, key.name, digest, parent.encode(), state.encode())
