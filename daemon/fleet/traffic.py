"""Tells connections that are used from those on which only health checks pass. Pure bookkeeping over their meters.

BuildKit checks a session's health every 5 s through the connection; with the frames around it (the session is a stream
within a stream, and gRPC answers data with PINGs and WINDOW_UPDATEs) that is some hundred bytes each way.
"""

from bentpipe.daemon.fleet.lease import Lease, Meter

WINDOW_S = 60.0
"""Between looks at the meters, at most."""
LOOKS = 4
"""Looks in a `sleep_after`, at least."""
QUIET_BYTES_PER_WINDOW = 32 << 10
"""Both directions of one connection: a dozen health checks and keepalives, at well over a KiB each."""
QUIET_BYTES_AT_ONCE = 2 << 10
"""Allowed in however short a time: a health check may fall just before a look."""


class TrafficWatch:
    """The metered leases of one satellite; times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._moved: dict[Lease, tuple[Meter, int]] = {}
        self._looked_at = 0.0

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
        """Read the meters. Returns whether any has moved more than health checks do since the last look."""
        share = min(1.0, (now - self._looked_at) / WINDOW_S)
        quiet_bytes = max(QUIET_BYTES_AT_ONCE, share * QUIET_BYTES_PER_WINDOW)
        self._looked_at = now
        used = False
        for lease, (meter, before) in self._moved.items():
            moved = meter.moved_bytes()
            used = used or moved - before > quiet_bytes
            self._moved[lease] = (meter, moved)
        return used

    def end_all(self, *, cut: bool) -> int:
        """End every connection. Returns how many."""
        for meter, _ in list(self._moved.values()):
            meter.end(cut=cut)
        return len(self._moved)
