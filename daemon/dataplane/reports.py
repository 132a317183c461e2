"""Where everything in the data plane sends its records: to the control plane that sits, if one does."""

import trio

from bentpipe.daemon.planes.bounds import HUNG_S
from bentpipe.daemon.planes.link import Link
from bentpipe.daemon.planes.records import Record

HIGH_BYTES = 4 << 20
"""If so much waits for the control plane, nothing more is read for it, and no client is offered. The bound at which the link
ends is far higher: a control plane that is slow for a moment keeps its seat."""


class ControlReports:
    """Sends to the seat. Without a control plane records are dropped: what must not be lost is kept by its owner."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self.heard_at = 0.0
        """When the control plane last said something."""
        self.session = 0
        """Rises with every control plane that takes the seat."""

    def seat(self, link: Link) -> None:
        """From now on records go here."""
        self._link = link
        self.session += 1
        self.heard_at = trio.current_time()

    def unseat(self) -> None:
        """Nobody sits any more."""
        self._link = None

    @property
    def link(self) -> Link | None:
        """The seat's link; None if nobody sits."""
        return self._link

    def send(self, record: Record) -> None:
        """Send a record, if somebody sits."""
        if self._link is not None:
            self._link.send_nowait(record)

    @property
    def has_room(self) -> bool:
        """Whether more may be sent for streams: the control plane reads."""
        return self._link is None or self._link.queued_bytes < HIGH_BYTES

    @property
    def may_offer(self) -> bool:
        """Whether a control plane sits, reads, and has not hung."""
        if self._link is None or not self.has_room:
            return False
        return trio.current_time() - self.heard_at < HUNG_S
