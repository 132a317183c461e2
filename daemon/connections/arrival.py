"""Where a connection comes from: its own peer, or the client that a proxy names; and the quota that it counts for.

By the PROXY protocol a proxy names its client. Only proxies that the listener's configuration names are trusted, and they
must send the header: "the receiver MUST NOT try to guess whether the protocol header is present" (HAProxy,
doc/proxy-protocol.txt §2). From then on the client's address counts for limits, the log and quotas.
"""

import ipaddress
from collections.abc import Sequence

from bentpipe.daemon.connections.ends import OUTCOME_ENDS
from bentpipe.daemon.connections.outcomes import ConnectionOver, Outcome
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.connections.transport import Transport
from bentpipe.daemon.records.book import Book
from bentpipe.daemon.records.record import PASSED_ON
from bentpipe.proto.proxy_protocol import ProxyHeader, ProxyHeaderError, ProxyRule, canonical, parse_header

PEEK_BYTES = 536
"""Bytes of one look at a header. Every proxy sends it in one segment, and every host takes segments of this size (RFC 9293
§3.7.1)."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """The proxies that are trusted to name their clients."""

    def __init__(self, networks: Sequence[Network] = ()) -> None:
        self._networks = tuple(networks)

    def cover(self, host: str) -> bool:
        """Whether the peer with this IP address is one of them."""
        if not self._networks:
            return False
        try:
            address = ipaddress.ip_address(canonical(ipaddress.ip_address(host)))
        except ValueError:
            return False  # the peer of a Unix socket, or an address with a zone: it is in no network
        return any(address in network for network in self._networks)


class Arrival:
    """One accepted connection's origin, its record, and its place: it counts for the peer, or for the client that its proxy
    names.

    It must be run in `with arrival.record`, which is what closes the record.
    """

    def __init__(self, quotas: Quotas, name: tuple[str, int] | None, proxies: Proxies, book: Book) -> None:
        self._name = name
        self.by_proxy = name is not None and proxies.cover(name[0])
        """Whether the peer is a trusted proxy, which must name its client."""
        self._known = not self.by_proxy
        self.record = book.open(self.peer)
        # Until the header has been read the client is unknown, and the place is not charged to the proxy's own address.
        self.place = quotas.open(f"by {self._host}" if self.by_proxy else self._host)

    def finish(self, outcome: Outcome | None, up_bytes: int, down_bytes: int) -> None:
        """The connection is over, or another process has its record if `outcome` is None."""
        self.place.release()
        self.record.up_bytes, self.record.down_bytes = up_bytes, down_bytes
        self.record.finish(PASSED_ON if outcome is None else OUTCOME_ENDS[outcome])
        self.record.close()

    def drop(self) -> None:
        """The connection is not here any more: its place is free, and its record is closed as it is."""
        self.place.release()
        self.record.close()

    @property
    def _host(self) -> str:
        return self._name[0] if self._name is not None else "unix"

    @property
    def name(self) -> tuple[str, int] | None:
        """The client's IP address and port, as far as they are known now; None for the peer of a Unix socket."""
        return self._name

    @property
    def address(self) -> str | None:
        """The client's IP address; None for the peer of a Unix socket, and for a proxy whose header has not come."""
        return self._name[0] if self._name is not None and self._known else None

    @property
    def peer(self) -> str:
        """The client for the logs: its own address, or the one that its proxy names."""
        return f"{self._name[0]}:{self._name[1]}" if self._name is not None else "unix"

    def charge_to(self, quotas: Quotas) -> None:
        """Move the place to other quotas, with what it costs."""
        before = self.place
        self.place = quotas.open(self._host)
        self.place.cost(before.cost_bytes - self.place.cost_bytes)
        before.release()

    def comes_from(self, source: tuple[str, int] | None) -> None:
        """Take the client's address as the proxy names it; None if the proxy connects for itself."""
        if source is not None:
            self._name = source
            self.record.peer = self.peer
        self._known = True
        self.place.readdress(self._host)


async def read_origin(client: Transport, arrival: Arrival) -> None:
    """Read a proxy's header, and not a byte more: TLS or HTTP/2 begins right behind it.

    Does nothing for any other peer. Raises ConnectionOver, TransportError.
    """
    if not arrival.by_proxy:
        return
    try:
        header = await _read_header(client)
    except ProxyHeaderError as exc:
        arrival.record.error = str(exc)
        absent = exc.rule is ProxyRule.ABSENT
        raise ConnectionOver(Outcome.NO_PROXY_HEADER if absent else Outcome.BAD_PROXY_HEADER) from exc
    arrival.comes_from(header.source)


async def _read_header(client: Transport) -> ProxyHeader:
    """Look ahead, and take only what certainly belongs to the header, which may come byte by byte."""
    kept = b""
    while True:
        ahead = await client.peek(PEEK_BYTES)
        if not ahead:
            raise ConnectionOver(Outcome.PROBE)
        header = parse_header(kept + ahead)
        missing = len(ahead) if header is None else header.size_bytes - len(kept)
        kept += client.receive_nowait(missing) or b""
        if header is not None and len(kept) == header.size_bytes:
            return header
