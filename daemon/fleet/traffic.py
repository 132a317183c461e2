"""Tells connections that are used from those on which only keepalives and health checks pass. Pure bookkeeping.

BuildKit's checks of a session are none of these: they pass only while a build runs, and a silent RUN moves nothing else.
Measured (buildctl and buildkitd v0.26.3): 2.6 kB a minute up and 2.2 kB down, in bursts 5 s apart.
"""

from bentpipe.daemon.fleet.lease import Lease, Meter

QUIET_BYTES_PER_WINDOW = 1 << 10
"""Both directions of one connection, in a minute: a PING and its ACK are 34 bytes, so that a client's keepalive every 5 s
is 408, and a balancer's grpc.health.v1 Check every 10 s some 900. A quarter of what the most silent build moves."""


class TrafficWatch:
    """The metered leases of one satellite; times are seconds of one monotonic clock.

    Bytes are counted over `window_s`; a look may come sooner.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._moved: dict[Lease, tuple[Meter, int]] = {}
        self._began_at = 0.0

    def __len__(self) -> int:
        return len(self._moved)

    def add(self, lease: Lease) -> None:
        """A lease has got its meter."""
        if lease.meter is not None:
            self._moved[lease] = (lease.meter, lease.meter.moved_bytes())

    def remove(self, lease: Lease) -> None:
        """A lease is over."""
        self._moved.pop(lease, None)

    def look(self, now: float) -> bool:
        """Read the meters. Returns whether any has moved more than keepalives do since the window began."""
        windows = max(1.0, (now - self._began_at) / self._window_s)
        readings = {lease: (meter, meter.moved_bytes()) for lease, (meter, _) in self._moved.items()}
        used = any(
            moved - self._moved[lease][1] > windows * QUIET_BYTES_PER_WINDOW for lease, (_, moved) in readings.items()
        )
        if used or now - self._began_at >= self._window_s:
            self._moved = readings
            self._began_at = now
        return used

    def end_all(self, *, cut: bool) -> int:
        """End every connection. Returns how many."""
        for meter, _ in list(self._moved.values()):
            meter.end(cut=cut)
        return len(self._moved)
