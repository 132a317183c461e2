"""Ports for processes that open them later, so that two programs of ours never choose the same one.

A port that the kernel has chosen for a socket is free again once that socket is closed. Until the process for which it was
chosen listens there, the kernel may give it to any connection or listener. So the ports here come from outside the range
that the kernel gives away (ip(7), ip_local_port_range), and a name marks each for as long as its reservation is open.
"""

import errno
import random
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Self

LOWEST_PORT = 10_000
"""Below it are the ports that well-known services and their neighbours use."""

HIGHEST_PORT = 65_535

ENOUGH_PORTS = 1_000
"""If the kernel gives away so much that fewer are left, all ports are candidates: a full range is worse than a race."""

ATTEMPTS = 200
"""The most ports that are tried for one reservation."""

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")

NAME = "\0bentpipe/port/{}"
"""An abstract address (unix(7)): it is known in one network namespace, as ports are, and ends with its socket."""


class PortReservation:
    """A free port that no other reservation on this host has. Close it once a process listens on the port."""

    def __init__(self, port: int, mark: socket.socket) -> None:
        self.port = port
        self._mark = mark

    def close(self) -> None:
        """Free the name; does nothing the second time."""
        self._mark.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def reserve_port(host: str, taken: Collection[int] = ()) -> PortReservation:
    """Reserve a TCP port of `host`, an IP address, that nobody listens on and that is not in `taken`.

    Raises OSError: EADDRINUSE if none is found, or what the kernel says of `host` or of a lack of descriptors.
    """
    for port in _candidates():
        if port in taken or not _is_free(host, port):
            continue
        mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            mark.bind(NAME.format(port))
        except OSError as error:
            mark.close()
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        return PortReservation(port, mark)
    raise OSError(errno.EADDRINUSE, f"no free port on {host}: tried {ATTEMPTS}")


def _candidates() -> Iterator[int]:
    """Random ports: two hosts' programs that start at once rarely ask for the same one first.

    No list of them is made: hundreds of satellites that start at once each ask here, and nearly always take the first.
    """
    first, last = (int(word) for word in EPHEMERAL.read_text().split())
    below, above = range(LOWEST_PORT, first), range(max(LOWEST_PORT, last + 1), HIGHEST_PORT + 1)
    if len(below) + len(above) < ENOUGH_PORTS:
        below, above = range(LOWEST_PORT, HIGHEST_PORT + 1), range(0)
    for _ in range(ATTEMPTS):
        index = random.randrange(len(below) + len(above))
        yield below[index] if index < len(below) else above[index - len(below)]


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Connections that have ended there (TIME_WAIT) do not matter: servers set the same option.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True
