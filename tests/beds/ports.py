"""Ports for servers that a test starts on a port of its choice."""

from bentpipe.daemon.ports import PortReservation, reserve_port

reservations: list[PortReservation] = []
"""Open until this test process ends: a server may be started anew on its port."""


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of `host` that no other test gets, in this process or beside it."""
    reservation = reserve_port(host)
    reservations.append(reservation)
    return reservation.port
