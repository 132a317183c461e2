"""A connection that the control plane reads and writes through records: a client before its GO, or a half.

Owns: the transport, until a GO takes it or the connection is closed. One task runs a stream: it reads what the control
plane's window allows, keeps it in the transcript, and passes it on. It reads nothing while nobody may be told. What the
control plane says is sent at once as far as the socket takes it, and the rest by the same task.
"""

import enum
from typing import Protocol

import trio

from bentpipe.daemon.connections.transport import (
    HANGUP_LOOK_S,
    RECEIVE_BYTES,
    OverLimit,
    PeerLeft,
    Transport,
    TransportError,
)
from bentpipe.daemon.planes.bounds import DATA_BYTES, DOWN_WINDOW, TRANSCRIPT_BYTES, UP_WINDOW, WORDS_BYTES
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.records import BytesRecord, GoneRecord, Hangup, Record, SayFlag, SayRecord, WindowRecord
from bentpipe.daemon.planes.transcript import PlaneTranscript

LAST_WORDS_S = 5.0
"""To send the control plane's last words to a peer that reads slowly."""


class Order(enum.Enum):
    """What ends the run of a stream."""

    JOIN = "a GO takes it"
    CLOSE = "send what waits, then close"
    RESET = "close at once"
    LATE = "no control plane came in time"


class Reports(Protocol):
    """Where a stream's records go."""

    def send(self, record: Record) -> None: ...  # noqa: D102
    @property
    def has_room(self) -> bool: ...  # noqa: D102


class Stream:
    """One connection. Only `run_stream` waits."""

    def __init__(self, stream_id: int, transport: Transport, reports: Reports) -> None:
        self.id = stream_id
        self.transport = transport
        self.transcript = PlaneTranscript()
        self.order: Order | None = None
        self.told = False
        """Whether the present control plane knows of it: only then anything is read for it."""
        self.over = False
        """Whether the peer has ended or left, so that nothing more can be read."""
        self.broken = False
        """Whether nothing can be written either."""
        self.own = False
        """Whether the control plane answers it itself, so that no successor can go on with it."""
        self.mark = 0
        self._reports = reports
        self._allowed = UP_WINDOW
        self._passed_on = 0
        """Offset up to which the control plane was sent the bytes."""
        self._end_told = False
        self._hung_up = False
        self._outbox = bytearray()
        self._said = 0
        self._down_told = DOWN_WINDOW
        self._waiting = trio.CancelScope()

    # -- what the control plane wants --------------------------------------------------------------------------------

    def give(self, order: Order) -> None:
        """End the run. The first order counts."""
        if self.order is None:
            self.order = order
            self.look_again()

    def look_again(self) -> None:
        """Something has changed that the task may wait for."""
        self._waiting.cancel()

    def allow(self, window: WindowRecord) -> None:
        """The control plane takes more. Raises ProtocolBroken."""
        if window.taken > self.transcript.end or window.allowed < self._allowed:
            raise ProtocolBroken("a window that shrinks, or for bytes that were never sent")
        stuck = not self._may_read()
        self._allowed = window.allowed
        if self.own:
            self.transcript.forget(window.taken)
        if stuck:  # else the task waits for the peer already, and nothing changes for it
            self.look_again()

    def say(self, record: SayRecord) -> None:
        """Send words, drop ranges of the transcript, keep the mark. Raises ProtocolBroken."""
        if self._said + len(record.data) > self._down_told:
            raise ProtocolBroken("words beyond the window")
        for at, size in record.drops:
            if not self.own:
                self.transcript.drop(at, size)
        self.mark = record.mark
        if SayFlag.OWN in record.flags:
            self.own = True
        self._said += len(record.data)
        if not self.broken:
            self._outbox += record.data
        self._send_some()
        if self._outbox:
            self.look_again()

    # -- the task ----------------------------------------------------------------------------------------------------

    async def run_stream(self) -> Order:
        """Read and write until there is an order."""
        while self.order is None:
            with trio.CancelScope() as self._waiting:
                self._send_some()
                if not self._read_some():
                    await self._wait()
        return self.order

    def _may_read(self) -> bool:
        return (
            self.told
            and not self.over
            and self._passed_on == self.transcript.end < self._allowed
            and self.transcript.kept_bytes < TRANSCRIPT_BYTES
            and self._reports.has_room
        )

    def _read_some(self) -> bool:
        """Read what has come, if it may be passed on. Returns whether anything was read."""
        self._pass_on()
        if not self._may_read():
            return False
        try:
            data = self.transport.receive_nowait(min(RECEIVE_BYTES, self._allowed - self.transcript.end))
        except TransportError as exc:
            self._leave(exc)
            return True
        if data is None:
            return False
        self.over = not data
        self.transcript.append(data)
        self._pass_on()
        return True

    def _pass_on(self) -> None:
        """Send the control plane what it has not got of the transcript, as far as its window allows."""
        end = self.transcript.end
        while self.told and self._passed_on < min(end, self._allowed) and self._reports.has_room:
            at = self._passed_on
            self._passed_on = min(at + DATA_BYTES, end, self._allowed)
            self._end_told = self.over and self._passed_on == end
            self._reports.send(BytesRecord(self.id, at, self._end_told, self.transcript.between(at, self._passed_on)))
        if self.told and self.over and not self.broken and not self._end_told and self._passed_on == end:
            self._end_told = True
            self._reports.send(BytesRecord(self.id, end, True, b""))

    async def _wait(self) -> None:
        if not self._outbox:
            await self._wait_input()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_when_writable, nursery.cancel_scope)
            await self._wait_input()
            nursery.cancel_scope.cancel()

    async def _wait_input(self) -> None:
        if self.over or self._hung_up:
            await trio.sleep_forever()
        elif self._may_read():
            await self.transport.wait_readable()
        else:
            with trio.move_on_after(HANGUP_LOOK_S) as look:
                await self.transport.wait_hangup()
            if not look.cancelled_caught:
                self._hang_up()

    async def _end_when_writable(self, scope: trio.CancelScope) -> None:
        await self.transport.wait_writable()
        scope.cancel()

    def _hang_up(self) -> None:
        """The peer is gone, though bytes of it may be unread."""
        self._hung_up = True
        if self.told:
            self._reports.send(GoneRecord(self.id, Hangup.HUNG_UP, ""))
        else:
            self.give(Order.RESET)

    def _leave(self, error: TransportError) -> None:
        self.over = self._end_told = True
        kind = Hangup.LEFT if isinstance(error, PeerLeft) else Hangup.BROKEN
        words = str(error)
        if isinstance(error, OverLimit):
            kind, words = Hangup.FLOOD, error.limit
        else:
            self.broken = True
        self._reports.send(GoneRecord(self.id, kind, words[: WORDS_BYTES // 4]))

    def _send_some(self) -> None:
        if self._outbox:
            try:
                del self._outbox[: self.transport.send_nowait(self._outbox)]
            except TransportError as exc:
                self._outbox.clear()
                if not self.broken:
                    self._leave(exc)
                    self.broken = True
        self._tell_window()

    def _tell_window(self) -> None:
        taken = max(0, self._said - len(self._outbox))
        if taken + DOWN_WINDOW - self._down_told >= DOWN_WINDOW // 2:
            self._down_told = taken + DOWN_WINDOW
            self._reports.send(WindowRecord(self.id, self._down_told, taken))

    # -- the ends of it ----------------------------------------------------------------------------------------------

    def begin_again(self) -> bool:
        """The control plane is gone. Returns whether the next one can go on with this connection."""
        self.told = False
        unread = (
            len(self._outbox) > DOWN_WINDOW // 2
        )  # else such words could add up, from one control plane to the next
        if self.own or self.over or self._hung_up or self.broken or unread:
            return False
        self.transcript.begin_again()
        self._passed_on, self._allowed = 0, UP_WINDOW
        self._said, self._down_told = 0, DOWN_WINDOW
        self.look_again()
        return True

    def add_last_words(self, words: bytes) -> None:
        """Words of the data plane's own, behind those of the control plane."""
        self._outbox += words

    async def flush(self) -> None:
        """Send what waits. Raises TransportError."""
        while self._outbox:
            sent = self.transport.send_nowait(self._outbox)
            del self._outbox[:sent]
            if not sent:
                await self.transport.wait_writable()

    async def close_gracefully(self) -> None:
        """Send what waits and close, in bounded time."""
        with trio.move_on_after(LAST_WORDS_S):
            try:
                await self.flush()
            except TransportError:
                self._outbox.clear()
            else:
                await self.transport.close_gracefully()
        self.transport.close()
