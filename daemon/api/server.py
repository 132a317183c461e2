"""The control API as the edge knows it: which connections are its own, and what serves them."""

from collections.abc import Mapping

from bentpipe.daemon.accounts.contract import Authority
from bentpipe.daemon.api.call import Method
from bentpipe.daemon.api.grpc_connection import GrpcConnection, Services
from bentpipe.daemon.api.http_connection import HttpConnection
from bentpipe.daemon.connections.outcomes import ConnectionCounters
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.identity import TlsIdentity, names_any_satellite
from bentpipe.proto.api_paths import API_PATHS, REFLECTION_PATH
from bentpipe.proto.events import HeaderList


class ControlApi:
    """All of it. One for the daemon; every listener that is configured for it has the same."""

    def __init__(
        self, methods: Mapping[str, Method], authority: Authority, counters: ConnectionCounters, stranger_age_s: float
    ) -> None:
        """`methods` are the services' by path; a connection that proves nothing lasts for `stranger_age_s` at most."""
        self._services = Services(methods, authority, counters, stranger_age_s)

    def change_stranger_age(self, seconds: float) -> None:
        """For connections that come from now on."""
        self._services.stranger_age_s = seconds

    def takes(self, path: bytes, *, names_satellite: bool) -> bool:
        """Whether a connection whose first request has this `:path` is for the API.

        Satellites may have server reflection too, as BuildKit does: one that is named is asked itself.
        """
        return path.startswith(API_PATHS) and not (names_satellite and path.startswith(REFLECTION_PATH.encode()))

    def open(self, caller: Caller, identity: TlsIdentity, domain: str | None) -> GrpcConnection:
        """Take such a connection. `domain` does not matter: what a call is about is in its message."""
        return GrpcConnection(self._services, caller, identity)

    def open_waiting(self, caller: Caller, domain: str | None) -> GrpcConnection:
        """Take a connection that has made no request yet. If its first one is not for the API, it is turned away unread."""

        def is_ours(headers: HeaderList) -> bool:
            named = names_any_satellite(headers, caller.identity, domain)
            return self.takes(dict(headers).get(b":path", b""), names_satellite=named)

        caller.place.wait_for_request()
        return GrpcConnection(self._services, caller, caller.identity, decides=is_ours)

    def open_http1(self, caller: Caller, identity: TlsIdentity) -> HttpConnection:
        """Take a connection that speaks HTTP/1.1."""
        return HttpConnection(self._services.pages, self._services.counters, self._services.draining, caller, identity)

    def drain(self) -> None:
        """Take no more calls, and end connections as their calls end."""
        self._services.draining.set()
