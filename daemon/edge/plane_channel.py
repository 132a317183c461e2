"""A connection whose socket is the data plane's: a client, or the half of a satellite. Its bytes come and go as records.

Flow control. The data plane may send UP_WINDOW bytes beyond those that the session has taken; of a client that was not
handed off or answered it sends the first UP_WINDOW bytes at once, and then HELD_WINDOW. So that is what a client costs this
process besides what is kept and charged. What the session says waits in the data plane, at most DOWN_WINDOW bytes.

What must survive this process. Words for a client that is greeted or held are never cut in two: SETTINGS or the ACK of a
PING go in one record, with the mark and with the ranges of the transcript that they answer. So the next control plane
neither answers twice nor forgets to answer.
"""

from typing import Protocol

import trio

from bentpipe.daemon.connections.pacing import take_turn
from bentpipe.daemon.connections.transport import RECEIVE_BYTES, OverLimit, PeerLeft, TransportError
from bentpipe.daemon.planes.bounds import DATA_BYTES, DOWN_WINDOW, RANGES_A_RECORD, UP_WINDOW
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.records import (
    BytesRecord,
    GoneRecord,
    Hangup,
    Record,
    SayFlag,
    SayRecord,
    ShutRecord,
    Shutting,
    WindowRecord,
)

CLOSE_S = 5.0
"""For the data plane to close a connection gracefully: its own linger is 1 s."""

KEPT_BEHIND = 32 << 10
"""Of a client that is our own the data plane keeps so much of what was taken: a frame that is not complete here is relayed
there from its beginning on (16 KiB and its header)."""

HELD_WINDOW = RECEIVE_BYTES
"""What may be under way of a client that is greeted or held: a transcript that is full is exceeded by no more than one read,
as with a socket of this process."""

Ranges = tuple[tuple[int, int], ...]


class Sending(Protocol):
    """The plane that a channel belongs to."""

    number: int

    def send_nowait(self, record: Record) -> None:
        """Queue a record."""
        ...

    def forget(self, channel: "PlaneChannel") -> None:
        """The channel is over for this process."""
        ...


class PlaneChannel:
    """One connection of the plane, which has `id` there. `first` has come already."""

    def __init__(self, plane: Sending, connection_id: int, first: bytes = b"", *, half: bool = False) -> None:
        """`half`: it leads to a satellite, and ends with this process."""
        self.id = connection_id
        self.plane_number = plane.number
        self._plane = plane
        self._inbox = bytearray(first)
        self.taken = 0
        """How many bytes the session has read."""
        self._came = len(first)
        self._allowed = UP_WINDOW
        self._said = 0
        self._may_say = DOWN_WINDOW
        self._ended = False
        self._hung_up = False
        self._failure: TransportError | None = None
        self._news = trio.Event()
        self._closed = trio.Event()
        self._own = half
        self._mark = 0
        self._drops: Ranges = ()
        self._live = True
        """Whether the data plane still has it for this process."""

    @property
    def received_bytes(self) -> int:
        """See Channel."""
        return self.taken

    @property
    def sent_bytes(self) -> int:
        """See Channel."""
        return self._said

    # -- what the data plane says --------------------------------------------------------------------------------------

    def came(self, record: BytesRecord) -> None:
        """More bytes. Raises ProtocolBroken."""
        if record.offset != self._came or self._ended or record.offset + len(record.data) > self._allowed:
            raise ProtocolBroken("BYTES that do not continue what came, or exceed the window")
        self._inbox += record.data
        self._came += len(record.data)
        self._ended = record.end
        self._tell()

    def gone(self, record: GoneRecord) -> None:
        """The peer left, or the connection broke."""
        match record.hangup:
            case Hangup.HUNG_UP:
                self._hung_up = True
            case Hangup.LEFT:
                self._failure = PeerLeft(record.words)
            case Hangup.FLOOD:
                self._failure = OverLimit("too much that carries no data", record.words)
            case _:
                self._failure = TransportError(record.words)
        self._tell()

    def may_say(self, record: WindowRecord) -> None:
        """There is room for more words. Raises ProtocolBroken."""
        if record.taken > self._said:
            raise ProtocolBroken("a WINDOW for words that were never said")
        self._may_say = max(self._may_say, record.allowed)
        self._tell()

    def closed(self) -> None:
        """The data plane has closed it."""
        self._live = False
        self._closed.set()
        self._tell()

    def lost(self, words: str) -> None:
        """The data plane is gone."""
        self._failure = TransportError(words)
        self.closed()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    # -- reading -------------------------------------------------------------------------------------------------------

    def receive_nowait(self) -> bytes | None:
        """See Channel."""
        if self._inbox:
            data = bytes(self._inbox[:RECEIVE_BYTES])
            del self._inbox[:RECEIVE_BYTES]
            self.taken += len(data)
            self._allow_more()
            return data
        if self._failure is not None:
            raise self._failure
        return b"" if self._ended else None

    def _allow_more(self) -> None:
        window = UP_WINDOW if self._own else HELD_WINDOW
        allowed = self.taken + window
        if self._live and not self._ended and allowed - self._allowed >= window // 2:
            self._allowed = allowed
            self._plane.send_nowait(WindowRecord(self.id, allowed, max(0, self.taken - KEPT_BEHIND)))

    @property
    def _has_input(self) -> bool:
        return bool(self._inbox) or self._ended or self._failure is not None

    async def wait_readable(self) -> None:
        """See Channel."""
        if self._has_input:
            await trio.lowlevel.checkpoint()
        while not self._has_input:
            await self._news.wait()
        await take_turn()

    async def receive_some(self) -> bytes:
        """See Channel."""
        while (data := self.receive_nowait()) is None:
            await self.wait_readable()
        return data

    async def peek(self, max_bytes: int) -> bytes:
        """See Channel."""
        while not self._inbox:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return b""
            await self._news.wait()
        return bytes(self._inbox[:max_bytes])

    async def wait_hangup(self) -> None:
        """See Channel."""
        while not (self._hung_up or self._ended or self._failure is not None):
            await self._news.wait()

    # -- saying --------------------------------------------------------------------------------------------------------

    def answer(self, mark: int, drops: Ranges) -> None:
        """What the words that are said next answer: what the client has heard by then, and what it said for us alone."""
        if not self._own:
            self._mark = mark
            self._drops += drops

    def say_answered(self) -> None:
        """Tell the plane what was answered, though no words follow."""
        if self._drops and self._live:
            self._say(b"")

    def own(self) -> None:
        """This process answers the connection itself, to its end: nobody else can go on with it."""
        if not self._own:
            self._own, self._drops = True, ()
            if self._live:
                self._say(b"")

    def _say(self, data: bytes) -> None:
        drops, self._drops = self._drops[:RANGES_A_RECORD], self._drops[RANGES_A_RECORD:]
        flags = SayFlag.OWN if self._own else SayFlag.NONE
        self._plane.send_nowait(SayRecord(self.id, flags, self._mark, data, drops))
        self._said += len(data)

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """See Channel. Words for a client that another process may go on with are taken whole or not at all."""
        if self._failure is not None and not isinstance(self._failure, OverLimit):
            raise self._failure
        if not self._live:
            raise TransportError("the connection is closed")
        room = min(self._may_say - self._said, DATA_BYTES)
        if room < len(data) <= DATA_BYTES and not self._own:
            return 0
        size = min(room, len(data))
        if size:
            self._say(bytes(data[:size]))
        return size

    async def wait_writable(self) -> None:
        """See Channel."""
        if self._failure is None and self._live:
            await self._news.wait()
        else:
            await trio.lowlevel.checkpoint()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See Channel."""
        rest = memoryview(data)
        while rest:
            sent = self.send_nowait(rest)
            if sent:
                rest = rest[sent:]
            else:
                await self.wait_writable()

    # -- the end -------------------------------------------------------------------------------------------------------

    async def close_gracefully(self) -> None:
        """See Channel."""
        try:
            if self._live:
                self._plane.send_nowait(ShutRecord(self.id, Shutting.GRACEFUL, 0))
                with trio.move_on_after(CLOSE_S):
                    await self._closed.wait()
        finally:
            self.close()

    def close(self) -> None:
        """See Channel."""
        if self._live:
            self._live = False
            self._plane.send_nowait(ShutRecord(self.id, Shutting.RESET, 0))
        self._plane.forget(self)

    def detached(self) -> None:
        """A GO has taken it: close nothing."""
        self._live = False
        self._plane.forget(self)

    def close_after_all(self) -> None:
        """The GO was refused, and the data plane still has it: reset it."""
        self._plane.send_nowait(ShutRecord(self.id, Shutting.RESET, 0))
