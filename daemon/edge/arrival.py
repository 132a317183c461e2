"""Where a connection comes from: its own peer, or the client for whom a proxy made it; and its place in the counts.

By the PROXY protocol a proxy says who its client is. Only peers that the listener names are believed, and from those the
header is required: "the receiver MUST NOT try to guess whether the protocol header is present" (HAProxy,
doc/proxy-protocol.txt §2). From then on address, limits, logs and counts are the client's.
"""

import collections
import ipaddress
import logging
from collections.abc import Sequence

from bentpipe.daemon.edge.outcomes import Gone, Outcome
from bentpipe.daemon.edge.transport import Transport
from bentpipe.daemon.logs import log_limited
from bentpipe.proto.proxy_protocol import ProxyHeader, ProxyHeaderError, ProxyRule, canonical, parse_header

log = logging.getLogger("bentpipe.edge")

PEEK_BYTES = 536
"""One look at a header: every proxy sends it in one segment, and no host's is smaller (RFC 9293 §3.7.1)."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """The peers whose PROXY headers are believed."""

    def __init__(self, networks: Sequence[Network] = ()) -> None:
        self._networks = tuple(networks)

    def cover(self, host: str) -> bool:
        """Whether the peer with this IP address is one of them."""
        if not self._networks:
            return False
        try:
            address = ipaddress.ip_address(canonical(ipaddress.ip_address(host)))
        except ValueError:
            return False  # a Unix socket's peer, or one with a zone: no network has it
        return any(address in network for network in self._networks)


class Connections:
    """Counts what is open, in all and per address: every accepted connection until its splice ends."""

    def __init__(self, max_connections: int, max_per_address: int) -> None:
        self._max = max_connections
        self._max_per_address = max_per_address
        self._per_address: collections.Counter[str] = collections.Counter()
        self._total = 0

    @property
    def total(self) -> int:
        """Open now."""
        return self._total

    def enter(self) -> bool:
        """Count one more in all, unless `max_connections` is reached."""
        if self._total >= self._max:
            return False
        self._total += 1
        return True

    def enter_address(self, address: str) -> bool:
        """Count one more of the address, unless `max_connections_per_address` is reached."""
        if self._per_address[address] >= self._max_per_address:
            return False
        self._per_address[address] += 1
        return True

    def leave(self, address: str | None) -> None:
        """Count one less, in all and of the address if it was counted there."""
        self._total -= 1
        if address is None:
            return
        self._per_address[address] -= 1
        if not self._per_address[address]:
            del self._per_address[address]


class Arrival:
    """One accepted connection's origin, and its place in the counts until `leave`."""

    def __init__(self, connections: Connections, name: tuple[str, int] | None, proxies: Proxies) -> None:
        self._connections = connections
        self._name = name
        self._counted: str | None = None
        self.by_proxy = name is not None and proxies.cover(name[0])
        """Whether the peer is a proxy of ours, so that a header must say who the client is."""

    @property
    def peer(self) -> str:
        """The client for the logs: its own address, or what its proxy said."""
        return f"{self._name[0]}:{self._name[1]}" if self._name is not None else "unix"

    def enter(self) -> bool:
        """Take a place. Returns False if a limit is reached; nothing is then to be left.

        A proxy's address is not counted: all its clients have it.
        """
        if not self._connections.enter():
            return False
        if self.by_proxy or self._enter_address():
            return True
        self.leave()
        return False

    def comes_from(self, source: tuple[str, int] | None) -> bool:
        """Hear from a proxy who the client is; None for the proxy itself. Returns False if the client is over its limit."""
        if source is not None:
            self._name = source
        return self._enter_address()

    def _enter_address(self) -> bool:
        host = self._name[0] if self._name is not None else "unix"
        if not self._connections.enter_address(host):
            return False
        self._counted = host
        return True

    def leave(self) -> None:
        """Give the place back."""
        self._connections.leave(self._counted)


async def read_origin(client: Transport, arrival: Arrival) -> None:
    """Take a proxy's header off the connection, and not a byte more: TLS or HTTP/2 begins right behind it.

    Does nothing for a peer that is no proxy of ours. Raises Gone, TransportError.
    """
    if not arrival.by_proxy:
        return
    try:
        header = await _read_header(client)
    except ProxyHeaderError as exc:
        log_limited(log, "proxy header", "PROXY header refused", {"proxy": arrival.peer, "error": str(exc)})
        absent = exc.rule is ProxyRule.ABSENT
        raise Gone(Outcome.NO_PROXY_HEADER if absent else Outcome.BAD_PROXY_HEADER) from exc
    if not arrival.comes_from(header.source):
        raise Gone(Outcome.OVER_LIMIT)


async def _read_header(client: Transport) -> ProxyHeader:
    """Look ahead, and consume what is surely the header's: it may come byte by byte, and must not be read past."""
    kept = b""
    while True:
        ahead = await client.peek(PEEK_BYTES)
        if not ahead:
            raise Gone(Outcome.PROBE)
        header = parse_header(kept + ahead)
        missing = len(ahead) if header is None else header.size_bytes - len(kept)
        kept += client.receive_nowait(missing) or b""
        if header is not None and len(kept) == header.size_bytes:
            return header
