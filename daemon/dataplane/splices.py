"""The connections that a GO has joined: under way, spliced, and ended until the control plane has accounted for them.

Owns: the engine's side of each, and the numbered ends. An end is kept until KEPT names its number, so that a control plane
that was away misses none. If nobody comes for very many of them, the ends of one tag are added up to one.
"""

import collections
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator

import trio

from bentpipe.daemon.planes.bounds import ENDS_AHEAD, ENDS_KEPT
from bentpipe.daemon.planes.records import LINK_ID, EndedRecord, LiveRecord, MeteredRecord, Record, Stage
from bentpipe.daemon.planes.snapshots import boot_us
from bentpipe.daemon.tasks import Owner, contained
from bentpipe.native.engine import Ended, Engine, Leg, SpliceCounters, SpliceId
from bentpipe.native.joiner import Joiner, StreamId

MOST_SUMS = 4_096
"""Tags whose ends are added up. The ends of further tags are only counted."""

ENDS_A_TURN = 64
"""If a satellite dies, thousands of connections end at once, and other clients must still be served."""


def _last_us(counters: SpliceCounters) -> int:
    """The last activity, from CLOCK_MONOTONIC, by CLOCK_BOOTTIME."""
    ago_s = time.monotonic() - counters.last_activity_monotonic_s
    return boot_us() - max(0, round(ago_s * 1e6))


@dataclasses.dataclass(slots=True)
class JoinedConnection:
    """A connection that a GO has taken."""

    id: int
    peer: str
    tag: bytes
    start_us: int
    splice_id: SpliceId | None = None
    """None: the replay is under way."""
    cancel: Callable[[], None] | None = None
    """Ends the replay."""
    before: tuple[int, ...] = ()
    """See EndedRecord."""
    over: Callable[[], None] | None = None
    """Called when it has ended, or was never spliced."""

    def end(self) -> None:
        """It is not live any more."""
        if self.over is not None:
            self.over()


def _never_spliced(joined: JoinedConnection) -> EndedRecord:
    return EndedRecord(joined.id, 0, 0, 0, 0, 0, joined.start_us, boot_us(), joined.peer, joined.tag)


class JoinedConnections:
    """All of them, by the client's id."""

    def __init__(self, engine: Engine, send: Callable[[Record], None]) -> None:
        self._engine = engine
        self._send = send
        self._live: dict[int, JoinedConnection] = {}
        self._by_splice: dict[SpliceId, JoinedConnection] = {}
        self._ends: collections.deque[EndedRecord] = collections.deque()
        self._sums: dict[bytes, EndedRecord] = {}
        self._next_end = 1
        self._sent_until = 0
        """The number of the newest end that the present control plane was sent."""
        self._kept_until = 0
        self._seated = False
        self.ends_lost = 0
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._live)

    @property
    def spliced(self) -> int:
        """Those in the engine."""
        return len(self._by_splice)

    @property
    def ends_waiting(self) -> int:
        """Ends that no control plane has accounted for."""
        return len(self._ends) + len(self._sums)

    @property
    def ends_waiting_for_seat(self) -> bool:
        """Whether a control plane sits that has not accounted for all ends yet."""
        return self._seated and bool(self._ends or self._sums)

    def find(self, about: int) -> JoinedConnection | None:
        """The live one of this id."""
        return self._live.get(about)

    def begin(self, joined: JoinedConnection) -> None:
        """A GO has taken a client: from now on it counts as live."""
        self._live[joined.id] = joined

    def fail(self, joined: JoinedConnection, *, told: bool) -> None:
        """The replay has failed. Unless the control plane that asked is `told` of it, it becomes an end with reason 0."""
        del self._live[joined.id]
        joined.end()
        self._note_change()
        if not told:
            self._keep_end(_never_spliced(joined))
            self.send_ends()

    def splice(self, joined: JoinedConnection, client: Leg, satellite: Leg) -> None:
        """Give both sockets to the engine. Raises OSError, and nothing is given, if it refuses."""
        self._spliced(joined, self._engine.splice(client, satellite))

    def splice_lane(self, joined: JoinedConnection, joiner: Joiner, client: StreamId) -> None:
        """The same for a client that C has joined with its satellite. Raises OSError, and nothing has changed."""
        self._spliced(joined, joiner.splice(self._engine, client))

    def _spliced(self, joined: JoinedConnection, splice_id: SpliceId) -> None:
        joined.splice_id = splice_id
        joined.cancel = None
        self._by_splice[splice_id] = joined

    # -- what the control plane asks ---------------------------------------------------------------------------------

    def snapshot(self) -> Iterator[LiveRecord]:
        """A LIVE for each."""
        for joined in self._live.values():
            up = down = 0
            last_us = joined.start_us
            if joined.splice_id is not None:
                counters = self._engine.counters(joined.splice_id)
                up, down = counters.client_to_satellite_bytes, counters.satellite_to_client_bytes
                last_us = _last_us(counters)
            stage = Stage.UNDER_WAY if joined.splice_id is None else Stage.SPLICED
            yield LiveRecord(joined.id, stage, joined.start_us, up, down, last_us, joined.peer, joined.tag)

    def meters(self, ids: tuple[int, ...]) -> MeteredRecord:
        """What these have moved; those that have ended are left out."""
        found = []
        for about in ids:
            joined = self._live.get(about)
            if joined is not None and joined.splice_id is not None:
                counters = self._engine.counters(joined.splice_id)
                up, down = counters.client_to_satellite_bytes, counters.satellite_to_client_bytes
                found.append((about, up, down, _last_us(counters)))
        return MeteredRecord(LINK_ID, tuple(found))

    def moved(self, joined: JoinedConnection) -> int:
        """Bytes that it has moved, both directions added."""
        if joined.splice_id is None:
            return 0
        counters = self._engine.counters(joined.splice_id)
        return counters.client_to_satellite_bytes + counters.satellite_to_client_bytes

    def end(self, joined: JoinedConnection, *, reset: bool) -> None:
        """End it: by FIN on both legs if it can be, else by RST. Its end is reported as any other."""
        if joined.splice_id is None:
            if joined.cancel is not None:
                joined.cancel()
            return
        if not reset:
            try:
                self._engine.give_back(joined.splice_id)
                return
            except OSError:
                pass  # TLS: the engine cannot give its sockets back
        self._engine.abort(joined.splice_id)

    def end_all(self) -> None:
        """Reset all of them."""
        for joined in list(self._live.values()):
            self.end(joined, reset=True)

    async def wait_none(self) -> None:
        """Return when no connection is live."""
        while self._live:
            await self._changed.wait()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # -- ends --------------------------------------------------------------------------------------------------------

    async def run_ends(self) -> None:
        """Take the ends of splices, for ever."""
        while True:
            await trio.lowlevel.wait_readable(self._engine.event_fd)
            while some := self._engine.take_ended(ENDS_A_TURN):
                for ended in some:
                    with contained(Owner("splice end")):
                        self._take(ended)
                self.send_ends()
                await trio.lowlevel.checkpoint()

    def _take(self, ended: Ended) -> None:
        for fd in ended.sockets or ():
            with contextlib.suppress(OSError):
                os.close(fd)
        joined = self._by_splice.pop(ended.splice_id)
        del self._live[joined.id]
        joined.end()
        self._note_change()
        counters = ended.counters
        record = EndedRecord(
            id=joined.id,
            seq=self._next_end,  # unless it is added up with others
            reason=ended.reason.value,
            error=ended.error,
            up=counters.client_to_satellite_bytes,
            down=counters.satellite_to_client_bytes,
            start_us=joined.start_us,
            end_us=boot_us(),
            peer=joined.peer,
            tag=joined.tag,
            moments=(round(counters.first_down_monotonic_s * 1e6), round(counters.last_activity_monotonic_s * 1e6)),
            before=joined.before,
        )
        self._keep_end(record)

    def _keep_end(self, record: EndedRecord) -> None:
        if len(self._ends) < ENDS_KEPT:
            self._number(record)
        else:
            self._add_up(record)

    def _number(self, record: EndedRecord) -> None:
        if record.seq != self._next_end:
            record = dataclasses.replace(record, seq=self._next_end)
        self._ends.append(record)
        self._next_end += 1

    def _add_up(self, record: EndedRecord) -> None:
        """Nobody has come for very many ends: keep one for each tag. Tags are few: a satellite and a principal each."""
        known = self._sums.get(record.tag)
        if known is not None:
            record = dataclasses.replace(
                record, up=known.up + record.up, down=known.down + record.down, start_us=known.start_us
            )
        elif len(self._sums) >= MOST_SUMS:
            self.ends_lost += 1
            return
        self._sums[record.tag] = record

    @property
    def next_end(self) -> int:
        """The number of the first end that the control plane will be sent."""
        return self._ends[0].seq if self._ends else self._next_end

    def seat(self) -> None:
        """A control plane has come: send it all ends that nobody has accounted for, from now on."""
        self._sent_until = self.next_end - 1
        self._kept_until = self._sent_until
        self._seated = True
        self.send_ends()

    def unseat(self) -> None:
        """It has gone."""
        self._seated = False

    def send_ends(self) -> None:
        """Send as many ends as may be under way."""
        if not self._seated:
            return
        while self._sums and len(self._ends) < ENDS_KEPT:
            self._number(self._sums.pop(next(iter(self._sums))))
        first = self.next_end
        last = min(self._next_end - 1, self._kept_until + ENDS_AHEAD)
        for seq in range(self._sent_until + 1, last + 1):
            self._send(self._ends[seq - first])
            self._sent_until = seq

    def keep(self, seq: int) -> bool:
        """The control plane has accounted for all ends up to this number. Returns whether it was sent that many."""
        if seq > self._sent_until:
            return False
        while self._ends and self._ends[0].seq <= seq:
            self._ends.popleft()
        self._kept_until = max(self._kept_until, seq)
        self.send_ends()
        return True
