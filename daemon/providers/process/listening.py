"""Finds out from the kernel's tables whether a satellite listens on its port yet; the satellite notices nothing.

A trial connection would be a client to the satellite, which would log and count it. And it could not tell which process
listens: if another process had a fixed port, it would count as the satellite and get its clients.
"""

import dataclasses
import enum
import errno
import functools
import ipaddress
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from bentpipe.daemon.keeper.containment import PROC
from bentpipe.daemon.sock_diag import Listening, Lookup, Socket, dump_listeners

LISTEN = "0A"
"""TCP_LISTEN in the `st` column of /proc/net/tcp."""


FRESH_S = 0.005
"""The most age of the kernel's answer: half of the time between two questions about the same satellite."""

HOSTS = 64
"""Addresses of satellites whose spellings are kept: mostly there is one, 127.0.0.1."""

Table = dict[int, list[tuple[bytes, Socket]]]
"""By port: packed addresses, and the sockets."""


class Whose(enum.Enum):
    """Which process has a listener."""

    NOBODY = "nobody listens"
    OURS = "one of the processes in question"
    STRANGER = "none of them"


@dataclasses.dataclass(frozen=True, slots=True)
class Suspects:
    """The processes in question: all of one user, or those that `pids` finds, which is called only if it must be."""

    uid: int | None
    pids: Callable[[], Iterable[int]]


class Listeners:
    """The kernel's listeners, dumped once for all satellites that boot at the same time."""

    def __init__(self, fresh_s: float = FRESH_S) -> None:
        self._fresh_s = fresh_s
        self._dumped: dict[socket.AddressFamily, tuple[float, Table]] = {}
        self._lookup = Lookup()

    def close(self) -> None:
        """Give back what it holds; it can be used on. Idempotent."""
        self._lookup.close()

    def is_listening(self, host: str, port: int, suspects: Suspects, known: set[str] | None = None) -> bool:
        """Return whether one of them listens on `port` so that a connection to the IP address `host` would reach it.

        `known` as for `whose`.
        """
        return _whose(self._listening(host, port), suspects, set() if known is None else known) is Whose.OURS

    def is_taken(self, host: str, port: int) -> bool:
        """Return whether any process listens on `port` so that a connection to `host` would reach it."""
        return bool(self._listening(host, port))

    def whose(self, host: str, port: int, suspects: Suspects, known: set[str]) -> Whose:
        """Return which process's listener a connection to `host` and `port` would reach now.

        `known` has inodes that belong to them, and receives a new one: a socket that still listens belongs to the same
        process, so the processes' files are searched only once.
        """
        try:
            found = self._lookup.find_listener(_parsed(host), port)
        except OSError:  # no sock_diag in this kernel, or no AF_NETLINK in this sandbox
            return _whose(self._listening(host, port), suspects, known)
        return _whose(set() if found is None else {found}, suspects, known)

    def _listening(self, host: str, port: int) -> set[Socket]:
        return {
            found
            for family, addresses in _ways_to(host)
            for address, found in self._table(family).get(port, ())
            if address in addresses
        }

    def _table(self, family: socket.AddressFamily) -> Table:
        now = time.monotonic()
        dumped_at, table = self._dumped.get(family, (-math.inf, {}))
        if now - dumped_at > self._fresh_s:
            table = {}
            for port, address, found in _dump(family):
                table.setdefault(port, []).append((address, found))
            self._dumped[family] = now, table
        return table


@functools.lru_cache(maxsize=HOSTS)
def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(host)


@functools.lru_cache(maxsize=HOSTS)
def _ways_to(host: str) -> tuple[tuple[socket.AddressFamily, frozenset[bytes]], ...]:
    """The addresses whose listeners take connections to `host`."""
    address = _parsed(host)
    any_v6 = bytes(16)
    if isinstance(address, ipaddress.IPv4Address):
        # A dual-stack socket takes IPv4 clients too (Go's and grpc's default).
        mapped = ipaddress.IPv6Address(f"::ffff:{address}").packed
        return (
            (socket.AF_INET, frozenset({address.packed, bytes(4)})),
            (socket.AF_INET6, frozenset({mapped, any_v6})),
        )
    return ((socket.AF_INET6, frozenset({address.packed, any_v6})),)


def _dump(family: socket.AddressFamily) -> list[Listening]:
    try:
        return list(dump_listeners(family))
    except OSError:  # no sock_diag in this kernel, or no AF_NETLINK in this sandbox: slower, and as exact
        return list(read_listeners(family))


def read_listeners(family: socket.AddressFamily) -> Iterator[Listening]:
    """The same as `dump_listeners`, from /proc/net/tcp."""
    try:
        lines = (PROC / "self/net" / ("tcp" if family == socket.AF_INET else "tcp6")).open(encoding="ascii")
    except FileNotFoundError:  # no IPv6 on this host
        return
    with lines:
        next(lines, None)
        for line in lines:
            fields = line.split()
            # The kernel lists all listeners first. After them come the connections, many thousands on an edge host.
            if fields[3] != LISTEN:
                return
            bound, _, port = fields[1].partition(":")
            # 32-bit words in the host's byte order.
            words = (int(bound[i : i + 8], 16) for i in range(0, len(bound), 8))
            yield (
                int(port, 16),
                b"".join(word.to_bytes(4, sys.byteorder) for word in words),
                (fields[9], int(fields[7])),
            )


def _whose(found: set[Socket], suspects: Suspects, known: set[str]) -> Whose:
    if not found:
        return Whose.NOBODY
    if suspects.uid is not None:  # nobody else has this user
        return Whose.OURS if suspects.uid in (uid for _, uid in found) else Whose.STRANGER
    inodes = {inode for inode, _ in found}
    if not inodes <= known:
        if not _own_one(inodes, suspects.pids):
            return Whose.STRANGER
        known.clear()
        known |= inodes
    return Whose.OURS


def _own_one(inodes: set[str], pids: Callable[[], Iterable[int]]) -> bool:
    hidden = False
    for pid in pids():
        try:
            if has_socket(pid, inodes):
                return True
        except PermissionError:
            # A command that changes its user, or is not dumpable, hides its files: then the port alone decides.
            hidden = True
        except FileNotFoundError:
            continue
    return hidden


def has_socket(pid: int, inodes: Collection[str]) -> bool:
    """Whether a process has one of these sockets open. Raises PermissionError if it hides its files, FileNotFoundError."""
    folder = PROC / str(pid) / "fd"
    targets = {f"socket:[{inode}]" for inode in inodes}
    return any(_link(folder / fd) in targets for fd in os.listdir(folder))


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return ""
        raise
