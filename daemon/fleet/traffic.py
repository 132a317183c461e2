"""Tells used connections from connections that move only keepalives and health checks. Pure bookkeeping.

BuildKit's checks of a session count as use: they pass only while a build runs, and a silent RUN moves nothing else.
Measured (buildctl and buildkitd v0.26.3): 2.6 kB a minute up and 2.2 kB down, in bursts 5 s apart.
"""

from bentpipe.daemon.fleet.lease import Lease, Meter

QUIET_BYTES_PER_WINDOW = 1 << 10
"""Bytes of one connection in a minute, both directions added. A PING and its ACK are 34 bytes, so a client's keepalive every
5 s is 408 bytes. A balancer's grpc.health.v1 Check every 10 s is some 900. The most silent build moves four times as
much."""


class TrafficWatch:
    """The metered leases of one satellite. Times are seconds of one monotonic clock.

    Bytes are counted over `window_s`. The meters may be read earlier.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._moved: dict[Lease, tuple[Meter, int]] = {}
        self._began_at = 0.0

    def __len__(self) -> int:
        return len(self._moved)

    def add(self, lease: Lease) -> None:
        """A lease has its meter from now on."""
        if lease.meter is not None:
            self._moved[lease] = (lease.meter, lease.meter.moved_bytes())

    def remove(self, lease: Lease) -> None:
        """A lease is over."""
        self._moved.pop(lease, None)

    def look(self, now: float) -> bool:
        """Read the meters. Returns whether any connection has moved more than keepalives since the window began."""
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
