"""Does a satellite's port listen yet? Answered from the kernel's tables, so that the satellite notices nothing.

A trial connection would be a client of its own to the satellite: logged, counted, and left half-greeted. And it could
not tell whose port it is: a stranger on a fixed port would be taken for the satellite and be sent its clients.
"""

import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path

from bentpipe.daemon.providers.containment import PROC
from bentpipe.daemon.providers.sock_diag import Address, listening_inodes

LISTEN = "0A"
"""TCP_LISTEN in the `st` column of /proc/net/tcp."""


def is_listening(host: str, port: int, pids: Callable[[], Iterable[int]]) -> bool:
    """Say whether one of `pids()` listens on `port` so that a connection to the IP address `host` would reach it.

    `pids` is called only if somebody listens there at all.
    """
    inodes = set(_listening_inodes(host, port))
    return bool(inodes) and _own_one(inodes, pids)


def _listening_inodes(host: str, port: int) -> Iterator[str]:
    address = ipaddress.ip_address(host)
    any_v6 = ipaddress.IPv6Address("::")
    if isinstance(address, ipaddress.IPv4Address):
        yield from _inodes_in(socket.AF_INET, {address, ipaddress.IPv4Address("0.0.0.0")}, port)
        # A dual-stack socket takes IPv4 clients too (Go's and grpc's default).
        yield from _inodes_in(socket.AF_INET6, {ipaddress.IPv6Address(f"::ffff:{address}"), any_v6}, port)
    else:
        yield from _inodes_in(socket.AF_INET6, {address, any_v6}, port)


def _inodes_in(family: socket.AddressFamily, addresses: Set[Address], port: int) -> Iterator[str]:
    try:
        listeners = list(listening_inodes(family, port))
    except OSError:  # no sock_diag in this kernel, or no AF_NETLINK in this sandbox: dearer, and as true
        listeners = list(listening_inodes_in_proc(family, port))
    return (inode for address, inode in listeners if address in addresses)


def listening_inodes_in_proc(family: socket.AddressFamily, port: int) -> Iterator[tuple[Address, str]]:
    """The same as `listening_inodes`, from /proc/net/tcp."""
    try:
        lines = (PROC / "self/net" / ("tcp" if family == socket.AF_INET else "tcp6")).open(encoding="ascii")
    except FileNotFoundError:  # no IPv6 on this host
        return
    with lines:
        next(lines, None)
        for line in lines:
            fields = line.split()
            # The kernel lists all listeners first. Beyond them come the connections, many thousands on an edge host.
            if fields[3] != LISTEN:
                return
            bound, _, bound_port = fields[1].partition(":")
            if int(bound_port, 16) == port:
                yield _address(bound), fields[9]


def _address(kernel_hex: str) -> Address:
    """Read an address as /proc/net/tcp writes it: 32-bit words in the host's byte order."""
    words = (kernel_hex[i : i + 8] for i in range(0, len(kernel_hex), 8))
    return ipaddress.ip_address(b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words))


def _own_one(inodes: set[str], pids: Callable[[], Iterable[int]]) -> bool:
    targets = {f"socket:[{inode}]" for inode in inodes}
    hidden = False
    for pid in pids():
        folder = PROC / str(pid) / "fd"
        try:
            if any(_link(folder / fd) in targets for fd in os.listdir(folder)):
                return True
        except PermissionError:
            # A command that changes its user, or is not dumpable, keeps its files from us: then the port must do.
            hidden = True
        except FileNotFoundError:
            continue
    return hidden


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return ""
        raise
