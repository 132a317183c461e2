"""The live leases of one satellite, the traffic on them, and their end."""

from collections.abc import Callable

import trio

from bentpipe.daemon.fleet.lease import Lease, Meter
from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.fleet.traffic import TrafficWatch
from bentpipe.daemon.model import Address


class Leases:
    """`feed` takes the inputs of the satellite's machine. The holders of leases call `suspect`."""

    def __init__(
        self,
        quiet_window_s: float,
        *,
        ends_quiet: bool,
        feed: Callable[[msg.Input], None],
        suspect: Callable[[], None],
    ) -> None:
        """`ends_quiet`: connections that move no more than keepalives are ended before a sleep."""
        self.granted = 0
        """How many leases live, independently of the machine's own count."""
        self.ends_quiet = ends_quiet
        self._feed = feed
        self._suspect = suspect
        self._traffic = TrafficWatch(quiet_window_s)
        self._meters: dict[Lease, tuple[Meter, int]] = {}
        self._over = trio.Event()

    @property
    def metered(self) -> int:
        """How many of them have a meter, so that they can be ended."""
        return len(self._traffic)

    def grant(self, address: Address) -> Lease:
        """Make a lease. Its holder releases it."""
        self.granted += 1
        lease = Lease(address, self._released, self._metered, over=self._over, suspect=self._suspect)
        return lease.on_used(lambda: self._feed(msg.StillUsed()))

    def adopt(self, address: Address) -> Lease:
        """Make the lease of a client that was spliced before this object was made."""
        lease = self.grant(address)
        self._feed(msg.Adopted())
        return lease

    def lapse(self) -> None:
        """The satellite is not as it was when the leases were granted: tell their holders."""
        self._over.set()
        self._over = trio.Event()

    def read_meters(self) -> None:
        """Tell the machine if a connection has moved more than keepalives."""
        if self._traffic.look(trio.current_time()):
            self._feed(msg.Traffic())

    def client_moved(self) -> int:
        """Bytes that the connections there are have moved since the last call, both directions added."""
        moved = 0
        for lease, (meter, before) in self._meters.items():
            now = meter.moved_bytes()
            moved += now - before
            self._meters[lease] = meter, now
        return moved

    def end_quiet(self, *, cut: bool) -> int:
        """End the connections that have a meter, in good order or (`cut`) at once. Returns how many."""
        return self._traffic.end_all(cut=cut)

    def _metered(self, lease: Lease) -> None:
        if lease.meter is not None:
            self._meters[lease] = lease.meter, 0
        if self.ends_quiet:
            self._traffic.add(lease)
            self._feed(msg.Metered())

    def _released(self, lease: Lease) -> None:
        self.granted -= 1
        self._traffic.remove(lease)
        self._meters.pop(lease, None)
        self._feed(msg.Released(metered=self.ends_quiet and lease.meter is not None))
