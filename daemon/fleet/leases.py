"""The leases of one satellite that live, what moves on them, and when they are over."""

from collections.abc import Callable

import trio

from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.machine import messages as msg
from bentpipe.daemon.fleet.traffic import TrafficWatch
from bentpipe.daemon.model import Address


class Leases:
    """`feed` takes what the satellite's machine must know of them; `suspect` is for the leases' holders."""

    def __init__(
        self,
        quiet_window_s: float,
        *,
        ends_quiet: bool,
        feed: Callable[[msg.Input], None],
        suspect: Callable[[], None],
    ) -> None:
        """`ends_quiet`: connections that move no more than keepalives are ended."""
        self.granted = 0
        """Leases that live, whatever the machine believes."""
        self.ends_quiet = ends_quiet
        self._feed = feed
        self._suspect = suspect
        self._traffic = TrafficWatch(quiet_window_s)
        self._over = trio.Event()

    @property
    def metered(self) -> int:
        """How many of them can be ended by us."""
        return len(self._traffic)

    def grant(self, address: Address) -> Lease:
        """Make one; its holder releases it."""
        self.granted += 1
        return Lease(address, self._released, self._metered, over=self._over, suspect=self._suspect)

    def lapse(self) -> None:
        """The satellite is not what it was when they were granted: tell their holders."""
        self._over.set()
        self._over = trio.Event()

    def read_meters(self) -> None:
        """Tell the machine if any connection has moved more than keepalives do."""
        if self._traffic.look(trio.current_time()):
            self._feed(msg.Traffic())

    def end_quiet(self, *, cut: bool) -> int:
        """End the connections that have a meter, in good order or (`cut`) at once. Returns how many."""
        return self._traffic.end_all(cut=cut)

    def _metered(self, lease: Lease) -> None:
        if self.ends_quiet:
            self._traffic.add(lease)
            self._feed(msg.Metered())

    def _released(self, lease: Lease) -> None:
        self.granted -= 1
        self._traffic.remove(lease)
        self._feed(msg.Released(metered=self.ends_quiet and lease.meter is not None))
