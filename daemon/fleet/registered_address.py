"""Which addresses a machine may register as a satellite's. Pure, except that it asks the kernel which
addresses are this host's own.

The daemon connects to what is registered, so an address that a client gives is hostile until it is checked:

- The operator names the networks. There is no default: in every network there is something that nobody should reach by way
  of the daemon.
- Some addresses are never allowed, whatever the networks are: unspecified, multicast, reserved and link-local ones, among
  which is a cloud's metadata service (169.254.169.254). An address of this host itself (127.0.0.0/8, ::1) needs a network
  that holds nothing else.
- The machine must call from the address that it registers, and send its heartbeats from there. So nobody can register the
  address of another's satellite, and nobody learns by it which ports of other machines are open.
- A port of the daemon's own, at an address of this host, would lead back into the daemon.
"""

import contextlib
import ipaddress
import socket
from collections.abc import Collection, Sequence

from bentpipe.config.units import Network
from bentpipe.daemon.errors import InvalidRequest, NotPermitted
from bentpipe.daemon.model import Address
from bentpipe.daemon.registry.registered import PORTS

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

NOT_ALLOWED = (
    "satellite_host: {} may not be registered: [registration] networks of the daemon says which addresses may be"
)
NO_SOURCE = "a satellite registers over the network, from the address at which it is reached"


def source_of(host: str | None) -> IpAddress:
    """The address from which a call has come. Raises NotPermitted if it did not come over the network."""
    try:
        return _plain(ipaddress.ip_address(host or ""))
    except ValueError as exc:
        raise NotPermitted(NO_SOURCE) from exc


def check_source(source: IpAddress, address: Address) -> None:
    """Check that the machine calls from its own address. Raises NotPermitted."""
    if str(source) != address.host:
        words = "it must register with the address from which it calls, and again when that changes"
        raise NotPermitted(f"the satellite is registered at {address.host}, and the call comes from {source}: {words}")


def checked_address(
    host: str, port: int, source: IpAddress, networks: Sequence[Network], own_ports: Collection[int]
) -> Address:
    """Check what a client wants to register; an empty `host` stands for the caller's own.

    Raises InvalidRequest, NotPermitted.
    """
    if port not in PORTS:
        raise InvalidRequest(f"satellite_port: {port} is not a valid port: expected 1 to {PORTS[-1]}")
    try:
        ip = _plain(ipaddress.ip_address(host)) if host else source
    except ValueError as exc:
        words = "expected an IP address, or nothing for the address of the caller"
        raise InvalidRequest(f"satellite_host is not a valid address: {words}") from exc
    address = Address(str(ip), port)
    check_allowed(address, networks, own_ports)
    check_source(source, address)
    return address


def check_allowed(address: Address, networks: Sequence[Network], own_ports: Collection[int]) -> None:
    """Check an address that another host may have checked by other networks. Raises NotPermitted."""
    try:
        ip = ipaddress.ip_address(address.host)
    except ValueError as exc:
        raise NotPermitted(f"{address.host} is not a valid IP address") from exc
    if not _is_allowed(ip, networks):
        raise NotPermitted(NOT_ALLOWED.format(ip))
    if address.port in own_ports and _is_of_this_host(ip):
        raise NotPermitted(f"{address} is a port of the daemon's own, so it may not be registered")


def _plain(ip: IpAddress) -> IpAddress:
    """One spelling of an address: IPv6 may hold IPv4 (RFC 4291 §2.5.5.2)."""
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return ip if mapped is None else mapped


def _is_allowed(ip: IpAddress, networks: Sequence[Network]) -> bool:
    if isinstance(ip, ipaddress.IPv6Address) and ip.scope_id is not None:
        return False
    if ip.is_unspecified or ip.is_multicast or ip.is_link_local or (ip.is_reserved and not ip.is_loopback):
        return False
    return any(ip in network and (network.is_loopback or not ip.is_loopback) for network in networks)


def _is_of_this_host(ip: IpAddress) -> bool:
    """Whether this host has the address: the kernel binds to no other (ip(7))."""
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.bind((str(ip), 0))
        return True
    return False
