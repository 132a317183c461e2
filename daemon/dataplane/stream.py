"""A connection that the control plane reads and writes through records: a client before its GO, or a half.

The joiner's thread reads and writes it (native/joiner.py). It reads what the control plane's window allows, and nothing
while nobody may be told. What comes is kept in the transcript here, and is passed on. Nothing in this module waits.
"""

import enum
import select
import socket
from collections.abc import Callable, Sequence

import trio

from bentpipe.daemon.connections.transport import OverLimit, PeerLeft, Transport, TransportError, transport_error
from bentpipe.daemon.dataplane.streams import Streams
from bentpipe.daemon.planes.bounds import DATA_BYTES, DOWN_WINDOW, TRANSCRIPT_BYTES, UP_WINDOW, WORDS_BYTES
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.records import BytesRecord, GoneRecord, Hangup, SayFlag, SayRecord, WindowRecord
from bentpipe.daemon.planes.transcript import PlaneTranscript
from bentpipe.native.engine import Leg
from bentpipe.native.joiner import News, NewsFlag, StreamId
from bentpipe.native.tls import TlsConnection, failure_of

LAST_WORDS_S = 5.0
"""To send the control plane's last words to a peer that reads slowly."""

# As plain numbers: `&` of enums is slow, and this is done for each connection several times.
CONNECTED, DATA, END, BROKEN = map(int, (NewsFlag.CONNECTED, NewsFlag.DATA, NewsFlag.END, NewsFlag.BROKEN))
HUNG_UP, RELEASED = int(NewsFlag.HUNG_UP), int(NewsFlag.RELEASED)
CAME = DATA | END
TOOK = int(NewsFlag.SENT) | BROKEN


class Order(enum.Enum):
    """What ends a stream."""

    JOIN = "a GO takes it"
    CLOSE = "send what waits, then close"
    RESET = "close at once"
    LATE = "no control plane came in time"
    EVICTED = "others need its place"


class Stream:
    """One connection. Owns its socket; the joiner has it until the stream is released."""

    def __init__(
        self,
        stream_id: int,
        sock: socket.socket,
        native: StreamId,
        streams: Streams,
        released: Callable[[News], None],
        connected: Callable[[], None] = lambda: None,
    ) -> None:
        """`released` is called with the last news: from then on nobody else uses the socket.

        `connected` is called before the first bytes of a socket that was connecting.
        """
        self.id = stream_id
        self.native = native
        self.transcript = PlaneTranscript()
        self.order: Order | None = None
        self.told = False
        """Whether the present control plane knows of it: only then anything is read for it."""
        self.reads_here = False
        """Whether this process reads it for itself: then it is read though no control plane knows of it."""
        self.over = False
        """Whether the peer has ended or left, so that nothing more can be read."""
        self.broken = False
        """Whether nothing can be written either."""
        self.own = False
        """Whether the control plane answers it itself, so that no successor can go on with it."""
        self.mark = 0
        self._sock = sock
        self._streams = streams
        self._joiner = streams.joiner
        self._reports = streams.reports
        self._released = released
        self._connected = connected
        self._allowed = UP_WINDOW
        self._passed_on = 0
        """Offset up to which the control plane was sent the bytes."""
        self._end_told = False
        self._hung_up = False
        self._read_bytes = 0
        """What the joiner has read in all."""
        self._may_read_bytes = -1
        """How far it may read; -1: it was not told yet."""
        self._said = self._said_in_all = 0
        """Of words: for this control plane, and for all."""
        self._down_told = DOWN_WINDOW
        self._tls: TlsConnection | None = None
        """Once it is freed."""
        self._freed = False
        self._sent_bytes = self._unseen_bytes = 0
        streams.add(self)

    # -- what the control plane wants --------------------------------------------------------------------------------

    def give(self, order: Order) -> None:
        """End it. The first order counts."""
        if self.order is None:
            self.order = order
            if order is not Order.JOIN:
                self._joiner.release(self.native)

    def allow(self, window: WindowRecord) -> None:
        """The control plane takes more. Raises ProtocolBroken."""
        if window.taken > self.transcript.end or window.allowed < self._allowed:
            raise ProtocolBroken("a window that shrinks, or for bytes that were never sent")
        self._allowed = window.allowed
        if self.own:
            self.transcript.forget(window.taken)
        self.pass_on()

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
        if not self.broken and record.data:
            self.add_words(record.data)
        if self.broken:
            self._tell_window()

    def add_words(self, words: bytes) -> None:
        """Send words of the data plane's own, behind those of the control plane. Raises OSError."""
        self._joiner.say(self.native, words)
        self._said_in_all += len(words)

    # -- reading -----------------------------------------------------------------------------------------------------

    def let_read(self) -> None:
        """Tell the joiner how far it may read by now, if that has changed."""
        may_read = self._read_bytes
        if (self.told or self.reads_here) and not self.over and self.order is None:
            room = min(self._allowed - self.transcript.end, TRANSCRIPT_BYTES - self.transcript.kept_bytes)
            may_read += max(0, room)
        if may_read != self._may_read_bytes:
            self._may_read_bytes = may_read
            self._joiner.allow(self.native, may_read)

    def pass_on(self) -> bool:
        """Send the control plane what it has not got of the transcript, as far as its window allows.

        Returns whether that is everything that may be sent; else the control plane does not read.
        """
        if self.order is not None:
            return True
        end = self.transcript.end
        while self.told and self._passed_on < min(end, self._allowed):
            if not self._reports.has_room:
                return False
            at = self._passed_on
            self._passed_on = min(at + DATA_BYTES, end, self._allowed)
            self._end_told = self.over and self._passed_on == end
            self._reports.send(BytesRecord(self.id, at, self._end_told, self.transcript.between(at, self._passed_on)))
        if self.told and self.over and not self.broken and not self._end_told and self._passed_on == end:
            self._end_told = True
            self._reports.send(BytesRecord(self.id, end, True, b""))
        self.let_read()
        return True

    def take(self, news: News) -> bool:
        """Take what is new of it. Returns as `pass_on`."""
        flags, passed_on = news.flags, True
        if flags & DATA:
            self._read_bytes += len(news.data)
            self.transcript.append(news.data)
        if self.order is None:
            if flags & CONNECTED:
                self._connected()
            if flags & END:
                self.over = True
            if flags & CAME:
                passed_on = self.pass_on()
            if flags & BROKEN:
                self._leave(transport_error(failure_of(news.result, news.words)))
            if flags & HUNG_UP:
                self._hang_up()
            if flags & TOOK:
                self._tell_window()
        if flags & RELEASED:
            self._released(news)
        return passed_on

    def heard_before(self, data: bytes, removed: Sequence[tuple[int, int]], said_bytes: int, mark: int) -> None:
        """C has read this already, has removed these ranges (offset, length) of it, and has said so much."""
        self._read_bytes = len(data)
        self.transcript.append(data)
        for at, size in removed:
            self.transcript.drop(at, size)
        self._said_in_all = said_bytes
        self.mark = mark

    def has_left(self) -> bool:
        """Whether the peer has ended or reset the connection, whatever lies unread before that. Asks the kernel."""
        watch = select.poll()
        watch.register(self._sock, select.POLLRDHUP)
        return bool(watch.poll(0))

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
        if self.told:
            self._reports.send(GoneRecord(self.id, kind, words[: WORDS_BYTES // 4]))

    @property
    def heard_bytes(self) -> int:
        """What has come of the peer; once it is released, also what was passed on without being seen here."""
        return self.transcript.end + self._unseen_bytes

    @property
    def sent_bytes(self) -> int:
        """What was sent to the peer, or dropped since nothing can be written to it."""
        return self._sent_bytes if self._freed else self._joiner.sent_bytes(self.native)

    @property
    def _unsent_bytes(self) -> int:
        return self._said_in_all - self.sent_bytes

    def _tell_window(self) -> None:
        taken = max(0, self._said - self._unsent_bytes)
        if taken + DOWN_WINDOW - self._down_told >= DOWN_WINDOW // 2:
            self._down_told = taken + DOWN_WINDOW
            self._reports.send(WindowRecord(self.id, self._down_told, taken))

    # -- the ends of it ----------------------------------------------------------------------------------------------

    def begin_again(self) -> bool:
        """The control plane is gone. Returns whether the next one can go on with this connection."""
        self.told = False
        unread = (
            self._unsent_bytes > DOWN_WINDOW // 2
        )  # else such words could add up, from one control plane to the next
        if self.own or self.over or self._hung_up or self.broken or unread:
            return False
        self.transcript.begin_again()
        self._passed_on, self._allowed = 0, UP_WINDOW
        self._said, self._down_told = 0, DOWN_WINDOW
        self.let_read()
        return True

    def take_leg(self) -> Leg:
        """The socket and its TLS, for the engine. The stream is released; call `detached` when the engine has them."""
        self._free()
        return Leg(self._sock.fileno(), self._tls)

    def detached(self) -> None:
        """Forget the descriptor and the TLS: the engine owns them now."""
        self._sock.detach()
        self._tls = None

    def take_back(self) -> Transport:
        """The socket and its TLS, to close them in order. The stream is released."""
        self._free()
        return Transport.tuned(self._sock, self._tls, self.sent_bytes)

    def _free(self) -> None:
        """The joiner is done with it: take what it has of it, once."""
        if not self._freed:
            self._sent_bytes = self._joiner.sent_bytes(self.native)
            self._unseen_bytes = self._joiner.read_bytes(self.native) - self._read_bytes
            self._tls = self._streams.free(self)
            self._freed = True

    def drop(self) -> None:
        """Close the socket at once; the joiner does not have it any more."""
        self.order = self.order or Order.RESET  # nothing may be asked of the joiner
        self._sock.close()

    def abandon(self, news: News) -> None:
        """What was done with these news has failed: end it, whatever that loses."""
        if news.flags & RELEASED:
            self._free()
            self.drop()
        else:
            self.give(Order.RESET)


async def close_in_order(transport: Transport, words: bytes) -> None:
    """Send what waits and close, in bounded time."""
    try:
        with trio.move_on_after(LAST_WORDS_S):
            try:
                await transport.send_all(words)
            except TransportError:
                return
            await transport.close_gracefully()
    finally:
        transport.close()
