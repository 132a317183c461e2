"""Opens a record for every accepted connection, and tells what closes it to all who want to know. No record is forgotten.

The rule: the code that accepts a connection calls `open`, and runs the connection in `with record`. At its end the block
closes the record, unless the connection was handed off: then `HandOff` closes it with the splice. `close_all` closes what is
open when the daemon ends. So `opened` is at any moment the number of closed records plus the number of open ones.
"""

import time
from collections.abc import Callable, Iterable

import trio

from bentpipe.daemon.records.ids import IdMaker
from bentpipe.daemon.records.record import LOST, PASSED_ON, End, Phase, Record
from bentpipe.daemon.tasks import Owner, contained

Sink = Callable[[Record], None]
"""Is told of each closed record, on the Trio thread; it must not wait."""

HOST = "host"
"""The host's name where nothing depends on it."""


class Book:
    """All records of this run. `ids` makes their ids; `sinks` are told by name."""

    def __init__(
        self,
        sinks: dict[str, Sink] | None = None,
        ids: IdMaker | None = None,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._owners = [(Owner("record", name), sink) for name, sink in (sinks or {}).items()]
        self._ids = ids or IdMaker(HOST)
        self._clock = clock
        self._tell = self._closed
        """Made once: a bound method for each record would be 64 bytes of every open connection."""
        self._open: dict[str, Record] = {}
        self.opened = 0
        """Since the start."""

    def open(self, peer: str) -> Record:
        """Begin the record of a connection from `peer` that was accepted now."""
        return self._begin(self._ids.make(), peer)

    def _begin(self, connection_id: str, peer: str) -> Record:
        record = Record(connection_id, peer, time.time(), self._clock, self._tell)
        self._open[connection_id] = record
        self.opened += 1
        return record

    def reopen(self, connection_id: str, peer: str, wall_s: float) -> Record:
        """Go on with the record of a connection that an earlier process has accepted at `wall_s`, as far as it is known."""
        is_new = connection_id and connection_id not in self._open
        record = self._begin(connection_id if is_new else self._ids.make(), peer)
        if wall_s:
            record.marks[Phase.ACCEPTED] -= max(0.0, record.wall_s - wall_s)
            record.wall_s = wall_s
        return record

    @property
    def open_count(self) -> int:
        """Connections whose end is not known yet."""
        return len(self._open)

    def find(self, connection_id: str) -> Record | None:
        """A connection that is still open."""
        return self._open.get(connection_id)

    def close_all(self, end: End = LOST) -> None:
        """The daemon ends: close what is open."""
        for record in list(self._open.values()):
            record.finish(end)
            record.close()

    def _closed(self, record: Record) -> None:
        self._open.pop(record.id, None)
        if record.end is PASSED_ON:
            return
        for owner, sink in self._owners:
            with contained(owner):
                sink(record)

    def all_open(self) -> Iterable[Record]:
        """The connections that are open now."""
        return tuple(self._open.values())
