"""Ports for servers that a test starts on a port of its choice."""

import atexit

from bentpipe.daemon.ports import reserve_port


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of `host` that no other test gets, in this process or beside it."""
    reservation = reserve_port(host)
    atexit.register(reservation.close)  # only then: a server may be started anew on its port
    return reservation.port
