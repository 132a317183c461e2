"""Halves: connections to satellites that the control plane has opened, until a GO takes them or they are shut.

One task a half dials once and then runs its stream. When the control plane is gone, its halves are closed: nobody knows what
for they were opened.
"""

import errno
from collections.abc import Callable

import trio

from bentpipe.daemon.connections.dial_once import SatelliteTls, connect, reason_of, secure
from bentpipe.daemon.connections.transport import Transport
from bentpipe.daemon.dataplane.stream import Order, Reports, Stream
from bentpipe.daemon.model import Address
from bentpipe.daemon.planes.bounds import OPEN_HALVES, WORDS_BYTES
from bentpipe.daemon.planes.records import ClosedRecord, FailedAt, FailedRecord, OpenRecord, WentRecord
from bentpipe.daemon.tasks import Decision, Owner, run_owned

MOST_DIAL_S = 60.0
"""For one attempt, whatever the control plane asks."""
NO_ANSWER = "no answer in time"


class Half:
    """One of them. `stream` is None until it is connected."""

    def __init__(self, about: int) -> None:
        self.id = about
        self.stream: Stream | None = None
        self.scope = trio.CancelScope()
        """The dial. It is cancelled if the half is shut before it is connected."""
        self.released = trio.Event()
        """The half's task has let go of the stream: a GO may use it."""

    def shut(self, order: Order) -> None:
        """End it: closed, or given to a GO."""
        if self.stream is None:
            self.scope.cancel()
        else:
            self.stream.give(order)


class Halves:
    """All halves of the present control plane."""

    def __init__(self, reports: Reports, find_trust: Callable[[str], SatelliteTls | None]) -> None:
        """`find_trust` finds a satellite's TLS by the name that the control plane uses."""
        self._reports = reports
        self._find_trust = find_trust
        self._halves: dict[int, Half] = {}

    def __len__(self) -> int:
        return len(self._halves)

    def find(self, about: int) -> Half | None:
        """The half of this id; None if it is gone."""
        return self._halves.get(about)

    def open(self, record: OpenRecord, tasks: trio.Nursery) -> None:
        """Dial, in a task of its own."""
        if record.id in self._halves or len(self._halves) >= OPEN_HALVES:
            self._fail(record.id, FailedAt.REFUSED, errno.EMFILE, "too many halves are open")
            return
        half = self._halves[record.id] = Half(record.id)
        owner = Owner("half", f"{record.host}:{record.port}", Decision.GIVE_UP)
        tasks.start_soon(run_owned, owner, self._run, half, record)

    def take(self, half: Half) -> Stream | None:
        """Give a connected half to a GO. Returns None if it is not connected, or is being shut."""
        stream = half.stream
        if stream is None or stream.order is not None or stream.broken:
            return None
        del self._halves[half.id]
        stream.give(Order.JOIN)
        return stream

    def close_all(self) -> None:
        """The control plane is gone."""
        for half in list(self._halves.values()):
            half.shut(Order.RESET)

    def _fail(self, about: int, step: FailedAt, error: int, words: str) -> None:
        self._reports.send(FailedRecord(about, step, error, "", words[: WORDS_BYTES // 4]))

    async def _run(self, half: Half, record: OpenRecord) -> None:
        transport: Transport | None = None
        try:
            with half.scope:
                transport = await self._dial(record)
            if transport is None:
                if half.scope.cancelled_caught:
                    self._reports.send(ClosedRecord(half.id))
                return
            half.stream = Stream(half.id, transport, self._reports)
            half.stream.told = True
            self._reports.send(WentRecord(half.id))
            order = await half.stream.run_stream()
            if order is Order.JOIN:
                transport = None  # the GO has it
                return
            if order is Order.CLOSE:
                await half.stream.close_gracefully()
            transport.close()
            self._reports.send(ClosedRecord(half.id))
        finally:
            half.released.set()
            if self._halves.get(half.id) is half:
                del self._halves[half.id]
            if transport is not None:
                transport.close()

    async def _dial(self, record: OpenRecord) -> Transport | None:
        """Returns None after a FAILED."""
        address, step = Address(record.host, record.port), FailedAt.DIAL
        with trio.move_on_after(min(record.deadline_ms / 1000, MOST_DIAL_S)):
            try:
                trust = self._find_trust(record.trust) if record.trust else None
                if record.trust and trust is None:
                    self._fail(record.id, FailedAt.TLS, 0, f"this data plane does not know {record.trust}")
                    return None
                transport = await connect(address)
                step = FailedAt.TLS
                if trust is not None and record.server_name:
                    trust = SatelliteTls(trust.context, record.server_name)
                return await secure(transport, address, trust)
            except Exception as exc:
                # Any exception, as in `reason_of`: from the resolver, from TLS, or because no descriptor is left.
                self._fail(record.id, step, (exc.errno or 0) if isinstance(exc, OSError) else 0, reason_of(exc))
                return None
        self._fail(record.id, step, errno.ETIMEDOUT, NO_ANSWER)
        return None
