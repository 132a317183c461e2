"""Where a connection comes from: its own peer, or the client for whom a proxy made it; and its place in the counts.

By the PROXY protocol a proxy says who its client is. Only peers that the listener names are believed, and from those the
header is required: "the receiver MUST NOT try to guess whether the protocol header is present" (HAProxy,
doc/proxy-protocol.txt §2). From then on address, limits, logs and counts are the client's.
"""

import ipaddress
import logging
from collections.abc import Sequence

from bentpipe.daemon.edge.accounts import Accounts
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


class Arrival:
    """One accepted connection's origin, and its place: on the account of the peer's address, or of whom its proxy says."""

    def __init__(self, accounts: Accounts, name: tuple[str, int] | None, proxies: Proxies) -> None:
        self._name = name
        self.by_proxy = name is not None and proxies.cover(name[0])
        """Whether the peer is a proxy of ours, so that a header must say who the client is."""
        # Until the header was read nobody knows whose it is: the proxy's own connections are not charged for it.
        self.place = accounts.open(f"by {self._host}" if self.by_proxy else self._host)

    @property
    def _host(self) -> str:
        return self._name[0] if self._name is not None else "unix"

    @property
    def peer(self) -> str:
        """The client for the logs: its own address, or what its proxy said."""
        return f"{self._name[0]}:{self._name[1]}" if self._name is not None else "unix"

    def comes_from(self, source: tuple[str, int] | None) -> None:
        """Hear from a proxy who the client is; None for the proxy itself."""
        if source is not None:
            self._name = source
        self.place.readdress(self._host)


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
    arrival.comes_from(header.source)


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
