"""Gives connections to the engine, and keeps each splice's lease and place until the engine reports its end.

Owns: the engine's event descriptor on the Python side. One task, `run_handoff`, waits on it. For a spliced connection
Python keeps one entry of a dict and nothing else.
"""

import collections
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from types import TracebackType

import trio

from bentpipe.daemon.connections.ends import CUT, OUTCOME_ENDS, QUIET, SPLICE_ENDS
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.connections.quotas import Place
from bentpipe.daemon.connections.transport import Transport
from bentpipe.daemon.edge.splicer import EngineSplicer, Splicer
from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.records.record import Phase, Record
from bentpipe.daemon.tasks import Owner, contained
from bentpipe.native.engine import Ended, EndReason, Engine, SpliceId

SATELLITE_GONE = frozenset({EndReason.SATELLITE_RESET, EndReason.SATELLITE_TIMEOUT})
"""How connections end if their machine was stopped or terminated, or lost its address: the fleet then looks at the machine.
A FIN does not count, since satellites close connections properly every day."""

ENDS_A_TURN = 64
"""Each takes some 0.1 ms. If a satellite dies, thousands of connections end at once, and other clients must still be
read."""

READS_A_TURN = 128
"""Counters of connections that are read at once, each in some microseconds, before others have their turn."""

NO_CREDENTIALS: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class MovedBytes:
    """A satellite's connections now, and what these and earlier ones have moved since the daemon started."""

    connections: int = 0
    up_bytes: int = 0
    """From client to satellite."""
    down_bytes: int = 0

    def __add__(self, other: "MovedBytes") -> "MovedBytes":
        connections = self.connections + other.connections
        return MovedBytes(connections, self.up_bytes + other.up_bytes, self.down_bytes + other.down_bytes)


NOTHING_MOVED = MovedBytes()


@dataclasses.dataclass(frozen=True, slots=True)
class Splice:
    """What Python keeps of a spliced connection."""

    key: SatelliteKey
    principal: str
    """One name, or several joined by "+", which is in no name."""
    peer: str
    lease: Lease
    place: Place
    record: Record
    credentials: frozenset[str] = NO_CREDENTIALS
    """By which it was opened: `token:NAME`, `certificate:NAME`, `exchange:ID`, `rule:NAME`."""

    def is_of(self, subject: str) -> bool:
        """Whether it was opened in the name of this principal, or by this credential."""
        return subject in self.principal.split("+") or subject in self.credentials


class Pending:
    """An admitted client that is not spliced yet: in the block it can be cut too, which cancels the block."""

    __slots__ = ("_all", "credentials", "key", "principal", "scope")

    def __init__(
        self, everyone: set["Pending"], key: SatelliteKey, principal: str, credentials: frozenset[str]
    ) -> None:
        self._all = everyone
        self.key = key
        self.principal = principal
        """As a splice's."""
        self.credentials = credentials
        self.scope = trio.CancelScope()
        """Is cancelled by `cut`: everything that is done for the client runs in it."""

    def __enter__(self) -> "Pending":
        """Let `cut` find the client."""
        self._all.add(self)
        self.scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """It is spliced, refused, or was cut."""
        self._all.discard(self)
        return self.scope.__exit__(kind, error, traceback)

    def is_of(self, subject: str) -> bool:
        """As a splice's."""
        return subject in self.principal.split("+") or subject in self.credentials


class _SpliceMeter:
    """How the satellite's lease reads and ends its connection: see `daemon/fleet/lease.py`."""

    def __init__(self, handoff: "HandOff", splice_id: SpliceId) -> None:
        self._handoff = handoff
        self._splice_id = splice_id

    def moved_bytes(self) -> int:
        return self._handoff.moved_bytes(self._splice_id)

    def end(self, *, cut: bool) -> None:
        self._handoff.end_quiet(self._splice_id, cut=cut)


class HandOff:
    """Gives connections to the engine and takes their ends from it."""

    def __init__(
        self,
        engine: Engine | None,
        told: Callable[[SatelliteKey, str], None] = lambda key, principal: None,
        splicer: Splicer | None = None,
    ) -> None:
        """`engine` is None if data planes have the splices, by `splicer`: see Splicer.

        `told` is called with each splice's satellite and principal, as `Splice` has them.
        """
        self._engine = engine
        if splicer is None:
            assert engine is not None
            splicer = EngineSplicer(engine)
        self._splicer: Splicer = splicer
        self._told = told
        self._live: dict[SpliceId, Splice] = {}
        self._pending: set[Pending] = set()
        self._quiet: set[SpliceId] = set()
        self._cut: set[SpliceId] = set()
        self._changed = trio.Event()
        self._moved: collections.defaultdict[SatelliteKey, MovedBytes] = collections.defaultdict(MovedBytes)
        """By connections that have ended."""
        self.ended: collections.Counter[EndReason] = collections.Counter()
        """How many spliced connections ended since the start, by reason, without those that the operator cut."""
        self.cut_by_operator = 0
        """How many the operator cut."""

    def connected(self, key: SatelliteKey) -> list[str]:
        """The spliced clients of a satellite, in words for the log."""
        found = [splice for splice in self._live.values() if splice.key == key]
        return [f"{splice.peer} of {splice.principal or 'nobody known'}" for splice in found]

    @property
    def satellites(self) -> frozenset[SatelliteKey]:
        """Those with a spliced connection."""
        return frozenset(splice.key for splice in self._live.values())

    @property
    def live(self) -> int:
        """Spliced connections now."""
        return len(self._live)

    def pending(self, key: SatelliteKey, principal: str, credentials: frozenset[str]) -> Pending:
        """Make the block in which `cut` finds the client."""
        return Pending(self._pending, key, principal, credentials)

    def hand_off(self, client: Transport, satellite: Transport, splice: Splice, pending: Pending) -> None:
        """Give both sockets to the engine, and the lease to the splice. Raises OSError, and nothing is given, if it refuses.

        Synchronous: a cancellation cannot come between the two owners.
        """
        assert self._engine is not None
        splice_id = self._engine.splice(client.detach(), satellite.detach())
        client.detached()
        satellite.detached()
        splice.record.up_bytes, splice.record.down_bytes = client.received_bytes, client.sent_bytes
        self.join(splice_id, splice, pending)

    def join(self, splice_id: SpliceId, splice: Splice, pending: Pending) -> None:
        """A splice was made: the lease and the place are its own from now on."""
        self._pending.discard(pending)
        self.take_over(splice_id, splice)

    def take_over(self, splice_id: SpliceId, splice: Splice) -> None:
        """A data plane has made a splice for a client that it has admitted itself."""
        splice.record.reach(Phase.SPLICED)
        self.adopt(splice_id, splice)
        with contained(Owner("splice told", splice.peer)):
            self._told(splice.key, splice.principal)

    def adopt(self, splice_id: SpliceId, splice: Splice) -> None:
        """Take over a splice that lives already."""
        splice.place.hand_off()
        splice.record.hand_off()
        self._live[splice_id] = splice
        with contained(Owner("splice meter", splice.peer)):  # the bytes move: nothing may fail now
            splice.lease.measure(_SpliceMeter(self, splice_id))

    def moved_bytes(self, splice_id: SpliceId) -> int:
        """Bytes that a live splice has moved, both directions added."""
        return sum(self._splicer.moved(splice_id))

    async def read_traffic(self) -> dict[SatelliteKey, MovedBytes]:
        """Read what each satellite's connections have moved; a satellite that never had one is left out."""
        await self._splicer.refresh()
        counted: dict[SpliceId, MovedBytes] = {}
        for number, splice_id in enumerate(list(self._live)):
            if number % READS_A_TURN == READS_A_TURN - 1:
                await trio.lowlevel.checkpoint()
            with contextlib.suppress(KeyError):  # its end was taken
                counted[splice_id] = MovedBytes(1, *self._splicer.moved(splice_id))
        # Added up in one step, so that each connection counts once: as live, or as ended.
        moved = dict(self._moved)
        for splice_id, splice in self._live.items():
            moved[splice.key] = moved.get(splice.key, NOTHING_MOVED) + counted.get(splice_id, MovedBytes(1))
        return moved

    def forget(self, key: SatelliteKey) -> None:
        """A satellite is gone: forget what its connections have moved."""
        self._moved.pop(key, None)

    def end_quiet(self, splice_id: SpliceId, *, cut: bool) -> None:
        """End a live splice because its satellite will sleep: by FIN on both legs, or by RST. See Splicer."""
        self._quiet.add(splice_id)
        with contextlib.suppress(KeyError):  # it has ended, and its end was taken but not handled yet
            self._splicer.end_quiet(splice_id, cut=cut)

    def still_used(self, splice_id: SpliceId) -> None:
        """A splice that was to be ended as quiet is not quiet, and goes on."""
        self._quiet.discard(splice_id)
        if (splice := self._live.get(splice_id)) is not None:
            splice.lease.tell_used()

    async def run_handoff(self) -> None:
        """Take the ends of splices from the engine of this process, for ever."""
        while self._engine is not None:
            await trio.lowlevel.wait_readable(self._engine.event_fd)
            while some := self._engine.take_ended(ENDS_A_TURN):
                for ended in some:
                    with contained(Owner("splice end")):
                        self.take_end(ended)
                await trio.lowlevel.checkpoint()

    def drop(self, splice_id: SpliceId) -> None:
        """A GO was not spliced: its lease and place are free. The client was told, or its connection is closed."""
        splice = self._live.pop(splice_id, None)
        if splice is None:
            return
        self._quiet.discard(splice_id)
        if splice_id in self._cut:
            self._cut.discard(splice_id)
            splice.record.finish(CUT)
        self._tell_changed()
        for release in (splice.lease.release, splice.place.release):
            with contained(Owner("splice end", splice.peer)):
                release()
        splice.record.take_back(OUTCOME_ENDS[Outcome.BROKEN])

    def said_before(self, splice_id: SpliceId, up_bytes: int, down_bytes: int) -> None:
        """All that was said before the splice. A data plane tells it with the end; until then a part of it is known."""
        record = self._live[splice_id].record
        record.up_bytes, record.down_bytes = up_bytes, down_bytes

    def account(self, key: SatelliteKey, ended: Ended, record: Record) -> None:
        """A splice has ended that this process never knew: it was made and it ended while no control plane was there."""
        counters = ended.counters
        self.ended[ended.reason] += 1
        self._moved[key] += MovedBytes(0, counters.client_to_satellite_bytes, counters.satellite_to_client_bytes)
        _write_down(ended, record, quiet=False, cut=False)
        record.close()

    def is_live(self, splice_id: SpliceId) -> bool:
        """Whether its end was not taken yet."""
        return splice_id in self._live

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def take_end(self, ended: Ended) -> None:
        """A splice is over."""
        splice = self._live.pop(ended.splice_id)
        try:
            self._settle(ended, splice)
        finally:
            splice.record.close()

    def _settle(self, ended: Ended, splice: Splice) -> None:
        counters = ended.counters
        quiet = ended.splice_id in self._quiet
        self._quiet.discard(ended.splice_id)
        # A splice that has ended by itself in the same moment counts as such.
        cut = ended.splice_id in self._cut and ended.reason is EndReason.ABORTED
        self._cut.discard(ended.splice_id)
        if cut:
            self.cut_by_operator += 1
        else:
            self.ended[ended.reason] += 1
        self._tell_changed()
        self._moved[splice.key] += MovedBytes(0, counters.client_to_satellite_bytes, counters.satellite_to_client_bytes)
        _write_down(ended, splice.record, quiet=quiet, cut=cut)
        # Each step is done even if another fails: a lease that stays would keep its satellite awake for ever.
        owner = Owner("splice end", splice.peer)
        for fd in ended.sockets or ():
            with contained(owner):
                os.close(fd)
        if ended.reason in SATELLITE_GONE:
            with contained(owner):
                splice.lease.suspect()
        with contained(owner):
            splice.lease.release()
        with contained(owner):
            splice.place.release()

    async def wait_none(self) -> None:
        """Return when no connection is spliced."""
        while self._live:
            await self._changed.wait()

    def cut(self, is_meant: Callable[[Splice | Pending], bool]) -> int:
        """Cut the splices and pending clients for which `is_meant` says so. Returns how many.

        A splice ends by RST on both legs. A pending client is refused.
        """
        meant = [splice_id for splice_id, splice in self._live.items() if is_meant(splice)]
        for splice_id in meant:
            # KeyError: see `end_quiet`.
            with contextlib.suppress(KeyError):
                self._splicer.abort(splice_id)
                self._cut.add(splice_id)
        pending = [each for each in self._pending if is_meant(each)]
        for each in pending:
            self._pending.discard(each)  # it is counted once, however long its refusal takes
            each.scope.cancel()
        return len(meant) + len(pending)

    def abort_all(self) -> int:
        """Cut every spliced connection by RST on both legs; `run_handoff` takes their ends. Returns how many."""
        for splice_id in self._live:
            with contextlib.suppress(KeyError):
                self._splicer.abort(splice_id)
        return len(self._live)


def _write_down(ended: Ended, record: Record, *, quiet: bool, cut: bool) -> None:
    counters = ended.counters
    moved = counters.client_to_satellite_bytes + counters.satellite_to_client_bytes
    record.up_bytes += counters.client_to_satellite_bytes
    record.down_bytes += counters.satellite_to_client_bytes
    if counters.first_down_monotonic_s:
        record.reach_first(Phase.FIRST_BYTE, time.monotonic() - counters.first_down_monotonic_s)
    if moved and counters.last_activity_monotonic_s:
        record.reach_first(Phase.LAST_BYTE, time.monotonic() - counters.last_activity_monotonic_s)
    # The engine's clock has whole milliseconds: nothing of a splice lies before it, nor the last byte before the first.
    marks = record.marks
    marks[Phase.FIRST_BYTE] = max(marks[Phase.FIRST_BYTE], marks[Phase.DIALLED])
    marks[Phase.LAST_BYTE] = max(marks[Phase.LAST_BYTE], marks[Phase.SPLICED], marks[Phase.FIRST_BYTE])
    end = CUT if cut else QUIET if quiet else SPLICE_ENDS[ended.reason]
    record.finish(end, os.strerror(ended.error) if ended.error else "")
